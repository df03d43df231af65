"""ADM's files of samples and references (Dhariwal & Nichol 2021, `evaluations/` of guided-diffusion), as .npz.

samples      arr_0: (N, H, W, C) uint8
references   mu (D,), sigma (D, D): mean and covariance of the pool features; mu_s, sigma_s: of the spatial ones, for
             sFID; perhaps arr_0. Ours also say ditwright_extractor (text) and ditwright_count.

An .npz is a zip of .npy files. Both are read here by their formats, piece by piece, and never by unpickling: a set of
50,000 pictures needs the memory of a batch, and a header that promises more than its file holds is refused.
N samples, H height, W width, C channels, D features.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ..errors import UserError
from ..files import whole_file
from .statistics import Gaussian

EXTRACTOR, COUNT = "ditwright_extractor", "ditwright_count"
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # as zipfile raises them


class Header(NamedTuple):
    """What a .npy file says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool  # stored by columns


@dataclass(frozen=True)
class Samples:
    """Pictures in a file, not read yet."""

    path: Path
    shape: tuple[int, int, int, int]  # N, H, W, C

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """(B, H, W, C) uint8 of samples `start` to `stop`, `size` at a time, in the memory of one batch.

        Several processes read a part each. UserError where the file is damaged, perhaps at its end only.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        with _member(self.path, "arr_0") as (file, _):
            file.seek(start * math.prod(self.shape[1:]), 1)
            for first in range(start, stop, size):
                batch = np.empty((min(size, stop - first), *self.shape[1:]), np.uint8)
                _fill(file, batch)
                yield batch
            if stop == len(self):
                file.read(1)  # its end is where a zip compares the checksum


@dataclass(frozen=True, eq=False)
class Reference:
    """What generated samples are compared with."""

    pool: Gaussian
    spatial: Gaussian | None = None  # for sFID


def contents(path: str | Path) -> dict[str, Header]:
    """The header of every array in a file, by name; nothing else is read. UserError where it is no .npz."""
    path = Path(path)
    with _archive(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    headers = {}
    for name in names:
        with _member(path, name) as (_, header):
            headers[name] = header
    return headers


def read_samples(path: str | Path) -> Samples:
    """The pictures of a file of samples, or of a reference that has them. UserError where there are none."""
    path = Path(path)
    with _member(path, "arr_0") as (_, (shape, dtype, fortran)):
        if dtype != np.uint8:
            raise UserError(f"{str(path)!r}: arr_0 is {dtype}; samples are uint8, from 0 to 255")
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise UserError(f"{str(path)!r}: arr_0 is {shape}; samples are (number, height, width, 3 or 1 channels)")
        if fortran:
            raise UserError(f"{str(path)!r}: arr_0 is stored by columns; save numpy.ascontiguousarray of it")
    return Samples(path, shape)


def read_reference(path: str | Path) -> Reference:
    """The statistics of a reference; spatial ones and our own keys may be missing. UserError where `mu` is."""
    found = contents(path)
    if not {"mu", "sigma"} <= found.keys():
        raise UserError(
            f"{str(path)!r} is no reference: it holds {', '.join(sorted(found)) or 'nothing'}, and no mu and sigma"
        )
    for name, kinds in ((EXTRACTOR, "U"), (COUNT, "iu")):
        if name in found and (found[name].shape or found[name].dtype.kind not in kinds):
            raise UserError(f"{str(path)!r}: {name} is {found[name].dtype} {found[name].shape}, not one value")
    extractor = str(read_array(path, EXTRACTOR)) if EXTRACTOR in found else ""
    count = int(read_array(path, COUNT)) if COUNT in found else None

    def gaussian(mean: str, covariance: str) -> Gaussian:
        try:
            return Gaussian(read_array(path, mean), read_array(path, covariance), count, extractor)
        except UserError as error:
            raise UserError(f"{str(path)!r}: {mean}, {covariance}: {error}") from error

    spatial = gaussian("mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= found.keys() else None
    return Reference(gaussian("mu", "sigma"), spatial)


def read_array(path: str | Path, name: str) -> np.ndarray:
    """One array of a file, of numbers or text, whole. UserError where it is not there or damaged."""
    with _member(Path(path), name) as (file, (shape, dtype, fortran)):
        array = np.empty(shape[::-1] if fortran else shape, dtype)
        _fill(file, array)
        file.read(1)
        return array.T if fortran else array


def write_samples(path: str | Path, batches: Iterable[np.ndarray], count: int) -> None:
    """Write `count` pictures, uint8 (B, H, W, C) at a time, whole or not at all, as ADM's evaluator reads them."""
    with _writing(path) as archive:
        _put_samples(archive, batches, count)


def write_reference(
    path: str | Path,
    reference: Reference,
    *,
    images: Iterable[np.ndarray] = (),
    count: int = 0,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write statistics as ADM's evaluator reads them, whole or not at all.

    With it `count` pictures, which that evaluator measures precision and recall by, and any other arrays by name.
    """
    members = {"mu": reference.pool.mean, "sigma": reference.pool.covariance}
    if reference.spatial is not None:
        members |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    if reference.pool.extractor:
        members[EXTRACTOR] = np.array(reference.pool.extractor)
    if reference.pool.count is not None:
        members[COUNT] = np.array(reference.pool.count)
    with _writing(path) as archive:
        for name, array in {**(arrays or {}), **members}.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        if count:
            _put_samples(archive, images, count)


@contextmanager
def _writing(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """An archive that takes its place when it is whole. The same contents make the same bytes: all is dated 1980."""
    with whole_file(Path(path)) as half, zipfile.ZipFile(half, "w") as archive:
        yield archive


def _put_samples(archive: zipfile.ZipFile, batches: Iterable[np.ndarray], count: int) -> None:
    """Write arr_0, its header before the pictures are there. UserError where they come to be others."""
    written, shape = 0, None
    with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
        for batch in batches:
            if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (shape or batch.shape[1:]):
                raise UserError(f"samples are uint8 (B, H, W, C) of one size; got {batch.dtype} {batch.shape}")
            if shape is None:
                shape = batch.shape[1:]
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(batch).data)
            written += len(batch)
    if written != count or not count:
        raise UserError(f"{written} samples came, where {count} were to be written")


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip to read from. UserError where it is not there, none, cut off or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except BROKEN as error:
        reason = str(error) or "it ends too early"
        raise UserError(f"{str(path)!r} is no .npz file, or a damaged one: {reason}") from error
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], Header]]:
    """An array in a file, at where its numbers begin, and its header. UserError where it cannot be read."""
    with _archive(path) as archive:
        names = archive.namelist()
        if f"{name}.npy" not in names:
            held = ", ".join(sorted(held.removesuffix(".npy") for held in names)) or "nothing"
            raise UserError(f"{str(path)!r} has no array {name!r}; it holds {held}")
        with archive.open(f"{name}.npy") as file:
            header = _header(file, f"{str(path)!r}: {name}")
            promised = math.prod(header.shape) * header.dtype.itemsize
            there = archive.getinfo(f"{name}.npy").file_size - file.tell()
            if promised != there:
                raise UserError(f"{str(path)!r}: {name} promises {promised} bytes of numbers and has {there}")
            yield file, header


def _header(file: IO[bytes], where: str) -> Header:
    """Of a .npy file, which is left at its numbers."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise UserError(f"{where} is an array of .npy version {version}; only 1.0 and 2.0 are read")
        shape, fortran, dtype = readers[version](file)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where} is no array: {error}") from error
    if dtype.hasobject or dtype.kind not in "fiuU" or not dtype.itemsize:
        raise UserError(f"{where} holds {dtype}, not numbers; Python objects are never read")
    return Header(shape, dtype, fortran)


def _fill(file: IO[bytes], array: np.ndarray) -> None:
    """Read an array's bytes into it."""
    left = array.reshape(-1).view(np.uint8).data
    while len(left):
        read = file.readinto(left)  # type: ignore[attr-defined]
        if not read:
            raise EOFError
        left = left[read:]
