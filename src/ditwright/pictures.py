"""Pictures for people: grids, labelled grids, film strips, and PNG files that say how they were made.

H height, W width, C channels; images are uint8 (H, W, C) with C of 1 or 3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from .files import whole_file

PAPER, INK = (250, 249, 246), (40, 40, 46)


def to_pil(image: np.ndarray) -> Image.Image:
    """One uint8 image (H, W, 1 or 3)."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def enlarged(image: np.ndarray, least: int, smooth: bool = False) -> Image.Image:
    """The image, by a whole factor, at least `least` pixels wide; every pixel a square unless `smooth`."""
    factor = max(1, -(-least // image.shape[1]))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return to_pil(image).resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    cell: int = 64,
    gap: int = 4,
    smooth: bool = False,
) -> Image.Image:
    """Images in rows on paper, with names at the left and above: grids and film strips alike."""
    tiles = [[enlarged(image, cell, smooth) for image in row] for row in rows]
    width, height = tiles[0][0].size
    font = ImageFont.load_default(size=max(12, cell // 5))
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line = int(font.size * 1.6)
    left = max((int(ruler.textlength(name, font)) + 2 * gap for name in row_names), default=0) + gap
    top = gap + line * bool(title) + line * bool(column_names)
    columns = max(len(row) for row in tiles)
    size = (left + columns * (width + gap), top + len(tiles) * (height + gap))
    size = (max(size[0], int(ruler.textlength(title, font)) + left + gap), size[1])
    paper = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((left, gap), title, INK, font)
    for j, name in enumerate(column_names):
        draw.text((left + j * (width + gap) + width / 2, top - line / 2), name, INK, font, anchor="mm")
    for i, row in enumerate(tiles):
        y = top + i * (height + gap)
        if row_names:
            draw.text((left - 2 * gap, y + height / 2), row_names[i], INK, font, anchor="rm")
        for j, tile in enumerate(row):
            paper.paste(tile, (left + j * (width + gap), y))
    return paper


def grid(images: Sequence[np.ndarray], columns: int | None = None, **style: Any) -> Image.Image:
    """Images in reading order, about as many columns as rows unless told."""
    columns = columns or max(1, round(len(images) ** 0.5))
    return sheet([images[i : i + columns] for i in range(0, len(images), columns)], **style)


def captioned(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    columns: int,
    title: str = "",
    cell: int = 128,
    gap: int = 8,
) -> Image.Image:
    """Images in reading order, each with its caption below it in as many lines as it takes."""
    font = ImageFont.load_default(size=max(11, cell // 11))
    tiles = [enlarged(image, cell) for image in images]
    width, height = tiles[0].size
    said = [wrapped(caption, font, width) for caption in captions]
    line = int(font.size * 1.25)
    rows = range(0, len(tiles), columns)
    deep = [height + gap + line * max(len(lines) for lines in said[start : start + columns]) + gap for start in rows]
    top = gap + 2 * line * bool(title)
    paper = Image.new("RGB", (gap + min(columns, len(tiles)) * (width + gap), top + sum(deep)), PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((gap, gap), title, INK, font)
    for number, (tile, lines) in enumerate(zip(tiles, said, strict=True)):
        row, column = divmod(number, columns)
        x, y = gap + column * (width + gap), top + sum(deep[:row])
        paper.paste(tile, (x, y))
        draw.multiline_text((x, y + height + gap // 2), "\n".join(lines), INK, font, spacing=line - font.size)
    return paper


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """The words of a text in lines of at most so many pixels; a word that is longer has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def save_png(image: Image.Image, path: Path, settings: dict[str, Any] | None = None) -> None:
    """Write a PNG whole or not at all, with its settings as JSON under the text key `parameters`."""
    info = PngInfo()
    if settings is not None:
        info.add_itxt("parameters", json.dumps(settings))
    with whole_file(path) as half:
        image.save(half, format="PNG", pnginfo=info)
