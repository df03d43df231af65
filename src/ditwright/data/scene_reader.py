"""What is in a picture of a scene, and whether its caption says so: made by a rule, so that nothing has to be learnt.

Things are the blobs that stand out from the paper; a blob's shape and size are those of the template that it follows
most closely, its colour is the nearest in hue. H height, W width, K templates, w width of a template.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np

from ..errors import UserError
from ..extras import need
from .scene_pictures import coverage, related
from .scene_words import COLOURS, SHAPES, SIZES, parse

FAINT = 60  # levels by which a thing differs from the paper, in some channel
EDGE = 0.45  # of the strongest difference nearby: where a thing ends
NEARBY = 0.22  # widths of the picture
AROUND = 0.06  # widths by which a thing's blurred edge goes beyond that
LEAST = 0.008  # of the picture's area: anything less is dirt
GREY = 40  # levels of chroma; less has no hue
UNLIKE = 0.12  # share of a blob that the best template leaves unexplained; more is of no shape
RADII = np.geomspace(0.08, 0.21, 13)  # in widths of the picture
BLURS = (0.015, 0.025)  # standard deviations, in widths of the picture: with a wider one, rings pass for circles
STEPS = 4  # places of a template within a pixel, along each axis
LOOKED_AT = 6  # the largest blobs, where there are more


@dataclass(frozen=True)
class Seen:
    """A thing found in a picture. Its colour may be "grey" and its shape "none": words that no caption has."""

    size: str
    colour: str
    shape: str
    x: float  # of its centre, in widths of the picture, from the left
    y: float  # from the top


def read(picture: np.ndarray) -> list[Seen]:
    """The things in a picture (W, W, 3) uint8 from left to right."""
    return sorted((seen for seen, _ in _found(picture)), key=lambda seen: seen.x)


def check(sentence: str, picture: np.ndarray) -> dict[str, bool]:
    """What of a caption is right: "count", "size 1", "colour 1", "shape 1", "relation 1" ..., and the whole "sentence".

    Which blob is which thing is not known: it is taken as the caption would have the most right. UserError for a
    caption that `parse` refuses. Relations are of the four directions the one that is nearest.
    """
    scene = parse(sentence)
    found = [seen for seen, _ in sorted(_found(picture), key=lambda pair: -pair[1])]
    count = len(scene.things)
    best: dict[str, bool] = {}
    for chosen in permutations([*found[:LOOKED_AT], *[None] * max(0, count - len(found))], count):
        right = {}
        for n, (thing, seen) in enumerate(zip(scene.things, chosen, strict=True), 1):
            for kind in ("size", "colour", "shape"):
                right[f"{kind} {n}"] = seen is not None and getattr(seen, kind) == getattr(thing, kind)
        for n, relation in enumerate(scene.relations, 1):
            a, b = chosen[n - 1], chosen[n]
            right[f"relation {n}"] = bool(a and b and related(_centre(a), _centre(b), relation) > 0)
        if not best or sum(right.values()) > sum(best.values()):
            best = right
    right = {"count": len(found) == count, **best}
    return {**right, "sentence": all(right.values())}


def _centre(seen: Seen) -> np.ndarray:
    return np.array([seen.x, seen.y])


def _found(picture: np.ndarray) -> Iterator[tuple[Seen, int]]:
    """Each thing and its area in pixels."""
    if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise UserError(f"a square uint8 picture (W, W, 3) is wanted; got {picture.dtype} {picture.shape}")
    ndimage = need("scipy.ndimage", extra="eval")
    width = len(picture)
    edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    away = picture - np.median(edges, axis=0)  # (W, W, 3) from the paper
    strength = np.abs(away).max(-1)
    nearby = ndimage.maximum_filter(strength, size=2 * int(NEARBY * width / 2) + 1)
    blobs, count = ndimage.label((strength > FAINT) & (strength > EDGE * nearby))
    areas = np.bincount(blobs.ravel(), minlength=count + 1)
    for number in range(1, count + 1):
        if areas[number] < LEAST * width * width:
            continue
        own = blobs == number
        others = ndimage.binary_dilation((blobs > 0) & ~own)
        around = ndimage.binary_dilation(own, iterations=max(1, round(AROUND * width))) & ~others
        colour = away[own].mean(0)
        alpha = np.where(around, away @ colour, 0) / (colour @ colour)
        shape, radius, x, y = _fit(alpha)
        size = "large" if radius > np.sqrt(SIZES["small"] * SIZES["large"]) else "small"
        yield Seen(size, _colour(colour), shape, x / width, y / width), int(areas[number])


def _hue(colour: np.ndarray) -> complex:
    """Chroma as a length, hue as an angle; what all channels share falls out."""
    return complex(np.asarray(colour, float) @ np.exp(2j * np.pi * np.arange(3) / 3))


def _colour(away: np.ndarray) -> str:
    """The nearest in hue to a difference from grey paper."""
    hue = _hue(away)
    return min(COLOURS, key=lambda name: abs(np.angle(hue / _hue(COLOURS[name])))) if abs(hue) > GREY else "grey"


def _fit(alpha: np.ndarray) -> tuple[str, float, float, float]:
    """Shape, radius in widths, and centre (x, y) in pixels of the template nearest to (W, W), whatever its strength."""
    width = len(alpha)
    names, radii, offsets, bank = _templates(width)
    half = (round(bank.shape[1] ** 0.5) - 1) // 2
    weight = np.maximum(alpha, 0)
    y, x = (int((weight * place).sum() / weight.sum() + 0.5) for place in np.indices(alpha.shape))
    window = np.pad(alpha, half)[y : y + 2 * half + 1, x : x + 2 * half + 1].ravel()
    likeness = bank @ window
    best = int(likeness.argmax())
    unexplained = 1 - likeness[best] ** 2 / (alpha**2).sum()
    dy, dx = offsets[best]
    return names[best] if unexplained < UNLIKE else "none", float(radii[best]), x + dx, y + dy


@lru_cache(maxsize=4)
def _templates(width: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Shapes (K,), radii (K,), centres in the middle pixel (K, 2), and the templates of length 1 (K, w * w)."""
    ndimage = need("scipy.ndimage", extra="eval")
    half = int(1.2 * RADII[-1] * width) + 1
    rows = range(-half, half + 1)
    names, radii, offsets, bank = [], [], [], []
    for shape in SHAPES:
        for radius in RADII:
            for dy, dx in (np.indices((STEPS, STEPS)).reshape(2, -1).T + 0.5) / STEPS:
                sharp = coverage(shape, (dx, dy), radius * width, rows=rows, columns=rows)
                for blur in BLURS:
                    template = ndimage.gaussian_filter(sharp, blur * width)
                    names.append(shape)
                    radii.append(radius)
                    offsets.append((dy, dx))
                    bank.append(template.ravel() / np.linalg.norm(template))
    return names, np.array(radii), np.array(offsets), np.stack(bank)
