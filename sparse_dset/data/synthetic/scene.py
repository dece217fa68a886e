"""Draws one scene from its seed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import find_objects

from sparse_dset.data.synthetic.drawing import SUPERSAMPLE, Ground, View
from sparse_dset.data.synthetic.layout import (
    MAX_OBJECTS,
    Places,
    parked_poses,
    place_people,
    place_scenery,
    place_trees,
    place_vehicles,
    sample_camera,
    sample_light,
    sample_lot,
    sample_roads,
    traffic_poses,
)
from sparse_dset.data.synthetic.paint import paint_ground
from sparse_dset.data.synthetic.world import (
    Light,
    Solid,
    Tree,
    scatter,
)

MIN_VISIBLE = 0.35  # of the outline; vehicles that are hidden more, or cut, have no box
MIN_SIDE = 4  # pixels


@dataclass(frozen=True)
class Scene:
    """One drawn image and its truth.

    Attributes:
        image: ``uint8 [H, W, 3]``, RGB.
        boxes: ``float32 [G, 4]``, x, y, width, height in pixels: the hull of the visible pixels.
        labels: ``int64 [G]``, indices into ``CLASSES``.
        ids: ``uint8 [H, W]``, the object seen at each pixel centre: 0 = none, ``i + 1`` = box i.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.uint8]


def develop(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Adds haze, a tint, a tone curve, blur, sensor noise and compression to ``[H, W, 3]``."""
    height = picture.shape[0]
    rows = np.linspace(1, 0.4, height, dtype=np.float32)[:, None, None]
    haze = (rng.uniform(0, 0.3) if rng.random() < 0.4 else rng.uniform(0, 0.06)) * rows
    gain = rng.uniform(0.75, 1.25) * (1 + rng.normal(0, 0.025, 3))
    out = picture * gain.astype(np.float32) * (1 - haze) + 205 * haze
    contrast = np.float32(rng.uniform(0.8, 1.15))
    out = (out - 110) * contrast + 110 + np.float32(rng.normal(0, 7))
    noise = rng.standard_normal(out.shape[:2], dtype=np.float32) * np.float32(rng.uniform(0.5, 6))
    out += noise[..., None]
    image = Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.0, 0.9)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(45, 96)))
    return np.asarray(Image.open(buffer).convert("RGB"))


def visible_objects(
    identities: NDArray[np.uint8], vehicles: Sequence[Solid], outlines: Mapping[int, float]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint8]]:
    """Keeps the vehicles of which enough is seen; returns boxes, labels and ids of a ``Scene``."""
    counts = np.bincount(identities.ravel(), minlength=256)
    number = np.zeros(256, np.uint8)
    boxes, labels = [], []
    found = dict(enumerate(find_objects(identities), start=1))
    for vehicle in vehicles:
        place = found.get(vehicle.identity)
        visible = counts[vehicle.identity] / max(outlines[vehicle.identity], 1.0)
        if place is None or visible < MIN_VISIBLE:
            continue
        rows, columns = place
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        if min(box[2:]) >= MIN_SIDE:
            boxes.append(box)
            labels.append(vehicle.label)
            number[vehicle.identity] = len(boxes)
    return (
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        number[identities],
    )


def render_scene(seed: int, height: int = 384, width: int = 640) -> Scene:
    """Draws a scene.

    Args:
        seed: a number >= 0; the same seed and size give the same scene.
        height: image height in pixels, at least 64.
        width: image width in pixels, at least 64.

    Returns:
        The image and its boxes; about one scene in twelve is empty.

    Raises:
        ValueError: if the image is smaller than 64 pixels or the seed is negative.
    """
    if min(height, width) < 64:
        raise ValueError(f"height and width must be at least 64, not {height} x {width}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or larger, not {seed}")
    rng = np.random.default_rng(seed)
    camera, light = sample_camera(rng, height, width), sample_light(rng)
    roads = sample_roads(rng)
    lot = sample_lot(rng, roads) if rng.random() < 0.5 else None
    lots = [] if lot is None else [lot]
    limit = 0 if rng.random() < 0.05 else int(1 + (MAX_OBJECTS - 1) * rng.beta(1.1, 1.7))

    places = Places()
    poses = traffic_poses(rng, roads, keep_right=bool(rng.random() < 0.8))
    poses += parked_poses(rng, camera, roads, lots)
    vehicles = place_vehicles(rng, poses, camera, places, limit)
    scenery = place_scenery(rng, camera, roads, lots, places)
    trees = place_trees(rng, camera, roads, lots, scenery)
    solids = vehicles + scenery + place_people(rng, camera, roads)

    ground = paint_ground(rng, camera, roads, lots)
    view, outlines = draw_things(ground, light, rng, solids, trees)
    picture = np.asarray(view.picture.reduce(SUPERSAMPLE), np.float32)
    first = SUPERSAMPLE // 2  # the sample at the centre of each pixel
    identities = np.asarray(view.identities)[first::SUPERSAMPLE, first::SUPERSAMPLE]
    boxes, labels, ids = visible_objects(identities, vehicles, outlines)
    return Scene(develop(picture, rng), boxes, labels, ids)


def draw_things(
    ground: Ground,
    light: Light,
    rng: np.random.Generator,
    solids: Sequence[Solid],
    trees: Sequence[Tree],
) -> tuple[View, dict[int, float]]:
    """Draws everything that stands on the ground, far things first.

    Returns:
        The view, and the area in pixels of the whole outline of each vehicle by its identity.
    """
    # A vehicle may stand in the shadow of scenery, not in its own: scenery casts first.
    for solid in solids:
        if solid.label < 0:
            ground.darken(solid, light)
    for tree in trees:
        ground.darken_below(tree, light)
    sunlit = {s.identity: 1 - ground.shade_at(s.position) for s in solids if s.label >= 0}
    for solid in solids:
        if solid.label >= 0:
            ground.darken(solid, light)
    view = View(ground.camera, ground.render(light, rng))
    outlines: dict[int, float] = {}
    things: list[Solid | Tree] = [*solids, *trees]
    if ground.camera.axes[2, 2] < -0.88:  # from above, height decides what covers what
        things.sort(key=lambda thing: (isinstance(thing, Tree), -thing.position[1]))
    else:
        things.sort(key=lambda thing: -thing.position[1])
    for thing in things:
        if isinstance(thing, Tree):
            view.draw_tree(thing, light, rng)
        elif thing.label < 0:
            view.draw(thing, light)
        else:
            own = Light(light.towards_sun, light.sun * sunlit[thing.identity], light.sky)
            outlines[thing.identity] = view.draw(thing, own)
    for place in scatter(rng, ground.camera, int(rng.integers(0, 4))):
        view.draw_pole(place, rng.uniform(5, 9))
    return view, outlines
