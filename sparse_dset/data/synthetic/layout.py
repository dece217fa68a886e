"""Where things stand: camera, roads, parking lots, vehicles, buildings and trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparse_dset.data.synthetic.solids import (
    CLASSES,
    PAINTS,
    VEHICLES,
    building_faces,
    container_faces,
    prism,
)
from sparse_dset.data.synthetic.world import (
    Array,
    Camera,
    Light,
    Lot,
    Road,
    Solid,
    Tree,
    rectangle,
    rotation,
    scaled,
    scatter,
)

MAX_OBJECTS = 40


def sample_camera(rng: np.random.Generator, height: int, width: int) -> Camera:
    """Draws a steep or an oblique camera that looks at the origin.

    The world seen does not depend on the image size: a larger image has more pixels per metre.
    """
    oblique = rng.random() < 0.4
    pitch = np.deg2rad(rng.uniform(30, 52) if oblique else rng.uniform(62, 90))
    roll = np.deg2rad(rng.normal(0, 2))
    unit = np.sqrt(height * width / (384 * 640))  # 1 for the usual size
    focal = 640 * unit * rng.uniform(0.95, 1.6)
    pixels_per_metre = unit * np.exp(rng.uniform(np.log(5.2), np.log(10.5)))
    right = np.array([1.0, 0.0, 0.0])
    down = np.array([0.0, -np.sin(pitch), -np.cos(pitch)])
    forward = np.array([0.0, np.cos(pitch), -np.sin(pitch)])
    turned = rotation(roll) @ np.stack([right, down])
    axes = np.concatenate([turned, forward[None]])
    return Camera(-forward * focal / pixels_per_metre, axes, focal, height, width)


def sample_light(rng: np.random.Generator) -> Light:
    """Draws an overcast or a sunny sky."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(28, 68))
    flat_part = np.cos(elevation)
    towards = np.array(
        [np.cos(azimuth) * flat_part, np.sin(azimuth) * flat_part, np.sin(elevation)]
    )
    sun = rng.uniform(0.05, 0.2) if rng.random() < 0.3 else rng.uniform(0.4, 0.75)
    return Light(towards, sun, 1.05 - 0.75 * sun)


def sample_road(rng: np.random.Generator, through: Array, heading: float, lanes: int) -> Road:
    """Draws an arc of a road through a point."""
    count = 241
    curvature = 0.0 if rng.random() < 0.5 else rng.normal(0, 0.006)
    along = (np.arange(count) - count // 2) * Road.STEP
    headings = heading + np.clip(curvature * along, -1.2, 1.2)
    steps = np.column_stack([np.cos(headings), np.sin(headings)]) * Road.STEP
    points = np.cumsum(steps, axis=0)
    points += through - points[count // 2]
    return Road(points, headings, lanes, rng.uniform(3.0, 3.7), np.ones(count, bool))


def sample_roads(rng: np.random.Generator) -> list[Road]:
    """Draws one road, or two that cross or run side by side."""
    heading = rng.uniform(0, np.pi)
    main = sample_road(rng, rng.normal(0, 7, 2), heading, int(rng.integers(1, 4)))
    kind = rng.random()
    if kind < 0.45:
        return [main]
    if kind < 0.6:
        shift = rotation(heading) @ np.array([0.0, rng.uniform(18, 30) * rng.choice([-1, 1])])
        middle = len(main.points) // 2
        side = sample_road(rng, main.points[middle] + shift, heading, 1)
        return [main, side]
    crossing = main.points[len(main.points) // 2 + rng.integers(-14, 15)]
    turn = np.pi / 2 + rng.normal(0, 0.25)
    other = sample_road(rng, crossing, heading + turn, int(rng.integers(1, 3)))
    return [without_junction(main, other), without_junction(other, main)]


def without_junction(road: Road, other: Road) -> Road:
    """Clears the part of a road that another one crosses."""
    gaps = np.sqrt(((road.points[:, None] - other.points[None]) ** 2).sum(-1)).min(1)
    clear = gaps > other.half_width + 2.0
    return Road(road.points, road.headings, road.lanes, road.lane_width, clear)


def sample_lot(rng: np.random.Generator, roads: Sequence[Road]) -> Lot | None:
    """Draws a parking lot beside the first road, or None where there is no room."""
    road = roads[0]
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(6, 16))
    length, width = columns * 2.6 + 2, rows * 11.0 - 0.5
    index = len(road.points) // 2 + int(rng.integers(-9, 10))
    side = rng.choice([-1, 1])
    centre = road.offset(side * (road.half_width + 3 + width / 2))[index]
    if any(other.distance(centre) < other.half_width + width / 2 for other in roads[1:]):
        return None
    x = (np.arange(columns) - (columns - 1) / 2) * 2.6
    y = (np.arange(rows) - (rows - 1) / 2) * 11.0 + 2.6
    local = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    heading = float(road.headings[index])
    return Lot(centre, heading, length, width, local @ rotation(heading).T + centre)


class Places:
    """What stands on the ground so far, as discs, to keep things apart."""

    def __init__(self) -> None:
        self._discs: list[tuple[float, float, float]] = []

    def take(self, position: Array, heading: float, length: float, width: float) -> bool:
        """Takes a rectangle's place; False, and nothing changes, where something stands already."""
        count = max(1, round(length / width))
        along = (np.arange(count) - (count - 1) / 2) * (length / count)
        direction = np.array([np.cos(heading), np.sin(heading)])
        centres = position + along[:, None] * direction
        radius = width / 2
        if self._discs:
            discs = np.array(self._discs)
            gaps = np.sqrt(((centres[:, None] - discs[None, :, :2]) ** 2).sum(-1))
            if (gaps < radius + discs[:, 2] + 0.15).any():
                return False
        self._discs += [(float(x), float(y), radius) for x, y in centres]
        return True


def off_road(position: Array, roads: Sequence[Road], lots: Sequence[Lot], margin: float) -> bool:
    """Whether a place is further than ``margin`` from every road and lot."""
    if any(road.distance(position) < road.half_width + margin for road in roads):
        return False
    for lot in lots:
        x, y = np.abs((position - lot.centre) @ rotation(lot.heading))
        if x < lot.length / 2 + margin and y < lot.width / 2 + margin:
            return False
    return True


class Pose(NamedTuple):
    """Where a vehicle stands, its direction, and how likely each class is there."""

    position: Array
    heading: float
    odds: tuple[float, float, float]


DRIVING = (0.76, 0.16, 0.08)
PARKED = (0.86, 0.14, 0.0)


def traffic_poses(rng: np.random.Generator, roads: Sequence[Road], keep_right: bool) -> list[Pose]:
    """Draws vehicles in lanes, queues, kerbside parking and a few that turn."""
    poses = []
    for road in roads:
        for lane in range(-road.lanes, road.lanes):
            offset = (lane + 0.5) * road.lane_width
            reverse = (offset > 0) == keep_right
            mean_gap = rng.choice([9.0, 18.0, 40.0, 80.0])
            index = 50.0
            while (index := index + (6.5 + rng.exponential(mean_gap)) / Road.STEP) < 190:
                k = int(index)
                if not road.clear[k] and rng.random() < 0.6:
                    continue
                heading = road.headings[k] + (np.pi if reverse else 0) + rng.normal(0, 0.03)
                if not road.clear[k]:
                    heading += rng.normal(0, 0.5)
                place = road.offset(offset + rng.normal(0, 0.2))[k]
                poses.append(Pose(place, float(heading), DRIVING))
    return poses


def parked_poses(
    rng: np.random.Generator, camera: Camera, roads: Sequence[Road], lots: Sequence[Lot]
) -> list[Pose]:
    """Draws vehicles in bays, along kerbs and a few anywhere."""
    poses = []
    for lot in lots:
        full = rng.uniform(0.15, 0.9)
        for bay in lot.bays[rng.random(len(lot.bays)) < full]:
            turn = np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.04)
            poses.append(Pose(bay + rng.normal(0, 0.15, 2), lot.heading + turn, PARKED))
    for road in roads:
        if rng.random() < 0.35:
            side = rng.choice([-1, 1]) * (road.half_width + 1.0)
            for k in range(60, 181, 4):
                if rng.random() < 0.4 and road.clear[k]:
                    heading = road.headings[k] + np.pi * rng.integers(2)
                    poses.append(Pose(road.offset(side)[k], float(heading), PARKED))
    for place in scatter(rng, camera, int(rng.integers(0, 4))):
        poses.append(Pose(place, rng.uniform(0, 2 * np.pi), PARKED))
    return poses


def place_vehicles(
    rng: np.random.Generator, poses: Sequence[Pose], camera: Camera, places: Places, limit: int
) -> list[Solid]:
    """Puts at most ``limit`` vehicles where there is room and the camera may see them."""
    vehicles: list[Solid] = []
    for index in rng.permutation(len(poses)):
        pose = poses[index]
        if len(vehicles) == limit:
            break
        if not camera.sees(pose.position, margin=15):
            continue
        label = int(rng.choice(len(CLASSES), p=pose.odds))
        faces = VEHICLES[label](rng)
        low, high = (np.concatenate([f.points for f in faces]).min(0),
                     np.concatenate([f.points for f in faces]).max(0))  # fmt: skip
        length, width = (high - low)[:2]
        if places.take(pose.position, pose.heading, length, width):
            identity = len(vehicles) + 1
            vehicles.append(Solid(tuple(faces), pose.position, pose.heading, label, identity))
    return vehicles


def place_scenery(
    rng: np.random.Generator,
    camera: Camera,
    roads: Sequence[Road],
    lots: Sequence[Lot],
    places: Places,
) -> list[Solid]:
    """Draws buildings, and containers and sheds beside roads and in yards."""
    solids = []
    heading = float(roads[0].headings[len(roads[0].points) // 2])
    for place in scatter(rng, camera, int(rng.integers(0, 32))):
        length, width = rng.uniform(8, 32), rng.uniform(7, 14)
        angle = heading + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.04)
        if off_road(place, roads, lots, 4 + max(length, width) / 2) and places.take(
            place, angle, length, width
        ):
            solids.append(Solid(tuple(building_faces(rng, length, width)), place, angle))
    for place in scatter(rng, camera, int(rng.integers(1, 16))):
        angle = heading if rng.random() < 0.6 else rng.uniform(0, np.pi)
        if off_road(place, roads, (), 2.0) and places.take(place, angle, 6.0, 2.6):
            solids.append(Solid(tuple(container_faces(rng)), place, angle))
    return solids


def place_people(rng: np.random.Generator, camera: Camera, roads: Sequence[Road]) -> list[Solid]:
    """Draws people, bins and bollards on pavements."""
    solids = []
    for road in roads:
        for k in rng.integers(60, 181, rng.integers(0, 14)):
            side = rng.choice([-1, 1]) * (road.half_width + rng.uniform(0.4, 3))
            place = road.offset(side)[k]
            base = rectangle(rng.uniform(0.35, 0.7), rng.uniform(0.3, 0.6))
            paint = PAINTS[rng.integers(len(PAINTS))]
            faces = prism(base, base * 0.7, 0.0, rng.uniform(0.9, 1.8), paint, scaled(paint, 0.8))
            if camera.sees(place):
                solids.append(Solid(tuple(faces), place, rng.uniform(0, np.pi)))
    return solids


def place_trees(
    rng: np.random.Generator,
    camera: Camera,
    roads: Sequence[Road],
    lots: Sequence[Lot],
    solids: Sequence[Solid],
) -> list[Tree]:
    """Draws single trees and avenues, whose crowns reach over roads, and none in a building."""
    spots = list(scatter(rng, camera, int(rng.integers(0, 30))))
    for road in roads:
        if rng.random() < 0.4:
            side = rng.choice([-1, 1]) * (road.half_width + rng.uniform(1.2, 4))
            spots += [road.offset(side)[k] for k in range(50, 191, int(rng.integers(5, 14)))]
    blocks = [(s.position, np.abs(s.vertices()[:, :2] - s.position).max() - 1.0) for s in solids]
    base = np.array([62, 84, 44]) * rng.uniform(0.85, 1.3) + rng.normal(0, 6, 3)
    trees = []
    for spot in spots:
        radius = rng.uniform(1.0, 3.6)
        free = all(np.hypot(*(spot - place)) > reach for place, reach in blocks)
        if free and camera.sees(spot, 60) and off_road(spot, roads, lots, 0.8):
            red, green, blue = (base * rng.uniform(0.85, 1.15)).tolist()
            trees.append(Tree(spot, radius, radius * rng.uniform(1.2, 1.9), (red, green, blue)))
    return trees
