"""References: statistics in ADM's .npz, with features beside them where we made it; or pictures.

mu, sigma, mu_s, sigma_s    as ADM has them (metrics/npz.py)
ditwright_features          (K, D) float32, for the metrics that need features
ditwright_size              height and width of the pictures
arr_0                       (N, H, W, C) uint8, the pictures themselves where they are asked for, as in some of ADM's
K features kept, D their size; N pictures, B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..metrics.features import Extractor
from ..metrics.npz import Reference, contents, read_array, read_reference, write_reference
from .pictures import Images, images_from, in_npz
from .side import KEPT, MOMENTS, Need, Reading, Side, collect, offered

FEATURES, SIZE = "ditwright_features", "ditwright_size"


def reference_from(given: str | Path | np.ndarray | Images | Side, size: int | None = None) -> Side:
    """What is known of a reference before any picture is looked at.

    `given`: a `Side` as it is; an .npz with mu and sigma; or pictures, as `images_from` takes them.
    """
    if isinstance(given, Side):
        return given
    if isinstance(given, (str, Path)) and Path(given).suffix == ".npz":
        found = contents(Path(given).expanduser())
        if {"mu", "sigma"} & found.keys():
            return _of_file(Path(given).expanduser())
        if "arr_0" not in found:
            held = ", ".join(sorted(found)) or "nothing"
            raise UserError(f"{str(given)!r} is no reference: it holds {held}, neither mu and sigma nor arr_0")
    images = images_from(given, size)
    return Side(images.name, count=images.count, images=images)


def make_reference(
    images: Images, extractor: Extractor, output: Path, reading: Reading, *, with_pictures: bool = False
) -> Side:
    """Write a reference of all pictures, whole or not at all: statistics, and features of `reading.keep` of them.

    `with_pictures`: the pictures too, read a second time for it, a batch in memory. Every process takes its share and
    the main one writes. UserError for fewer than 2 pictures.
    """
    if images.count < 2:
        raise UserError(f"a reference needs at least 2 pictures; {images.name!r} has {images.count}")
    needs: set[Need] = {(MOMENTS, of) for of in offered(extractor, images.first()) - {"probabilities"}}
    needs |= {(KEPT, "pool")} if reading.keep else set()
    palette = Palette(images)
    side = collect(palette.watched(), extractor, needs, reading)
    coloured = reading.world.any(palette.coloured)
    if reading.world.main:
        arrays = {SIZE: np.array(side.size)} | ({FEATURES: side[KEPT, "pool"]} if reading.keep else {})
        output.parent.mkdir(parents=True, exist_ok=True)
        spatial = side.parts.get((MOMENTS, "spatial"))
        pictures = palette.alike(coloured, reading.batch_size) if with_pictures else ()
        count = images.count if with_pictures else 0
        made = Reference(side[MOMENTS, "pool"], spatial)
        write_reference(output, made, images=pictures, count=count, arrays=arrays)
    return side


@dataclass
class Palette:
    """Whether any picture of a set has colour: batches may come in grey or in colour, and an array has one kind."""

    images: Images
    coloured: bool = False  # of those that were seen

    def watched(self) -> Images:
        """The same pictures, noted as they are seen."""

        def batches(size: int, start: int, stop: int) -> Iterator[np.ndarray]:
            for batch in self.images.batches(size, start, stop):
                self.coloured |= batch.shape[3] == 3
                yield batch

        return replace(self.images, batches=batches)

    def alike(self, coloured: bool, size: int) -> Iterator[np.ndarray]:
        """All pictures, `size` at a time: (B, H, W, 3) uint8 where any has colour, otherwise (B, H, W, 1)."""
        for batch in self.images.batches(size, 0, self.images.count):
            yield np.broadcast_to(batch, (*batch.shape[:3], 3)) if coloured else batch


def check_fits(reference: Side, extractor: Extractor) -> None:
    """UserError where what a reference holds was not made by this extractor: its name, or the number of features."""
    remedy = "use that extractor, or make another reference: ditwright eval ref PICTURES --extractor ... --output FILE"
    if not reference.parts:
        return
    if reference.extractor and reference.extractor != extractor.name:
        raise UserError(
            f"the reference {reference.name!r} was made with {reference.extractor}, the samples' features come from "
            f"{extractor.name}; {remedy}"
        )
    moments = reference.parts.get((MOMENTS, "pool"))
    if moments is not None and moments.size != extractor.feature_size:
        raise UserError(
            f"the reference {reference.name!r} has {moments.size} features to a picture, {extractor.name} gives "
            f"{extractor.feature_size}; {remedy}"
        )


def _of_file(path: Path) -> Side:
    held, found = read_reference(path), contents(path)
    parts: dict[Need, Any] = {(MOMENTS, "pool"): held.pool}
    if held.spatial is not None:
        parts[MOMENTS, "spatial"] = held.spatial
    if FEATURES in found:
        rows = read_array(path, FEATURES)
        if rows.ndim != 2 or rows.dtype != np.float32 or rows.shape[1] != held.pool.size:
            raise UserError(
                f"{str(path)!r}: {FEATURES} is {rows.dtype} {rows.shape}; expected float32 (number, {held.pool.size})"
            )
        parts[KEPT, "pool"] = rows
    size = None
    if SIZE in found and found[SIZE].shape == (2,) and found[SIZE].dtype.kind in "iu":
        height, width = read_array(path, SIZE).tolist()
        size = (height, width)
    images = in_npz(path) if "arr_0" in found else None
    return Side(str(path), held.pool.extractor, held.pool.count, size, parts, images)
