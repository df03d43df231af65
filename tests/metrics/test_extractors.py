"""Extractors by name."""

import re

import numpy as np
import pytest

from ditwright.errors import UserError
from ditwright.metrics import extractors
from ditwright.metrics.extractors import EXTRACTORS, extractor_from
from ditwright.metrics.judge import learn_judge


def test_a_judge_is_read_from_its_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    judge = learn_judge(images, np.arange(20) % 2, dataset="noise", steps=1)
    judge.save(tmp_path / "judge.safetensors")
    found = extractor_from(f"judge:{tmp_path / 'judge.safetensors'}", "cpu")
    assert found.name == judge.name
    np.testing.assert_array_equal(found(images).pool, judge(images).pool)


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_every_kind_hears_its_place_and_device(kind, monkeypatch):
    monkeypatch.setitem(extractors.EXTRACTORS, kind, ("FILE", lambda *heard: heard))
    assert extractor_from(f"{kind}:C:/some/place", "cuda:1") == ("C:/some/place", "cuda:1")


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_every_kind_says_what_is_missing(kind):
    if kind in ("dinov2", "clip"):
        pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"there is no .*'?nowhere\.pth'?"):
        extractor_from(f"{kind}:nowhere.pth")


@pytest.mark.parametrize("name", ["inception", "incepton:x.pth", "judge:", "", "vgg:x"])
def test_unknown_kinds_are_listed(name):
    known = "inception:FILE, inception-pytorch-fid:FILE, dinov2:FOLDER_OR_NAME, clip:FOLDER_OR_NAME, judge:FILE"
    with pytest.raises(UserError, match=re.escape(f"unknown extractor {name!r}; known: {known}")):
        extractor_from(name)
