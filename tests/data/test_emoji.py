"""Emoji and their names. Where the font is not installed, only what needs none is tested."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from ditwright.data import emoji as module
from ditwright.data.emoji import FONT, PACKAGE, VARIABLE, emoji, symbols
from ditwright.data.sources import open_dataset, open_source
from ditwright.errors import UserError

THERE = Path(os.environ.get(VARIABLE) or FONT).is_file()
with_font = pytest.mark.skipif(not THERE, reason=f"Debian's package {PACKAGE} is not installed")


def test_only_what_is_a_picture_of_its_own_is_taken():
    taken = symbols("\N{GRINNING FACE}\N{WHITE SMILING FACE}\N{DOUBLE EXCLAMATION MARK}\N{LEFT RIGHT ARROW}")
    assert len(taken) == 4
    parts = "\N{EMOJI MODIFIER FITZPATRICK TYPE-4}\N{REGIONAL INDICATOR SYMBOL LETTER D}\N{EMOJI COMPONENT RED HAIR}"
    assert symbols(f"A5\u00e9\N{ZERO WIDTH JOINER}\N{VARIATION SELECTOR-16}\U0010fffd{parts}") == []


def test_a_missing_font_says_what_to_install(tmp_path, monkeypatch):
    for font in (tmp_path / "none.ttf", tmp_path):
        with pytest.raises(
            UserError, match=rf"{font}' is missing; .* {PACKAGE}, which brings {FONT}, or set {VARIABLE}"
        ):
            emoji(32, font)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine.ttf"))
    with pytest.raises(UserError, match=r"mine.ttf' is missing"):
        open_dataset("emoji")


def test_fonts_without_emoji_are_refused(tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match=r"bad.ttf' is no font with bitmaps of 109 pixels"):
        emoji(32, tmp_path / "bad.ttf")
    (tmp_path / "letters.ttf").write_bytes(ImageFont.load_default(20).font_bytes)
    with pytest.raises(UserError, match=rf"letters.ttf' has no emoji in colour; .*{PACKAGE}"):
        emoji(32, tmp_path / "letters.ttf")


@pytest.mark.parametrize("size", [8, 200])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(UserError, match=f"16 to 144 pixels; got {size}"):
        emoji(size)


@with_font
def test_all_of_them_differ_and_have_names():
    data = emoji(32)
    assert len(data.images) == len(data.texts) > 1300
    assert data.images.shape[1:] == (32, 32, 3)
    assert len(set(data.texts)) == len({image.tobytes() for image in data.images}) == len(data.images)
    assert data.images.min(axis=(1, 2, 3)).max() < 245  # none is blank
    assert {"grinning face", "snowman", "banana", "copyright sign"} <= set(data.texts)
    assert not [text for text in data.texts if "regional indicator" in text or "fitzpatrick" in text]
    assert all(text == text.lower() for text in data.texts)


@with_font
def test_they_are_in_the_middle_on_white_and_on_one_scale():
    data = emoji(64)
    ink = (data.images < 250).any(3)
    for text, shape in zip(data.texts, ink, strict=True):
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        assert abs(rows[0] + rows[-1] - 63) <= 6, text
        assert abs(columns[0] + columns[-1] - 63) <= 6, text
    assert (data.images[:, 0] > 250).all()
    area = dict(zip(data.texts, ink.sum((1, 2)), strict=True))
    assert area["black small square"] < 0.6 * area["black medium square"]


@with_font
def test_they_are_what_they_are_called():
    data = emoji(32)
    mean = {text: image[8:24, 8:24].mean((0, 1)) for text, image in zip(data.texts, data.images, strict=True)}
    for text, channel in (("large red circle", 0), ("large green circle", 1), ("large blue circle", 2)):
        assert mean[text].argmax() == channel


@with_font
def test_they_have_a_name_among_the_sources_and_keep_their_captions():
    data, source = open_dataset("emoji", 64), open_source("emoji")
    assert data.groups[0].size == (64, 64)
    assert (len(source), source[7].label, source[7].caption) == (len(data.images), None, data.texts[7])
    assert source[7].read().shape == (32, 32, 3)


@with_font
def test_two_code_points_of_one_picture_are_one(monkeypatch):
    """As where a font has the old and the new code point of a symbol."""
    face = module.open_font(Path(os.environ.get(VARIABLE) or FONT))
    same, real = module.draw("\N{BANANA}", face), module.draw
    monkeypatch.setattr(module, "draw", lambda symbol, face: same if "A" < symbol < "\u2100" else real(symbol, face))
    monkeypatch.setattr(module, "symbols", lambda _: ["\u00a9", "\u00ae", "\N{BANANA}", "\N{SNOWMAN}"])
    found = module._drawn.__wrapped__(32, Path(os.environ.get(VARIABLE) or FONT))
    assert found.texts == ("copyright sign", "snowman")
