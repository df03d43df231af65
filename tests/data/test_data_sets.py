"""Data sets by name, and the codec that turns them into what a network sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditwright.codec.base import Pixels, codec_from
from ditwright.codec.config import CodecConfig
from ditwright.data.sources import SOURCES
from ditwright.errors import UserError


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_set_is_images_labels_and_names_that_fit(name):
    data = SOURCES[name]()
    assert data.images.dtype == np.uint8
    assert data.images.ndim == 4
    assert data.images.shape[-1] in (1, 3)
    assert data.labels.dtype == np.int64
    assert len(data.labels) == len(data.images)
    assert sorted(set(data.labels.tolist())) == list(range(len(data.class_names)))


def test_digits_use_the_whole_range_of_grey():
    data = SOURCES["digits"]()
    assert data.images.shape == (1797, 8, 8, 1)
    assert len(np.unique(data.images)) == 17
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert data.class_names == tuple("0123456789")


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_to_the_last_bit(channels):
    images = np.arange(256, dtype=np.uint8).repeat(2 * channels).reshape(8, 8, 8, channels)
    codec = codec_from(CodecConfig(channels=channels))
    latents = codec.encode(images)
    assert latents.shape == (8, channels, 8, 8)
    assert latents.dtype == torch.float32
    assert (latents.min(), latents.max()) == (-1, 1)
    assert np.array_equal(codec.decode(latents), images)
    assert np.array_equal(codec.decode(latents.double() + 0.4 / 127.5), images)  # less than half a grey level


def test_what_is_out_of_range_is_clipped():
    assert Pixels(1).decode(torch.tensor([-9.0, -1.001, 1.001, 9.0]).reshape(1, 1, 2, 2)).ravel().tolist() == [
        0,
        0,
        255,
        255,
    ]


@pytest.mark.parametrize("images", [np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 1), np.float32)])
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(UserError, match="pixels with 1 channels encode uint8 images"):
        Pixels(1).encode(images)
