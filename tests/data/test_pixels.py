"""The codec without an autoencoder, which turns what data sets give into what a network sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditwright.codec.base import codec_from
from ditwright.codec.config import CodecConfig
from ditwright.errors import UserError


def pixels(channels):
    return codec_from(CodecConfig("pixels", channels=channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_to_the_last_bit(channels):
    images = np.arange(256, dtype=np.uint8).repeat(2 * channels).reshape(8, 8, 8, channels)
    codec = pixels(channels)
    latents = codec.encode(images)
    assert latents.shape == (8, channels, 8, 8)
    assert latents.dtype == torch.float32
    assert (latents.min(), latents.max()) == (-1, 1)
    assert np.array_equal(codec.decode(latents), images)
    assert np.array_equal(codec.decode(latents.double() + 0.4 / 127.5), images)  # less than half a grey level


def test_what_is_out_of_range_is_clipped():
    latents = torch.tensor([-9.0, -1.001, 1.001, 9.0]).reshape(1, 1, 2, 2)
    assert pixels(1).decode(latents).ravel().tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("images", [np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 1), np.float32)])
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(UserError, match="pixels with 1 channels encode uint8 images"):
        pixels(1).encode(images)
