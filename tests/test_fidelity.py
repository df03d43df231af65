"""Prompt fidelity: right of real renders, wrong of others, in the shares that are known."""

import numpy as np
import pytest

from ditwright.data.scenes import scenes
from ditwright.errors import UserError
from ditwright.evaluate.fidelity import fidelity

pytest.importorskip("scipy")


def test_real_pictures_show_what_their_captions_say():
    real = scenes("held out", 60, objects=(1, 2), seed=3)
    found = fidelity(real.images, real.texts)
    assert found["sentence"] == found["relation"] == found["shape"] == 1.0
    assert (found["low"], found["high"], found["pictures"]) == (1.0, 1.0, 60)


def test_half_of_the_pictures_swapped_are_half_of_the_sentences_wrong():
    real = scenes("train", 40, objects=(1,), seed=4)
    mixed = np.concatenate((real.images[:20], real.images[20:][::-1]))
    found = fidelity(mixed, real.texts)
    assert 0.5 <= found["sentence"] < 0.65
    assert found["low"] < 0.5 < found["high"]
    assert found["count"] == 1.0
    assert 0.5 < found["colour"] < 1.0
    assert "relation" not in found


def test_blank_pictures_show_nothing():
    real = scenes("train", 10, objects=(2,), seed=5)
    assert fidelity(np.full_like(real.images, 255), real.texts)["sentence"] == 0


def test_too_few_are_refused():
    real = scenes("train", 2, objects=(1,), seed=6)
    for pictures, captions in ((real.images[:1], real.texts[:1]), (real.images, real.texts[:1])):
        with pytest.raises(UserError, match="2 captions or more, one each"):
            fidelity(pictures, captions)
