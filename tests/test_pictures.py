"""Grids keep every pixel, and a PNG says how it was made."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ditwright.pictures import PAPER, enlarged, grid, save_png, sheet, to_pil


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_brings_back_pixels_and_settings(channels, tmp_path):
    image, settings = (
        noise(5, 7, channels),
        {"seed": 2**60, "scale": 1.5, "label": None, "name": 'Äpfel "两"\n', "n": [1]},
    )
    save_png(to_pil(image), tmp_path / "a.png", settings)
    with Image.open(tmp_path / "a.png") as opened:
        assert json.loads(opened.text["parameters"]) == settings
        assert np.array_equal(np.asarray(opened).reshape(image.shape), image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_png_without_settings_has_none(tmp_path):
    save_png(to_pil(noise(2, 2, 3)), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.text == {}


def test_a_picture_that_cannot_be_written_leaves_the_old(tmp_path, monkeypatch):
    save_png(to_pil(noise(2, 2, 3)), tmp_path / "a.png")
    old = (tmp_path / "a.png").read_bytes()

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="No space left"):
        save_png(to_pil(noise(2, 2, 3)), tmp_path / "a.png")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.png": old}


@pytest.mark.parametrize(("least", "factor"), [(1, 1), (6, 1), (7, 2), (12, 2), (13, 3)])
def test_enlarging_is_by_a_whole_factor_and_loses_nothing(least, factor):
    image = noise(4, 6, 3)
    big = np.asarray(enlarged(image, least))
    assert big.shape == (4 * factor, 6 * factor, 3)
    assert np.array_equal(big, image.repeat(factor, 0).repeat(factor, 1))


def test_enlarging_smoothly_makes_new_colours():
    image = np.array([[0, 255], [0, 255]], dtype=np.uint8)[..., None]
    assert len(np.unique(np.asarray(enlarged(image, 16)))) == 2
    assert len(np.unique(np.asarray(enlarged(image, 16, smooth=True)))) > 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("count", "columns", "shape"),
    [(6, 3, (2, 3)), (7, 3, (3, 3)), (1, None, (1, 1)), (16, None, (4, 4)), (2, 8, (1, 2))],
)
def test_a_grid_holds_every_image_in_reading_order(count, columns, shape, channels):
    images, gap, cell = noise(count, 4, 8, channels), 3, 16
    paper = np.asarray(grid(images, columns, cell=cell, gap=gap))
    assert paper.shape == (gap + shape[0] * (8 + gap), gap + shape[1] * (16 + gap), 3)
    for i, image in enumerate(images):
        y, x = gap + i // shape[1] * (8 + gap), gap + i % shape[1] * (16 + gap)
        assert np.array_equal(
            paper[y : y + 8, x : x + 16], np.broadcast_to(image.repeat(2, 0).repeat(2, 1), (8, 16, 3))
        )
    for i in range(count, shape[0] * shape[1]):
        y, x = gap + i // shape[1] * (8 + gap), gap + i % shape[1] * (16 + gap)
        assert (paper[y : y + 8, x : x + 16] == PAPER).all()


def test_names_and_title_make_room_and_move_no_pixel():
    rows = [list(noise(3, 8, 8, 1)), list(noise(3, 8, 8, 3)[..., :1])]
    bare = np.asarray(sheet(rows))
    named = np.asarray(sheet(rows, row_names=["one", "two"], column_names=["a", "b", "c"], title="All of them"))
    height, width = bare.shape[:2]
    assert named.shape[0] > height
    assert named.shape[1] > width
    assert np.array_equal(named[-height + 4 :, -width + 4 :], bare[4:, 4:])
    assert (named[: -height + 4] != PAPER).any()
    assert (named[:, : -width + 4] != PAPER).any()


def test_a_long_title_is_not_cut():
    assert sheet([[noise(8, 8, 1)]], title="A title much longer than one small picture").width > 2 * (64 + 8)
