"""Captioned scenes made by a rule: "a large red circle to the left of a small blue square", without any download.

About 15 % of all combinations are held out: of size, colour and shape, and of two things (colour and shape) in a
relation. No caption for training says one of them; every sentence that is held out says at least one. Each word alone
is in many captions for training. (How the first of three things lies to the third is not said, nor counted.)

A mirrored picture makes "left" a lie: train on these with flips off.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache

import numpy as np

from ..errors import UserError, lookup
from ..rng import generator
from .base import Pictures
from .scene_pictures import render
from .scene_words import COLOURS, MOST, OPPOSITE, RELATIONS, SHAPES, SIZES, Scene, Thing, caption

HELD_OUT = 15  # percent of the combinations
PARTS = {"train": False, "held out": True}
WORDS = (tuple(SIZES), tuple(COLOURS), SHAPES)
PIXELS = range(32, 257)


@lru_cache(maxsize=2)
def scenes(
    part: str = "train",
    count: int = 10_000,
    *,
    objects: tuple[int, ...] = (1, 2, 3),
    size: int = 32,
    seed: int = 0,
) -> Pictures:
    """`count` captioned pictures (N, size, size, 3) of the "train" or the "held out" part, without classes.

    `objects`: how many things a scene may have, each as often. Scene n depends on the seed, n, the part and `objects`
    alone, not on `count` or `size`. Never mirror them.
    """
    if size not in PIXELS:
        raise UserError(f"scenes come in {PIXELS[0]} to {PIXELS[-1]} pixels; got {size}")
    if count < 1:
        raise UserError(f"a number of scenes is 1 or more; got {count}")
    told = [scene_at(n, part, objects=objects, seed=seed) for n in range(count)]
    images = [render(scene, generator(seed, n, f"{part} pictures"), size=size) for n, scene in enumerate(told)]
    return Pictures(np.stack(images), np.zeros(count, np.int64), (), texts=tuple(map(caption, told)))


def scene_at(index: int, part: str = "train", *, objects: tuple[int, ...] = (1, 2, 3), seed: int = 0) -> Scene:
    """Scene `index` of a part: the first of a sequence of its own that belongs to that part."""
    held = lookup("part of the scenes", part, PARTS)
    if not objects or not set(objects) <= set(range(1, MOST + 1)):
        raise UserError(f"a scene has 1 to {MOST} things; got objects={objects}")
    draws = generator(seed, index, f"{part} scenes")
    count = int(draws.choice(objects))
    while True:
        scene = _any_scene(count, draws)
        if any(map(held_out, combinations(scene))) == held:
            return scene


def _any_scene(count: int, draws: np.random.Generator) -> Scene:
    """No two things of it are the same, nor its two relations: three large things in a row leave hardly any room."""
    things: list[Thing] = []
    while len(things) < count:
        thing = Thing(*(words[draws.integers(len(words))] for words in WORDS))
        if thing not in things:
            things.append(thing)
    order = draws.permutation(len(RELATIONS))[: count - 1]
    return Scene(tuple(things), tuple(list(RELATIONS)[n] for n in order))


def combinations(scene: Scene) -> set[str]:
    """Those that its caption says. Left and right, above and below, are two ways to say one."""
    found = {str(thing) for thing in scene.things}
    for a, relation, b in zip(scene.things, scene.relations, scene.things[1:], strict=False):
        if relation in ("to the right of", "below"):
            a, relation, b = b, OPPOSITE[relation], a
        found.add(f"{a.colour} {a.shape} {relation} {b.colour} {b.shape}")
    return found


@cache
def held_out(combination: str) -> bool:
    """By a hash of its words."""
    return int.from_bytes(hashlib.sha256(combination.encode()).digest()[:4]) % 100 < HELD_OUT
