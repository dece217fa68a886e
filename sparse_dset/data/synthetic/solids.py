"""The shapes of vehicles, and of the containers and buildings that resemble them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparse_dset.data.synthetic.world import (
    Array,
    Colour,
    Face,
    rectangle,
    scaled,
)

CLASSES = ("car", "van", "bus")

PAINTS: tuple[Colour, ...] = (
    (234, 235, 232), (232, 233, 230), (228, 228, 224), (212, 212, 208), (178, 182, 186),
    (166, 170, 174), (150, 154, 158), (128, 130, 134), (104, 108, 112), (84, 87, 92),
    (66, 69, 74), (48, 50, 54), (38, 40, 44), (30, 31, 34), (30, 31, 34), (36, 48, 78),
    (46, 70, 116), (74, 104, 150), (110, 34, 32), (160, 42, 38), (48, 84, 62), (84, 132, 90),
    (176, 164, 136), (112, 92, 74), (196, 160, 56),
)  # fmt: skip
GLASS: Colour = (38, 44, 52)
ROOFS: tuple[Colour, ...] = (
    (128, 128, 126), (96, 96, 98), (72, 72, 76), (176, 174, 168), (206, 204, 198),
    (142, 84, 64), (120, 62, 50), (112, 96, 78), (98, 112, 118),
)  # fmt: skip
WALLS: tuple[Colour, ...] = ((186, 176, 150), (160, 150, 140), (204, 200, 190), (150, 96, 76))


def prism(
    base: Array,
    top: Array,
    low: float,
    high: float,
    sides: Colour | Sequence[Colour],
    cover: Colour,
) -> list[Face]:
    """A convex solid between two polygons ``[n, 2]`` at two heights."""
    count = len(base)
    colours = [sides] * count if isinstance(sides[0], (int, float)) else sides
    lower = np.column_stack([base, np.full(count, low)])
    upper = np.column_stack([top, np.full(count, high)])
    faces = [
        Face(np.stack([lower[i], lower[j], upper[j], upper[i]]), colours[i])  # type: ignore[arg-type]
        for i, j in ((i, (i + 1) % count) for i in range(count))
    ]
    return [*faces, Face(upper, cover)]


def flat(polygon: Array, height: float, colour: Colour) -> Face:
    """A horizontal polygon ``[n, 2]`` at a height."""
    return Face(np.column_stack([polygon, np.full(len(polygon), height)]), colour)


def chamfered(length: float, width: float, cut: float) -> Array:
    """A rectangle with its corners cut off, counter-clockwise, ``[8, 2]``."""
    x, y = length / 2, width / 2
    return np.array(
        [[-x + cut, -y], [x - cut, -y], [x, -y + cut], [x, y - cut],
         [x - cut, y], [-x + cut, y], [-x, y - cut], [-x, -y + cut]]
    )  # fmt: skip


def span(back: float, front: float, width: float) -> Array:
    """A rectangle between two x, centred on y = 0."""
    return rectangle(front - back, width, ((front + back) / 2, 0))


def lamps(length: float, width: float, height: float) -> list[Face]:
    """Head and tail lamps on the upper edge of a body."""
    faces = []
    for side in (-1, 1):
        y = side * width * 0.36
        front = rectangle(0.3, 0.35, (length / 2 - 0.2, y))
        back = rectangle(0.2, 0.35, (-length / 2 + 0.15, y))
        faces += [flat(front, height, (238, 236, 222)), flat(back, height, (170, 30, 28))]
    return faces


def car_faces(rng: np.random.Generator) -> list[Face]:
    """A hatchback, saloon or estate: a low body and a cabin of glass under a painted roof."""
    length, width = rng.uniform(3.8, 4.9), rng.uniform(1.7, 1.9)
    height = rng.uniform(1.4, 1.75)
    paint = PAINTS[rng.integers(len(PAINTS))]
    boot = rng.choice([0.03, 0.06, 0.16]) * length
    bonnet = rng.uniform(0.24, 0.3) * length
    back, front = -length / 2 + boot, length / 2 - bonnet
    slant = rng.uniform(0.4, 0.7)
    cabin = span(back, front, width * 0.9)
    roof = span(back + slant * 0.7, front - slant, width * 0.74)
    roof_paint = GLASS if rng.random() < 0.08 else scaled(paint, 1.04)
    body = prism(
        chamfered(length, width, 0.25), chamfered(length * 0.97, width * 0.95, 0.3),
        0.25, height * 0.58, paint, paint,
    )  # fmt: skip
    glass = [scaled(GLASS, f) for f in (0.9, 1.25, 0.9, 1.1)]
    return [
        *body,
        *lamps(length * 0.97, width, height * 0.58),
        *prism(cabin, roof, height * 0.58, height, glass, roof_paint),
    ]


def van_faces(rng: np.random.Generator) -> list[Face]:
    """A panel van or minibus: a short bonnet, a windscreen and a long high roof."""
    length, width = rng.uniform(5.0, 6.4), rng.uniform(1.95, 2.1)
    height = rng.uniform(2.1, 2.7)
    paint = PAINTS[0] if rng.random() < 0.5 else PAINTS[rng.integers(len(PAINTS))]
    bonnet = rng.uniform(0.7, 1.0)
    back, front = -length / 2 + 0.05, length / 2 - bonnet
    box = prism(
        span(back, front, width * 0.97), span(back + 0.1, front - 0.75, width * 0.88),
        1.1, height, [paint, scaled(GLASS, 1.2), paint, paint], scaled(paint, 1.03),
    )  # fmt: skip
    ribs = [
        flat(rectangle(0.08, width * 0.8, (x, 0)), height, scaled(paint, 0.86))
        for x in np.arange(back + 0.8, front - 1.2, rng.uniform(0.7, 1.4))
    ]
    body = prism(
        chamfered(length, width, 0.2), chamfered(length * 0.98, width, 0.25), 0.3, 1.1, paint, paint
    )
    windows = side_windows(back + 0.5, front - 0.4, width * 0.94, (1.35, height * 0.82))
    return [*body, *lamps(length, width, 1.1), *box, *windows, *ribs]


def bus_faces(rng: np.random.Generator) -> list[Face]:
    """A city bus: one long box with window bands and units on its roof."""
    length, width, height = rng.uniform(9.5, 13.0), 2.55, rng.uniform(2.9, 3.2)
    paint = [(214, 212, 206), (52, 92, 160), (176, 42, 38), (210, 160, 40), (52, 128, 76)][
        rng.integers(5)
    ]
    roof = (212, 212, 208) if rng.random() < 0.6 else scaled(paint, 1.0)
    base, top = rectangle(length, width), rectangle(length - 0.15, width - 0.12)
    faces = prism(base, top, 0.3, height, [paint, scaled(GLASS, 1.2), paint, paint], roof)
    faces += side_windows(-length / 2 + 0.5, length / 2 - 0.3, width - 0.02, (1.3, 2.5))
    for x in np.linspace(-0.36, 0.36, rng.integers(2, 5)) * length:
        unit = rectangle(rng.uniform(0.7, 2.2), rng.uniform(0.8, 1.7), (x, 0))
        faces += prism(unit, unit, height, height + 0.2, (150, 150, 148), scaled(roof, 0.8))
    stripe = rectangle(0.35, width - 0.2, (length / 2 - 0.35, 0))
    return [*faces, flat(stripe, height, scaled(paint, 0.75))]


def side_windows(
    back: float, front: float, width: float, heights: tuple[float, float]
) -> list[Face]:
    """Dark bands along both sides of a body."""
    low, high = heights
    y = width / 2 + 0.02
    right = np.array([[back, -y, low], [front, -y, low], [front, -y, high], [back, -y, high]])
    left = np.array([[front, y, low], [back, y, low], [back, y, high], [front, y, high]])
    return [Face(right, GLASS), Face(left, GLASS)]


VEHICLES = (car_faces, van_faces, bus_faces)


def container_faces(rng: np.random.Generator) -> list[Face]:
    """A shipping container, a skip or a shed: the size and colours of vehicles, no glass."""
    length, width = rng.choice([3.2, 4.4, 6.1, 9.0]), rng.uniform(1.8, 2.5)
    height = rng.uniform(1.2, 2.7)
    paint = PAINTS[rng.integers(len(PAINTS))]
    base = rectangle(length, width)
    faces = prism(base, base, 0.0, height, scaled(paint, 0.9), paint)
    pitch = rng.uniform(0.45, 1.6)
    for x in np.arange(-length / 2 + pitch, length / 2 - 0.2, pitch):
        faces.append(flat(rectangle(0.12, width, (x, 0)), height, scaled(paint, 0.82)))
    if rng.random() < 0.3:  # an open skip: a dark inside
        faces.append(flat(rectangle(length - 0.4, width - 0.4), height, (70, 62, 54)))
    return faces


def building_faces(rng: np.random.Generator, length: float, width: float) -> list[Face]:
    """A block with a flat roof and units on it, or a house with a gable."""
    roof, wall = ROOFS[rng.integers(len(ROOFS))], WALLS[rng.integers(len(WALLS))]
    base = rectangle(length, width)
    if length < 15:
        return house_faces(base, rng.uniform(3, 5), roof, wall)
    height = rng.uniform(4, 13)
    faces = prism(base, base, 0.0, height, wall, scaled(roof, 0.8))
    for level in np.arange(1.2, height - 1.5, 3.0):
        faces += facade_windows(length, width, level)
    faces.append(flat(rectangle(length - 0.8, width - 0.8), height, roof))
    for x in np.arange(-length / 2 + 3, length / 2 - 2, rng.uniform(3, 8)):
        faces.append(flat(rectangle(0.15, width - 0.8, (x, 0)), height, scaled(roof, 0.88)))
    for _ in range(rng.integers(0, 7)):
        centre = rng.uniform(-0.38, 0.38, 2) * (length, width)
        unit = rectangle(rng.uniform(1, 4.5), rng.uniform(1, 2.2), centre)
        cover = GLASS if rng.random() < 0.3 else PAINTS[rng.integers(14)]
        faces += prism(unit, unit, height, height + rng.uniform(0.3, 1.2), (132, 132, 130), cover)
    return faces


def facade_windows(length: float, width: float, level: float) -> list[Face]:
    """One storey of windows on the two long walls."""
    faces = []
    for x in np.arange(-length / 2 + 1.2, length / 2 - 1.5, 2.6):
        faces += side_windows(x, x + 1.3, width, (level, level + 1.4))
    return faces


def house_faces(base: Array, eaves: float, roof: Colour, wall: Colour) -> list[Face]:
    """A house: walls and two slopes that meet in a ridge along x."""
    faces = prism(base, base, 0.0, eaves, wall, roof)
    lower = np.column_stack([base * 1.06, np.full(4, eaves)])
    ridge = eaves + 0.35 * (base[2, 1] - base[1, 1])
    ends = np.array([[base[0, 0], 0.0, ridge], [base[1, 0], 0.0, ridge]])
    slopes = [
        np.stack([lower[0], lower[1], ends[1], ends[0]]),
        np.stack([lower[2], lower[3], ends[0], ends[1]]),
        np.stack([lower[1], lower[2], ends[1]]),
        np.stack([lower[3], lower[0], ends[0]]),
    ]
    colours = (roof, roof, wall, wall)
    return faces + [Face(slope, colour) for slope, colour in zip(slopes, colours, strict=True)]
