"""Crops of real photographs: free of overlap between what is trained on and what is held out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ditwright.data import photos as module
from ditwright.data.photos import NAMES, held_out, photos
from ditwright.data.sources import open_dataset, open_source
from ditwright.errors import UserError

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


def test_every_photograph_gives_crops_of_both_parts():
    train, held = photos(64), held_out(64)
    assert train.class_names == held.class_names == NAMES
    for data, least in ((train, 90), (held, 7)):
        assert data.images.shape[1:] == (64, 64, 3)
        assert data.images.dtype == np.uint8
        assert np.bincount(data.targets, minlength=8).min() >= least
        assert (data.images.std(axis=(1, 2)).max(1) >= module.FLAT).all()
    assert len(train.images) == 1826
    assert len(held.images) == 160


def test_no_crop_for_training_has_a_pixel_that_is_held_out(monkeypatch):
    """Photographs in which each quarter has a colour of its own, and a texture."""
    texture = np.random.default_rng(0).integers(0, 40, (400, 600, 3), dtype=np.uint8)
    tinted = texture + np.repeat(np.uint8([0, 0, 200, 100]), 150)[None, :, None]
    monkeypatch.setattr(module, "_photographs", lambda: iter([Image.fromarray(tinted)]))
    monkeypatch.setattr(module, "_cut", module._cut.__wrapped__)
    train, held = module.photos(32).images, module.held_out(32).images
    assert train.max() < 170
    assert held.min() > 180
    assert {image.mean() > 90 for image in train} == {True, False}  # quarters on both of its sides


def test_crops_without_anything_in_them_are_left_out(monkeypatch):
    plain = np.full((400, 600, 3), (200, 90, 10), np.uint8)
    plain[:100] = np.random.default_rng(0).integers(0, 256, (100, 600, 3))
    crops = list(module._crops(Image.fromarray(plain), 50, 50))
    assert 24 < len(crops) < 24 + 3 * 8  # two rows of twelve at full size, a few more of the reductions


def test_the_same_crops_come_again():
    first = photos(96).images
    module._cut.cache_clear()
    assert np.array_equal(first, photos(96).images)


@pytest.mark.parametrize("size", [4, 113])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(UserError, match=rf"8 to 112 pixels; got {size}"):
        photos(size)


def test_they_have_names_among_the_sources():
    assert np.array_equal(open_dataset("photos", image_size=96).images, photos(96).images)
    assert np.array_equal(open_dataset("photos-held-out").images, held_out(64).images)
    source = open_source("photos")
    record = source[7]
    assert (len(source), record.label) == (1826, 0)
    assert np.array_equal(record.read(), photos(64).images[7])
