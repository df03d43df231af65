"""Scenes of one to three things in words: what a caption says, and what a caption claims."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError, lookup

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = {  # sRGB, of hues at least 22 degrees apart
    "red": (214, 40, 40),
    "orange": (240, 130, 20),
    "yellow": (235, 205, 20),
    "green": (40, 150, 60),
    "cyan": (20, 185, 200),
    "blue": (40, 80, 210),
    "purple": (130, 50, 170),
    "pink": (235, 110, 180),
}
SIZES = {"small": 0.105, "large": 0.16}  # about half a thing's width, in widths of the picture
RELATIONS = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # x, y (down)
OPPOSITE = {"to the left of": "to the right of", "above": "below"} | {
    "to the right of": "to the left of",
    "below": "above",
}
MOST = 3  # things in a scene
FORM = "'a SIZE COLOUR SHAPE', then as often as twice ', which is' (left out the first time) RELATION and another thing"


@dataclass(frozen=True)
class Thing:
    """A shape of one colour and size. UserError for a word that is in no table."""

    size: str
    colour: str
    shape: str

    def __post_init__(self):
        lookup("size", self.size, SIZES)
        lookup("colour", self.colour, COLOURS)
        lookup("shape", self.shape, dict.fromkeys(SHAPES))

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One to three things, and how each of them, except the last, lies to the next."""

    things: tuple[Thing, ...]
    relations: tuple[str, ...] = ()

    def __post_init__(self):
        if not 1 <= len(self.things) <= MOST or len(self.relations) != len(self.things) - 1:
            raise UserError(
                f"a scene is 1 to {MOST} things and a relation between each and the next; "
                f"got {len(self.things)} things, {len(self.relations)} relations"
            )
        for relation in self.relations:
            lookup("relation", relation, RELATIONS)


def caption(scene: Scene) -> str:
    """`a large red circle to the left of a small blue square, which is above a small green ring`."""
    first, *others = scene.things
    said = [f" {relation} a {thing}" for relation, thing in zip(scene.relations, others, strict=True)]
    return f"a {first}" + ", which is".join(said)


def parse(sentence: str) -> Scene:
    """What a caption claims: `parse(caption(scene)) == scene`. UserError for words that it does not know."""
    words = sentence.lower().rstrip(". ").replace(",", " ").split()
    things, relations = [], []
    while True:
        article, *named = [*words[:4], *[""] * 4][:4]
        if article not in ("a", "an") or not all(named):
            raise UserError(f"a thing is 'a SIZE COLOUR SHAPE'; got {' '.join(words[:4])!r} in {sentence!r}")
        things.append(Thing(*named))
        words = words[4:]
        if not words:
            return Scene(tuple(things), tuple(relations))
        if words[:2] == ["which", "is"]:
            words = words[2:]
        relation = next((name for name in RELATIONS if words[: len(name.split())] == name.split()), None)
        if relation is None:
            lookup("relation", " ".join(words[: words.index("a")] if "a" in words else words), RELATIONS)
        relations.append(relation)
        words = words[len(relation.split()) :]
