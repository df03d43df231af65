"""Emoji with their Unicode names as captions, drawn from Debian's Noto Color Emoji: about 1,350 pictures, no download.

Single code points only: those that Python's Unicode tables name and that the font really has, without the letters of
flags and the parts of other emoji. A newer Python names some more. The font is under the SIL Open Font License 1.1.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from .base import Pictures

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
PACKAGE = "fonts-noto-color-emoji"
VARIABLE = "DITWRIGHT_EMOJI_FONT"
HEIGHT = 109  # the only size of the font's bitmaps, which are 136 x 128 pixels
SQUARE = 144  # an emoji and some paper around it: all on one scale, or small squares would look like large ones
CATEGORIES = ("So", "Sm", "Po", "Pd")  # symbols and signs; what modifies its neighbour is of others
NO_PICTURES = ("regional indicator", "emoji component", "emoji modifier")  # of their own
PIXELS = range(16, SQUARE + 1)


def emoji(size: int = 32, font: Path | None = None) -> Pictures:
    """Pictures (N, size, size, 3) on white in order of their code points, without classes; captions "grinning face".

    `font` is a path, or else what DITWRIGHT_EMOJI_FONT says, or else Debian's. UserError where there is none, or one
    without colour bitmaps.
    """
    if size not in PIXELS:
        raise UserError(f"emoji come in {PIXELS[0]} to {PIXELS[-1]} pixels; got {size}")
    return _drawn(size, font or Path(os.environ.get(VARIABLE) or FONT))


@lru_cache(maxsize=2)
def _drawn(size: int, font: Path) -> Pictures:
    face = open_font(font)
    tofu = draw("\U0010fffd", face)  # what it shows for what it lacks
    found: dict[bytes, tuple[str, np.ndarray]] = {}
    for symbol in symbols(map(chr, range(0x80, sys.maxunicode + 1))):
        if (whole := draw(symbol, face)) not in (None, tofu):
            picture = np.asarray(whole.resize((size, size), Image.Resampling.LANCZOS))
            found.setdefault(whole.tobytes(), (unicodedata.name(symbol).lower(), picture))
    names, pictures = zip(*found.values(), strict=True)
    return Pictures(np.stack(pictures), np.zeros(len(names), np.int64), (), texts=names)


def symbols(characters: Iterable[str]) -> list[str]:
    """Those that may be emoji of their own: named symbols, without flags' letters, skin tones and hair."""
    kept = (symbol for symbol in characters if unicodedata.category(symbol) in CATEGORIES)
    return [symbol for symbol in kept if not unicodedata.name(symbol, "").lower().startswith(NO_PICTURES)]


def open_font(path: Path) -> ImageFont.FreeTypeFont:
    """UserError that says how to get it, where it is missing or has no bitmaps of this height."""
    if not path.is_file():
        raise UserError(
            f"the font {str(path)!r} is missing; install Debian's package {PACKAGE}, which brings {FONT}, "
            f"or set {VARIABLE} to a NotoColorEmoji.ttf"
        )
    try:
        face = ImageFont.truetype(path, HEIGHT, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(f"{str(path)!r} is no font with bitmaps of {HEIGHT} pixels ({error})") from error
    smile = draw("\N{GRINNING FACE}", face)
    if smile is None or not np.asarray(smile).std(2).any():
        raise UserError(f"{str(path)!r} has no emoji in colour; give the NotoColorEmoji.ttf of Debian's {PACKAGE}")
    return face


def draw(symbol: str, face: ImageFont.FreeTypeFont) -> Image.Image | None:
    """In the middle of a white square; None where the font draws nothing."""
    left, top, right, bottom = face.getbbox(symbol)
    if left == right or top == bottom:
        return None
    glyph = Image.new("RGBA", (2 * SQUARE, 2 * SQUARE))
    ImageDraw.Draw(glyph).text((SQUARE // 2, SQUARE // 2), symbol, font=face, embedded_color=True)
    if (box := glyph.getbbox()) is None:
        return None
    left, top = (box[0] + box[2] - SQUARE) // 2, (box[1] + box[3] - SQUARE) // 2
    paper = Image.new("RGBA", (SQUARE, SQUARE), "white")
    paper.alpha_composite(glyph.crop((left, top, left + SQUARE, top + SQUARE)))
    return paper.convert("RGB")
