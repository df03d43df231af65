"""Pictures of scenes: anti-aliased shapes on plain light paper, apart from one another and inside the picture.

Lengths are in widths of the picture, y goes down; T tries, n things, s samples to a pixel's side.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .scene_words import COLOURS, RELATIONS, SIZES, Scene, Thing, caption

OUTLINES = {  # half width, height above the centre, height below it, and the farthest point, in units of `inside`
    "circle": (0.9, 0.9, 0.9, 0.9),
    "square": (0.8, 0.8, 0.8, 1.132),
    "triangle": (1.0, 1.155, 0.578, 1.155),
    "diamond": (1.1, 1.1, 1.1, 1.1),
    "cross": (1.0, 1.0, 1.0, 1.057),
    "ring": (0.95, 0.95, 0.95, 0.95),
}
SAMPLES = 5  # to a pixel's side
GAP, MARGIN = 0.05, 0.015  # between two things; to the edge
CLEAR = 0.04  # how much farther two things are along the axis of their relation than across it
TRIES, ROUNDS = 64, 400


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points are of the shape with its centre of mass at 0, in units of about half its width: bool."""
    across, along = np.abs(x), np.abs(y)
    match shape:
        case "circle":
            return x * x + y * y < 0.81
        case "square":
            return np.maximum(across, along) < 0.8
        case "triangle":
            return (y < 0.578) & (across < (y + 1.155) * 0.578)
        case "diamond":
            return across + along < 1.1
        case "cross":
            return (np.minimum(across, along) < 0.34) & (np.maximum(across, along) < 1)
        case "ring":
            square = x * x + y * y
            return (square < 0.9025) & (square > 0.25)
    raise AssertionError(shape)


def coverage(shape: str, centre: tuple[float, float], radius: float, *, rows: range, columns: range) -> np.ndarray:
    """How much of each pixel a shape covers, 0 ... 1: (rows, columns). Centre (x, y) and radius in pixels."""
    offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES
    x = ((np.array(columns)[:, None] + offsets).ravel() - centre[0]) / radius
    y = ((np.array(rows)[:, None] + offsets).ravel() - centre[1]) / radius
    found = inside(shape, x[None, :], y[:, None])  # (rows * s, columns * s)
    return found.reshape(len(rows), SAMPLES, len(columns), SAMPLES).mean((1, 3))


def render(scene: Scene, draws: np.random.Generator, *, size: int = 32) -> np.ndarray:
    """(size, size, 3) uint8. Places, colours, sizes and the paper's shade vary a little, by the generator alone.

    UserError for a scene that finds no room: three large things in a row may not.
    """
    radii = np.array([SIZES[thing.size] for thing in scene.things]) * draws.uniform(0.95, 1.05, len(scene.things))
    centres = places(scene, radii, draws)
    image = np.full((size, size, 3), draws.uniform(225, 250))
    for thing, radius, (x, y) in zip(scene.things, radii * size, centres * size, strict=True):
        reach = OUTLINES[thing.shape][3] * radius
        rows, columns = (range(max(0, int(c - reach)), min(size, int(c + reach) + 1)) for c in (y, x))
        share = coverage(thing.shape, (x, y), radius, rows=rows, columns=columns)[..., None]
        colour = np.array(COLOURS[thing.colour]) + draws.uniform(-10, 10, 3)
        part = image[rows.start : rows.stop, columns.start : columns.stop]
        part += share * (colour - part)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def places(scene: Scene, radii: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Centres (n, 2) as x, y: inside the picture, apart, and as the relations say. The first of many tries."""
    bounds = np.array([_bounds(thing, radius) for thing, radius in zip(scene.things, radii, strict=True)])
    low, high = bounds[:, 0], bounds[:, 1]  # (n, 2) each
    for _ in range(ROUNDS):
        tries = low + (high - low) * draws.random((TRIES, len(radii), 2))
        good = np.ones(TRIES, bool)
        for n, relation in enumerate(scene.relations):
            good &= related(tries[:, n], tries[:, n + 1], relation) >= CLEAR
        for a in range(len(radii)):
            for b in range(a + 1, len(radii)):
                good &= _apart(tries[:, b] - tries[:, a], (scene.things[a], scene.things[b]), radii[[a, b]])
        if good.any():
            return tries[good.argmax()]
    raise UserError(f"no room for {caption(scene)!r}; make a thing small, or put them in a corner, not in a row")


def related(a: np.ndarray, b: np.ndarray, relation: str) -> np.ndarray:
    """How far a (..., 2) lies to b as told, less how far it lies to the side: above 0 for one relation of the four."""
    along = np.array(RELATIONS[relation])
    away = a - b
    return away @ along - np.abs(away @ along[::-1])


def _bounds(thing: Thing, radius: float) -> tuple[tuple[float, float], tuple[float, float]]:
    side, above, below, _ = (MARGIN + radius * share for share in OUTLINES[thing.shape])
    return (side, above), (1 - side, 1 - below)


def _apart(away: np.ndarray, pair: tuple[Thing, Thing], radii: np.ndarray) -> np.ndarray:
    """Whether two things have a gap between their boxes or their circles; `away` (T, 2) from the first."""
    first, second = (np.array(OUTLINES[thing.shape]) * radius for thing, radius in zip(pair, radii, strict=True))
    x, y = away.T
    beside = np.abs(x) > first[0] + second[0] + GAP
    under = (y > first[2] + second[1] + GAP) | (-y > first[1] + second[2] + GAP)
    return beside | under | (np.hypot(x, y) > first[3] + second[3] + GAP)
