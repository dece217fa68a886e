"""The two pictures a scene is drawn on: the ground, and the view with solids over it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sparse_dset.data.synthetic.world import (
    Array,
    Camera,
    Colour,
    Light,
    Solid,
    Tree,
    convex_hull,
    rectangle,
    scaled,
    signed_area,
)

SUPERSAMPLE = 2


class Ground:
    """The ground as it is painted: colours, grain (strength of the texture) and cast shadows."""

    def __init__(self, camera: Camera, colour: Colour, grain: float) -> None:
        size = (camera.width * SUPERSAMPLE, camera.height * SUPERSAMPLE)
        self.camera = camera
        self.colours = Image.new("RGB", size, whole(colour))
        self.grain = Image.new("L", size, round(255 * grain))
        self.shadow = Image.new("L", size, 0)
        self._colours = ImageDraw.Draw(self.colours)
        self._grain = ImageDraw.Draw(self.grain)
        self._shadow = ImageDraw.Draw(self.shadow)

    def fill(self, polygon: Array, colour: Colour, grain: float | None = None) -> None:
        """Paints a polygon ``[n, 2]``; ``grain=None`` keeps the texture that is there."""
        pixels, depth = self.camera.project(np.column_stack([polygon, np.zeros(len(polygon))]))
        pixels = pixels[depth > 1.0] * SUPERSAMPLE
        if len(pixels) < 3 or outside(pixels, self.colours.size):
            return
        corners = pixels.ravel().tolist()
        self._colours.polygon(corners, fill=whole(colour))
        if grain is not None:
            self._grain.polygon(corners, fill=round(255 * grain))

    def fill_rectangle(
        self, centre: Array, angle: float, length: float, width: float, colour: Colour
    ) -> None:
        """Paints a rectangle that keeps the texture under it."""
        self.fill(rectangle(length, width, centre, angle), colour)

    def darken(self, solid: Solid, light: Light) -> None:
        """Casts the shadow of a solid."""
        points = solid.vertices()
        footprint = points * (1.0, 1.0, 0.0)
        pixels, depth = self.camera.project(np.concatenate([footprint, light.cast(points)]))
        if depth.min() > 1.0 and not outside(pixels * SUPERSAMPLE, self.shadow.size):
            self._shadow.polygon(convex_hull(pixels * SUPERSAMPLE), fill=255)

    def darken_below(self, tree: Tree, light: Light) -> None:
        """Casts the shadow of a tree: a ragged disc."""
        angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        ragged = tree.radius * (0.9 + 0.15 * np.sin(5 * angles + tree.radius))
        ring = np.column_stack([np.cos(angles), np.sin(angles)]) * ragged[:, None] + tree.position
        points = light.cast(np.column_stack([ring, np.full(len(ring), tree.height)]))
        pixels, depth = self.camera.project(points)
        if depth.min() > 1.0:
            self._shadow.polygon((pixels * SUPERSAMPLE).ravel().tolist(), fill=225)

    def render(self, light: Light, rng: np.random.Generator) -> NDArray[np.float32]:
        """Adds texture and shadows; returns RGB ``float32 [H, W, 3]`` in 0..255."""
        colours = np.asarray(self.colours.reduce(SUPERSAMPLE), np.float32)
        grain = np.asarray(self.grain.reduce(SUPERSAMPLE), np.float32) / 255
        fine, coarse = ground_noise(self.camera, rng)
        texture = 1 + grain * fine + 0.35 * (0.25 + grain) * coarse
        soft = self.shadow.reduce(SUPERSAMPLE).filter(ImageFilter.BoxBlur(0.6))
        shade = np.asarray(soft, np.float32) / 255
        total = light.sky + light.sun * float(light.towards_sun[2])
        texture *= total - light.sun * float(light.towards_sun[2]) * shade
        out = colours * texture[..., None]
        out[..., 0] += 22 * grain * coarse  # dry and lush parts
        return out.astype(np.float32, copy=False)

    def shade_at(self, position: Array) -> float:
        """Whether a ground point lies in a shadow, 0..1."""
        pixels, _ = self.camera.project(np.array([[*position, 0.0]]))
        x, y = (pixels[0] * SUPERSAMPLE).astype(int)
        if not (0 <= x < self.shadow.width and 0 <= y < self.shadow.height):
            return 0.0
        value = self.shadow.getpixel((int(x), int(y)))
        return float(value) / 255  # type: ignore[arg-type]


class View:
    """The picture in which solids are drawn over the ground, and the buffer of identities."""

    def __init__(self, camera: Camera, ground: NDArray[np.float32]) -> None:
        self.camera = camera
        # A nearest-neighbour enlargement is undone exactly by the mean that ends the drawing.
        picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
        size = (camera.width * SUPERSAMPLE, camera.height * SUPERSAMPLE)
        self.picture = picture.resize(size, Image.Resampling.NEAREST)
        self.identities = Image.new("L", size, 0)
        self._picture = ImageDraw.Draw(self.picture)
        self._identities = ImageDraw.Draw(self.identities)

    def draw(self, solid: Solid, light: Light) -> float:
        """Draws the faces that look at the camera; returns the area of the outline in pixels."""
        vertices = solid.vertices()
        pixels, depth = self.camera.project(vertices)
        if depth.min() < 1.0 or outside(pixels * SUPERSAMPLE, self.picture.size):
            return 0.0
        starts = np.cumsum([0, *(len(face.points) for face in solid.faces)])[:-1]
        corner = vertices[starts]
        normals = np.cross(vertices[starts + 1] - corner, vertices[starts + 2] - corner)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        brightness = light.brightness(normals)
        enlarged = (pixels * SUPERSAMPLE).tolist()
        for face, start, factor in zip(solid.faces, starts, brightness, strict=True):
            polygon = [tuple(p) for p in enlarged[start : start + len(face.points)]]
            if signed_area(polygon) < 0:
                self._picture.polygon(polygon, fill=whole(scaled(face.colour, factor)))
        outline = convex_hull(pixels * SUPERSAMPLE)
        self._identities.polygon(outline, fill=solid.identity)
        return abs(signed_area(outline)) / SUPERSAMPLE**2

    def draw_tree(self, tree: Tree, light: Light, rng: np.random.Generator) -> None:
        """Draws a crown as clumps of leaves, the sunny ones last."""
        centre = np.array([[*tree.position, tree.height]])
        pixels, depth = self.camera.project(centre)
        radius = self.camera.focal * tree.radius / max(float(depth[0]), 1.0) * SUPERSAMPLE
        x, y = pixels[0] * SUPERSAMPLE
        reach = np.array([[x - radius, y - radius], [x + radius, y + radius]])
        if depth[0] < 1.0 or outside(reach, self.picture.size):
            return
        sun = self.camera.axes[:2] @ light.towards_sun
        count = int(np.clip(radius, 14, 44))
        spread = radius * 0.72 * np.sqrt(rng.random(count))
        angles = rng.uniform(0, 2 * np.pi, count)
        places = np.column_stack([np.cos(angles), np.sin(angles)]) * spread[:, None]
        sizes = radius * rng.uniform(0.16, 0.38, count)
        facing = places @ sun / radius
        factors = light.sky + light.sun * (0.45 + 0.8 * facing) + rng.normal(0, 0.07, count)
        for i in np.argsort(facing):
            size, (px, py) = sizes[i], places[i] + (x, y)
            disc = (px - size, py - size, px + size, py + size)
            self._picture.ellipse(disc, fill=whole(scaled(tree.colour, float(factors[i]))))
            self._identities.ellipse(disc, fill=0)

    def draw_pole(self, position: Array, height: float) -> None:
        """Draws a lamp post."""
        ends = np.array([[*position, 0.0], [*position, height], [*(position + 1.2), height]])
        pixels, depth = self.camera.project(ends)
        if depth.min() > 1.0:
            corners = (pixels * SUPERSAMPLE).ravel().tolist()
            self._picture.line(corners, fill=(150, 150, 148), width=SUPERSAMPLE)


def whole(colour: Colour) -> tuple[int, int, int]:
    """The nearest colour that an 8-bit image holds."""
    red, green, blue = (int(min(max(value, 0.0), 255.0) + 0.5) for value in colour)
    return red, green, blue


def outside(pixels: Array, size: tuple[int, int]) -> bool:
    """Whether no point of the hull of pixels ``[N, 2]`` can be in an image (width, height)."""
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    return bool((high < 0).any() or (low >= size).any())


@lru_cache(maxsize=2)
def noise_tile(octaves: tuple[int, ...]) -> NDArray[np.float32]:
    """A periodic tile of value noise, ``[512, 512]``, mean 0, standard deviation 1.

    ``octaves`` are numbers of lattice cells per side, each a divisor of 512.
    """
    rng = np.random.default_rng(octaves)
    total: NDArray[np.float32] = np.zeros((512, 512), np.float32)
    for cells in octaves:
        lattice = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
        scale = 512 // cells
        size = (cells + 4) * scale
        image = Image.fromarray(lattice).resize((size, size), Image.Resampling.BICUBIC)
        total += np.asarray(image)[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    total -= total.mean()
    return total / np.float32(total.std())


def ground_noise(
    camera: Camera, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two textures ``float32 [H, W]`` that lie on the ground: grain of 0.2 m, patches of 3-15 m."""
    x = np.arange(camera.width, dtype=np.float32)
    y = np.arange(camera.height, dtype=np.float32)
    place = camera.to_ground(x[None, :], y[:, None])
    place += rng.uniform(0, 500, 2).astype(np.float32)
    fine = lookup(noise_tile((64, 128, 256, 512)), place * np.float32(7))
    coarse = lookup(noise_tile((16, 32, 64)), place[::4, ::4] * np.float32(2.5))
    size = (camera.width, camera.height)
    smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
    return fine * np.float32(0.2), np.asarray(smooth) * np.float32(0.4)


def lookup(tile: NDArray[np.float32], places: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values of a periodic square tile at places ``[..., 2]``, in cells."""
    cell = places.astype(np.int32) & (len(tile) - 1)
    return tile.ravel()[cell[..., 1] * len(tile) + cell[..., 0]]
