"""Scenes that say what they show: words, pictures, the reader of pictures, and what is held out."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from ditwright.data import scene_pictures
from ditwright.data.scene_pictures import SAMPLES, coverage, inside, related, render
from ditwright.data.scene_reader import check, read
from ditwright.data.scene_words import COLOURS, OPPOSITE, RELATIONS, SHAPES, SIZES, Scene, Thing, caption, parse
from ditwright.data.scenes import combinations, held_out, scene_at, scenes
from ditwright.data.sources import open_dataset, open_source
from ditwright.errors import UserError
from ditwright.rng import generator

THINGS = [Thing(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES]
LEFT = "a large red circle to the left of a small blue square"


def drawn(sentence, seed=0, size=32):
    return render(parse(sentence), generator(seed, 0, "test"), size=size)


def wrong(sentence, picture):
    return {name for name, right in check(sentence, picture).items() if not right}


def test_captions_read_as_they_should():
    a, b, c = Thing("large", "red", "circle"), Thing("small", "blue", "square"), Thing("small", "green", "triangle")
    assert caption(Scene((c,))) == "a small green triangle"
    assert caption(Scene((a, b), ("to the left of",))) == LEFT
    assert caption(Scene((a, b, c), ("to the left of", "above"))) == f"{LEFT}, which is above a small green triangle"
    assert parse(f"{LEFT.capitalize()} above a small green triangle.") == Scene((a, b, c), ("to the left of", "above"))


@pytest.mark.parametrize("part", ["train", "held out"])
def test_what_is_parsed_is_what_was_said(part):
    told = [scene_at(n, part) for n in range(300)]
    assert [parse(caption(scene)) for scene in told] == told
    assert {len(scene.things) for scene in told} == {1, 2, 3}


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("", "a thing is 'a SIZE COLOUR SHAPE'; got ''"),
        ("a large red", "got 'a large red' in"),
        ("the large red circle", "got 'the large red circle'"),
        ("a huge red circle", "unknown size 'huge'; known: large, small"),
        ("a large gren circle", r"unknown colour 'gren'.*did you mean 'green'"),
        ("a large red star", "unknown shape 'star'; known: circle, cross"),
        ("a large red circle near a small red ring", "unknown relation 'near'; known: above, below, to the left of"),
        ("a large red circle a small red ring", "unknown relation ''"),
        ("a large red circle above", "a thing is 'a SIZE COLOUR SHAPE'; got ''"),
        (" above ".join(["a large red circle"] * 4), "got 4 things, 3 relations"),
    ],
)
def test_captions_that_say_something_else_are_refused(sentence, words):
    with pytest.raises(UserError, match=words) as error:
        parse(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_its_centre_of_mass_at_0_and_ends_where_it_is_said_to(shape):
    x, y = np.meshgrid(*[np.linspace(-1.2, 1.2, 801)] * 2)
    found = inside(shape, x, y)
    side, above, below, reach = scene_pictures.OUTLINES[shape]
    assert np.abs([x[found].mean(), y[found].mean()]).max() < 0.005
    ends = [-x[found].min(), x[found].max(), -y[found].min(), y[found].max(), np.hypot(x, y)[found].max()]
    np.testing.assert_allclose(ends, [side, side, above, below, reach], atol=0.008)


def test_edges_are_as_dark_as_they_are_covered():
    share = coverage("square", (4.0, 4.0), 2.5, rows=range(8), columns=range(8))  # from 2 to 6
    assert np.array_equal(share, np.pad(np.ones((4, 4)), 2))
    share = coverage("square", (4.0 + 1 / SAMPLES, 4.0), 2.5, rows=range(8), columns=range(8))
    np.testing.assert_allclose(share[3], [0, 0, 1 - 1 / SAMPLES, 1, 1, 1, 1 / SAMPLES, 0])


@pytest.mark.parametrize("relation", RELATIONS)
def test_one_relation_of_the_four_is_true(relation):
    away = generator(0, 0, "places").standard_normal((100, 2))
    true = related(away, np.zeros(2), relation) > 0
    others = np.stack([related(away, np.zeros(2), other) > 0 for other in RELATIONS if other != relation])
    assert np.array_equal(true, ~others.any(0))
    assert 10 < true.sum() < 50
    assert np.array_equal(true, related(np.zeros(2), away, OPPOSITE[relation]) > 0)


@pytest.mark.parametrize("size", [32, 64])
def test_what_is_drawn_is_what_is_read(size):
    data = scenes("train", 200, size=size, seed=3)
    assert [n for n in range(200) if wrong(data.texts[n], data.images[n])] == []


def test_every_thing_is_read_through_blur_and_noise():
    """As generated pictures have them: a blur over neighbouring pixels, and noise of 10 levels."""
    blurred = 0
    for n, thing in enumerate(THINGS):
        draws = generator(5, n, "noisy")
        picture = np.pad(render(Scene((thing,)), draws).astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
        for axis in (0, 1):
            picture = sum(w * np.roll(picture, s, axis) for s, w in ((-1, 0.15), (0, 0.7), (1, 0.15)))
        picture = picture[1:-1, 1:-1] + 10 * draws.standard_normal((32, 32, 3))
        blurred += not wrong(f"a {thing}", np.clip(picture.round(), 0, 255).astype(np.uint8))
    assert blurred >= 0.98 * len(THINGS)


def test_what_is_wrong_is_told():
    picture = drawn(LEFT)
    assert check(LEFT, picture) == dict.fromkeys(
        ["count", "size 1", "colour 1", "shape 1", "size 2", "colour 2", "shape 2", "relation 1", "sentence"], True
    )
    assert wrong("a large red circle to the right of a small blue square", picture) == {"relation 1", "sentence"}
    assert wrong("a large red circle above a small blue square", picture) == {"relation 1", "sentence"}
    assert wrong("a small blue square to the right of a large red circle", picture) == set()
    assert wrong("a small red circle to the left of a small blue square", picture) == {"size 1", "sentence"}
    assert wrong("a large red circle to the left of a small cyan ring", picture) == {"colour 2", "shape 2", "sentence"}
    assert wrong("a large red circle", picture) == {"count", "sentence"}
    missing = {"count", "size 3", "colour 3", "shape 3", "relation 2", "sentence"}
    assert wrong(f"{LEFT}, which is below a large pink cross", picture) == missing


def test_places_are_read():
    a, b = read(drawn(LEFT, size=64))
    assert (a.shape, b.shape) == ("circle", "square")
    picture = np.full((64, 64, 3), 240, np.uint8)
    picture[10:20, 40:50] = COLOURS["green"]  # a side of 10 / 64 = 0.156: of radius 0.098
    (seen,) = read(picture)
    assert (seen.size, seen.colour, seen.shape) == ("small", "green", "square")
    np.testing.assert_allclose([seen.x, seen.y], [45 / 64, 15 / 64], atol=0.01)


def test_what_is_no_thing_of_a_scene_is_nothing_that_a_caption_says():
    assert read(np.full((32, 32, 3), 240, np.uint8)) == []
    assert wrong(LEFT, np.full((32, 32, 3), 240, np.uint8)) == set(check(LEFT, drawn(LEFT)))
    picture = np.full((32, 32, 3), 240, np.uint8)
    picture[4:28, 15:17] = 20
    (seen,) = read(picture)
    assert (seen.colour, seen.shape) == ("grey", "none")


@pytest.mark.parametrize(
    "picture", [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3)), np.zeros((8, 9, 3), np.uint8)]
)
def test_only_square_pictures_in_colour_are_read(picture):
    with pytest.raises(UserError, match="a square uint8 picture"):
        read(picture)


def test_a_picture_depends_on_its_number_alone():
    few, many = scenes("train", 5, seed=1), scenes("train", 12, seed=1)
    assert few.texts == many.texts[:5]
    assert np.array_equal(few.images, many.images[:5])
    assert few.texts != scenes("train", 5, seed=2).texts
    assert few.texts == scenes("train", 5, seed=1, size=48).texts
    assert not np.array_equal(drawn(LEFT, 0), drawn(LEFT, 1))


def test_no_combination_that_is_held_out_is_in_training_and_each_word_is():
    train, held = ([parse(text) for text in scenes(part, 1500).texts] for part in ("train", "held out"))
    said = set(chain.from_iterable(map(combinations, train)))
    assert not any(map(held_out, said))
    assert all(any(map(held_out, combinations(scene))) for scene in held)
    things = list(chain.from_iterable(scene.things for scene in train))
    assert {thing.size for thing in things} == set(SIZES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert set(chain.from_iterable(scene.relations for scene in train)) == set(RELATIONS)
    unseen = {str(thing) for thing in THINGS if held_out(str(thing))}
    assert {str(thing) for thing in things} == {str(thing) for thing in THINGS} - unseen
    assert 0.1 < len(unseen) / len(THINGS) < 0.2
    counts = np.bincount([len(scene.things) for scene in train])[1:]
    assert counts.min() > 450


def test_one_combination_has_one_name():
    a, b = Thing("large", "red", "circle"), Thing("small", "blue", "square")
    for relation in RELATIONS:
        assert combinations(Scene((a, b), (relation,))) == combinations(Scene((b, a), (OPPOSITE[relation],)))
    assert combinations(parse(LEFT)) == {str(a), str(b), "red circle to the left of blue square"}
    names = [f"{a.colour} {a.shape} above {b.colour} {b.shape}" for a in THINGS[:48] for b in THINGS[:48]]
    assert 0.13 < np.mean([held_out(name) for name in names]) < 0.17


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="no room for 'a large red diamond above a large"):
        drawn(" above ".join(["a large red diamond"] * 3))
    for words, arguments in {
        "unknown part of the scenes 'test'": {"part": "test"},
        "1 to 3 things; got objects=": {"objects": (0, 1)},
        "32 to 256 pixels; got 16": {"size": 16},
        "1 or more; got 0": {"count": 0},
    }.items():
        with pytest.raises(UserError, match=words):
            scenes(**arguments)


def test_they_have_names_among_the_sources_and_keep_their_captions():
    data, source = open_dataset("scenes-held-out"), open_source("scenes-held-out")
    assert (len(source), data.class_names, source[3].label) == (2000, (), None)
    assert data.captions(np.array([3, 5])) == [data.texts[3], data.texts[5]]
    assert source[3].caption == data.texts[3]
    assert not wrong(source[3].caption, source[3].read())
    assert open_dataset("scenes-held-out", 64).groups[0].size == (64, 64)
