"""Prompt fidelity: right of real renders, wrong of others, in the shares that are known."""

from __future__ import annotations

import numpy as np
import pytest

from ditwright.data.scene_reader import check
from ditwright.data.scenes import scenes
from ditwright.errors import UserError
from ditwright.evaluate import Fidelity, fidelity, images_from
from ditwright.evaluate.fidelity import ATTRIBUTES, wilson

pytest.importorskip("scipy")


def test_real_pictures_show_what_their_captions_say():
    real = scenes("held out", 60, objects=(1, 2), seed=3)
    found = fidelity(real.texts, real.images)
    assert [row.objects for row in found.rows] == [1, 2, None]
    assert [row.n for row in found.rows] == [found[1].n, 60 - found[1].n, 60]
    for row in found.rows:
        assert row.sentence.value == row.count.value == row.shape.value == row.sentence.high == 1.0
    assert found[1].relation is None
    assert found[2].relation.value == 1.0
    assert 0.9 < found[None].sentence.low < 1  # so many right do not prove that all would be
    assert found[2].size.low == found[2].sentence.low  # twice as many things are no more pictures


def test_half_of_the_pictures_swapped_are_half_of_the_sentences_wrong():
    real = scenes("train", 40, objects=(1,), seed=4)
    mixed = np.concatenate((real.images[:20], real.images[20:][::-1]))
    found = fidelity(real.texts, mixed)[1]
    assert 0.5 <= found.sentence.value < 0.65
    assert found.sentence.low < 0.5 < found.sentence.high
    assert found.count.value == 1.0
    assert 0.5 < found.colour.value < 1.0


def test_shares_are_over_all_things_and_relations_by_their_number():
    real = scenes("train", 12, seed=7)
    mixed = np.roll(real.images, 1, 0)
    found, told = fidelity(real.texts, mixed), [check(*pair) for pair in zip(real.texts, mixed, strict=True)]
    for objects in (1, 2, 3):
        own = [flags for flags in told if f"size {objects}" in flags and f"size {objects + 1}" not in flags]
        assert found[objects].n == len(own)
        for attribute in ("sentence", *ATTRIBUTES):
            flags = [flag for flags in own for name, flag in flags.items() if name.startswith(attribute)]
            share = getattr(found[objects], attribute)
            assert (share is None) == (not flags)
            assert share is None or share.value == pytest.approx(sum(flags) / len(flags))


def test_blank_pictures_show_nothing_whatever_their_channels():
    real = scenes("train", 10, objects=(2,), seed=5)
    for channels in (3, 1):
        found = fidelity(real.texts, np.full_like(real.images[..., :channels], 255))[2]
        assert found.sentence.value == found.sentence.low == found.count.value == 0
        assert found.sentence.high > 0.1


def test_intervals_are_wilsons():
    """Of Brown, Cai & DasGupta 2001 the formula; 8 of 10 at 95 % are known to be 0.490 to 0.943."""
    share = wilson([True] * 8 + [False] * 2, 10)
    assert (share.value, share.low, share.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson([True] * 20, 10).low == wilson([True] * 10, 10).low == pytest.approx(0.7225, abs=1e-4)
    assert wilson([False], 1).low == 0.0


def test_the_table_reads_and_is_plain():
    real = scenes("held out", 9, seed=3)
    seen = []
    found = fidelity(real.texts, images_from(real.images), watch=seen.append)
    assert seen == [9]
    head, *lines, note = found.text().splitlines()
    assert head.split() == ["things", "pictures", "sentence", "count", "size", "colour", "shape", "relation"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "all"]
    assert lines[0].split()[-1] == "-"
    assert "100.0% [" in lines[3]
    assert note == "[low, high]: 95% intervals (Wilson), by the number of pictures"
    rows = found.plain()["rows"]
    assert [row["objects"] for row in rows] == [1, 2, 3, None]
    assert rows[0]["relation"] is None
    assert rows[3]["sentence"].keys() == {"value", "low", "high"}
    assert isinstance(found, Fidelity)


def test_what_cannot_be_judged_is_refused():
    real = scenes("train", 2, objects=(1,), seed=6)
    for captions, pictures, said in (
        (real.texts[:1], real.images, "a caption for each; got 1 captions and 2 pictures"),
        (["a dog", "a cat"], real.images, "a thing is 'a SIZE COLOUR SHAPE'; got 'a dog'"),
        (real.texts, real.images[:, :16], "a square uint8 picture"),
        (real.texts, real.images / 255, "pictures are uint8"),
        ([], real.images[:0], "pictures are uint8"),
    ):
        with pytest.raises(UserError, match=said):
            fidelity(captions, pictures)
    with pytest.raises(UserError, match="no caption has 3 things"):
        fidelity(real.texts, real.images)[3]
