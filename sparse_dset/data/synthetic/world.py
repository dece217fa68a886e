"""The world of a scene: solids, camera, light and roads, in metres; x right, y ahead, z up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Colour = tuple[float, float, float]


class Face(NamedTuple):
    """A flat polygon ``[n, 3]`` in metres, counter-clockwise seen from outside, and its colour."""

    points: Array
    colour: Colour


@dataclass(frozen=True)
class Solid:
    """A thing that stands on the ground, in its own frame (x forward, z up, metres).

    ``identity`` is 0 for scenery and a vehicle's number otherwise; ``label`` is -1 for scenery.
    """

    faces: tuple[Face, ...]
    position: Array
    heading: float
    label: int = -1
    identity: int = 0

    def vertices(self) -> Array:
        """Returns the corners of all faces in the world, ``[N, 3]``."""
        local = np.concatenate([face.points for face in self.faces])
        flat = local[:, :2] @ rotation(self.heading).T + self.position
        return np.column_stack([flat, local[:, 2]])


@dataclass(frozen=True)
class Tree:
    """A crown: a ball of leaves of a radius, whose middle is at a height, in metres."""

    position: Array
    radius: float
    height: float
    colour: Colour


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; ``axes`` are the rows right, down, forward in the world."""

    position: Array
    axes: Array
    focal: float
    height: int
    width: int

    def project(self, points: Array) -> tuple[Array, Array]:
        """Maps world points ``[N, 3]`` to pixels ``[N, 2]`` and depths ``[N]`` in metres."""
        local = (points - self.position) @ self.axes.T
        depth = local[:, 2]
        safe = np.where(depth > 0.1, depth, 0.1)
        centre = np.array([self.width / 2, self.height / 2])
        return self.focal * local[:, :2] / safe[:, None] + centre, depth

    def to_ground(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        """Maps pixels to where their rays meet the ground, ``[..., 2]``.

        ``x`` and ``y`` broadcast against each other; the result has their type.
        """
        x = (x - self.width / 2) / self.focal
        y = (y - self.height / 2) / self.focal
        rays = [x * right + (y * down + ahead) for right, down, ahead in self.axes.T.tolist()]
        scale = -float(self.position[2]) / np.minimum(rays[2], -1e-3)
        places = [rays[i] * scale + float(self.position[i]) for i in range(2)]
        return np.stack(places, axis=-1)

    def sees(self, position: Array, margin: float = 0.0) -> bool:
        """Whether a ground point ``[2]`` is inside the image, or at most ``margin`` px outside."""
        pixels, depth = self.project(np.array([[*position, 0.0]]))
        x, y = pixels[0]
        inside = -margin <= x < self.width + margin and -margin <= y < self.height + margin
        return bool(depth[0] > 1.0 and inside)


@dataclass(frozen=True)
class Light:
    """Sun and sky: ``towards_sun`` is a unit vector ``[3]``; strengths add up to about 1."""

    towards_sun: Array
    sun: float
    sky: float

    def brightness(self, normals: Array) -> Array:
        """Diffuse brightness of surfaces with normals ``[N, 3]``."""
        return self.sky * (0.8 + 0.2 * normals[:, 2]) + self.sun * np.maximum(
            normals @ self.towards_sun, 0.0
        )

    def cast(self, points: Array) -> Array:
        """Moves points ``[N, 3]`` along the sunlight down to the ground."""
        slope = self.towards_sun[:2] / self.towards_sun[2]
        return np.column_stack([points[:, :2] - points[:, 2:] * slope, np.zeros(len(points))])


@dataclass(frozen=True)
class Road:
    """A strip along a centre line.

    Attributes:
        points: ``[N, 2]``, one every ``STEP`` metres.
        headings: ``[N]``, direction of the line in radians.
        lanes: lanes per direction.
        lane_width: metres.
        clear: ``[N]`` bool, False inside a junction, where nothing is painted.
    """

    points: Array
    headings: Array
    lanes: int
    lane_width: float
    clear: NDArray[np.bool_]

    STEP = 1.5

    @property
    def half_width(self) -> float:
        return self.lanes * self.lane_width + 0.4

    def offset(self, distance: float, span: slice = slice(None)) -> Array:
        """The centre line, or a part of it, moved to its left by a distance, ``[n, 2]``."""
        headings = self.headings[span]
        left = np.stack([-np.sin(headings), np.cos(headings)], axis=1)
        return self.points[span] + distance * left

    def band(self, low: float, high: float, span: slice = slice(None)) -> Array:
        """The polygon between two offsets."""
        return np.concatenate([self.offset(low, span), self.offset(high, span)[::-1]])

    def distance(self, position: Array) -> float:
        """Distance of a point from the centre line."""
        return float(np.sqrt(((self.points - position) ** 2).sum(1).min()))


@dataclass(frozen=True)
class Lot:
    """A parking lot: rows of bays; ``bays`` are centres ``[N, 2]`` of 2.6 x 5 m each."""

    centre: Array
    heading: float
    length: float
    width: float
    bays: Array


def rotation(angle: float) -> Array:
    """The 2 x 2 matrix that turns by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def rectangle(
    length: float, width: float, centre: Sequence[float] | Array = (0, 0), angle: float = 0
) -> Array:
    """The four corners of a rectangle, counter-clockwise from its back right, ``[4, 2]``."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (length / 2, width / 2)
    turned: Array = corners @ rotation(angle).T + np.asarray(centre)
    return turned


def convex_hull(points: Array) -> list[tuple[float, float]]:
    """Corners of the convex hull of points ``[N, 2]`` (Andrew's monotone chain)."""
    ordered = sorted(set(map(tuple, points.tolist())))

    def half(sequence: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
        chain: list[tuple[float, ...]] = []
        for x, y in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    return [(x, y) for x, y in half(ordered) + half(ordered[::-1])]


def signed_area(polygon: Sequence[Sequence[float]]) -> float:
    """Shoelace area; negative for counter-clockwise corners in an image, whose y points down."""
    total = 0.0
    x0, y0 = polygon[-1]
    for x1, y1 in polygon:
        total += x0 * y1 - x1 * y0
        x0, y0 = x1, y1
    return total / 2


def scaled(colour: Colour, factor: float) -> Colour:
    """A brighter or darker colour."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The stretches of True as (start, stop)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def scatter(rng: np.random.Generator, camera: Camera, count: int) -> Array:
    """Draws places on the visible ground, ``[count, 2]``."""
    pixels = rng.uniform(-0.1, 1.1, (count, 2)) * (camera.width, camera.height)
    return camera.to_ground(pixels[:, 0], pixels[:, 1])
