"""What is painted on the ground: land, asphalt, repairs and markings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparse_dset.data.synthetic.drawing import Ground
from sparse_dset.data.synthetic.world import (
    Camera,
    Colour,
    Lot,
    Road,
    rectangle,
    rotation,
    runs,
    scaled,
    scatter,
)

GROUNDS: tuple[tuple[Colour, float], ...] = (
    ((86, 104, 58), 0.55), ((104, 112, 64), 0.5), ((122, 112, 82), 0.5), ((140, 128, 104), 0.4),
    ((142, 140, 134), 0.22), ((122, 118, 112), 0.25), ((160, 150, 138), 0.2), ((64, 88, 50), 0.6),
)  # fmt: skip
CROPS: tuple[Colour, ...] = ((96, 116, 52), (150, 138, 84), (112, 92, 66), (128, 130, 70))


def paint_ground(
    rng: np.random.Generator, camera: Camera, roads: Sequence[Road], lots: Sequence[Lot]
) -> Ground:
    """Paints the whole ground of a scene; the first road gives the land its direction."""
    colour, grain = GROUNDS[rng.integers(len(GROUNDS))]
    ground = Ground(camera, colour, grain)
    paint_land(ground, rng, float(roads[0].headings[len(roads[0].points) // 2]))
    for lot in lots:
        paint_lot(ground, rng, lot)
    paint_roads(ground, rng, roads)
    return ground


def paint_land(ground: Ground, rng: np.random.Generator, heading: float) -> None:
    """Paints lawns, fields with furrows and paved yards."""
    for centre in scatter(rng, ground.camera, int(rng.integers(2, 7))):
        colour, grain = GROUNDS[rng.integers(len(GROUNDS))]
        length, width = rng.uniform(10, 45), rng.uniform(8, 30)
        angle = heading + rng.normal(0, 0.05) if rng.random() < 0.7 else rng.uniform(0, np.pi)
        ground.fill(rectangle(length, width, centre, angle), colour, grain)
        if rng.random() < 0.3:
            crop = CROPS[rng.integers(len(CROPS))]
            pitch = rng.uniform(1.0, 2.4)
            across = np.array([-np.sin(angle), np.cos(angle)])
            for shift in np.arange(-width / 2 + pitch, width / 2, pitch):
                place = centre + shift * across
                ground.fill_rectangle(place, angle, length, pitch * 0.45, crop)
    for centre in scatter(rng, ground.camera, int(rng.integers(3, 12))):
        colour, grain = GROUNDS[rng.integers(len(GROUNDS))]
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        radii = rng.uniform(1.5, 6) * rng.uniform(0.7, 1.3, 16)
        blob = np.column_stack([np.cos(angles), np.sin(angles)]) * radii[:, None] + centre
        ground.fill(blob, scaled(colour, rng.uniform(0.85, 1.1)), grain)


def paint_roads(ground: Ground, rng: np.random.Generator, roads: Sequence[Road]) -> None:
    """Paints pavements, asphalt, repairs and markings."""
    level = rng.uniform(72, 128)
    asphalt = (level, level + rng.uniform(-2, 2), level + rng.uniform(-2, 6))
    pavement = scaled((150, 146, 140), rng.uniform(0.8, 1.2))
    walk = rng.choice([0.6, 2.2, 3.5])
    for road in roads:
        edge = road.half_width + walk
        ground.fill(road.band(-edge, edge), pavement, 0.2)
        ground.fill(road.band(-edge, -edge + 0.25), scaled(pavement, 0.8))
        ground.fill(road.band(edge - 0.25, edge), scaled(pavement, 0.8))
    for road in roads:
        ground.fill(road.band(-road.half_width, road.half_width), asphalt, 0.16)
    for road in roads:
        wear = scaled(asphalt, rng.uniform(0.88, 1.1))
        for lane in range(-road.lanes, road.lanes):
            for wheel in (0.28, 0.72):
                track = (lane + wheel) * road.lane_width
                ground.fill(road.band(track - 0.35, track + 0.35), wear)
        paint_repairs(ground, rng, road, asphalt)
        paint_markings(ground, rng, road)


def paint_repairs(ground: Ground, rng: np.random.Generator, road: Road, asphalt: Colour) -> None:
    """Paints patches of the size of vehicles, cracks and manholes."""
    for _ in range(rng.integers(2, 14)):
        index = int(rng.integers(60, 181))
        reach = road.half_width - 1
        place = road.offset(rng.uniform(-reach, reach))[index]
        angle = float(road.headings[index])
        shade = rng.choice([0.6, 0.75, 0.85, 1.2])
        if rng.random() < 0.5:
            size = (rng.uniform(2, 8), rng.uniform(1.2, 2.2))
        else:
            size = (rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.8))
        ground.fill_rectangle(place, angle, *size, scaled(asphalt, shade))


def paint_markings(ground: Ground, rng: np.random.Generator, road: Road) -> None:
    """Paints edge, centre and lane lines, arrows, and crossings before junctions."""
    paint = scaled((214, 214, 208), rng.uniform(0.8, 1.1))
    width, period = rng.uniform(0.09, 0.14), int(rng.integers(5, 9))
    solid_centre = rng.random() < 0.5
    edge = road.lanes * road.lane_width
    lines = [lane * road.lane_width for lane in range(-road.lanes + 1, road.lanes)]
    for start, stop in runs(road.clear):
        for line in (-edge, edge):
            ground.fill(road.band(line - width, line + width, slice(start, stop)), paint)
        for line in lines:
            if line == 0 and solid_centre:
                ground.fill(road.band(-width, width, slice(start, stop)), paint)
                continue
            for k in range(max(start, 40), min(stop - 2, 201), period):
                ground.fill(road.band(line - width, line + width, slice(k, k + 3)), paint)
        for k in rng.integers(start, stop, 3):
            lane = rng.integers(-road.lanes, road.lanes) + 0.5
            paint_arrow(ground, road, int(k), lane * road.lane_width, paint)
    ends = [i for run in runs(road.clear) for i in run if 0 < i < len(road.points) - 2]
    for end in ends:
        if rng.random() < 0.6:
            for y in np.arange(-edge + 0.5, edge, 1.1):
                ground.fill(road.band(y - 0.25, y + 0.25, slice(end, end + 3)), paint)
    for _ in range(rng.integers(0, 3)):  # boxes painted on the road, like a bay or a sign
        index, y = int(rng.integers(70, 171)), float(rng.uniform(-edge, edge - 2))
        outline = road.band(y, y + 2.1, slice(index, index + 4))
        ground.fill(outline, paint)
        inner = rectangle(4.0, 1.7, outline.mean(0), float(road.headings[index]))
        ground.fill(inner, (110, 108, 106))


def paint_arrow(ground: Ground, road: Road, index: int, offset: float, paint: Colour) -> None:
    """Paints a direction arrow in a lane, along the traffic."""
    ahead = 1.0 if offset < 0 else -1.0
    shape = np.array([[-2, -0.12], [0.6, -0.12], [0.6, -0.5], [2, 0], [0.6, 0.5], [0.6, 0.12],
                      [-2, 0.12]]) * (ahead, 1.0)  # fmt: skip
    angle = float(road.headings[index])
    ground.fill(shape @ rotation(angle).T + road.offset(offset)[index], paint)


def paint_lot(ground: Ground, rng: np.random.Generator, lot: Lot) -> None:
    """Paints a parking lot and the lines between its bays."""
    level = rng.uniform(84, 150)
    corners = rectangle(lot.length, lot.width + 1.5, lot.centre, lot.heading)
    ground.fill(corners, (level, level, level * 0.98), 0.18)
    paint = scaled((208, 206, 198), rng.uniform(0.75, 1.1))
    along = np.array([np.cos(lot.heading), np.sin(lot.heading)])
    for bay in lot.bays:
        for side in (-1.3, 1.3):
            ground.fill_rectangle(bay + side * along, lot.heading + np.pi / 2, 5, 0.12, paint)
