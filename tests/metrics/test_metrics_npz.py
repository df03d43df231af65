"""ADM's files: read and written as numpy does, by the batch, and refused with a reason where they are damaged."""

from __future__ import annotations

import io
import itertools
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from ditwright.errors import UserError
from ditwright.metrics.frechet import frechet
from ditwright.metrics.npz import (
    Reference,
    contents,
    read_array,
    read_reference,
    read_samples,
    write_reference,
    write_samples,
)
from ditwright.metrics.statistics import Gaussian, gaussian_of


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (23, 5, 4, 3), np.uint8)


@pytest.fixture
def pool():
    return gaussian_of(np.random.default_rng(0).standard_normal((30, 6)), extractor="inception-1a2b3c4d")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 7, 23, 100])
def test_samples_as_numpy_writes_them(save, size, pictures, tmp_path):
    save(tmp_path / "set.npz", pictures, np.arange(23))  # arr_1: labels, as ADM's sampler adds them
    samples = read_samples(tmp_path / "set.npz")
    assert (len(samples), samples.shape) == (23, (23, 5, 4, 3))
    batches = list(samples.batches(size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert (np.concatenate(batches) == pictures).all()
    assert batches[0].flags.writeable
    assert (read_array(tmp_path / "set.npz", "arr_1") == np.arange(23)).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_processes_read_a_part_each(save, pictures, tmp_path):
    save(tmp_path / "set.npz", pictures)
    samples = read_samples(tmp_path / "set.npz")
    for cuts in ([0, 8, 16, 99], [0, 1, 23]):
        parts = [b for start, stop in itertools.pairwise(cuts) for b in samples.batches(3, start, stop)]
        assert (np.concatenate(parts) == pictures).all()


def test_samples_as_we_write_them(pictures, tmp_path):
    write_samples(tmp_path / "set.npz", np.array_split(pictures, 4), 23)
    with np.load(tmp_path / "set.npz", allow_pickle=False) as theirs:
        assert (theirs["arr_0"] == pictures).all()
    assert (np.concatenate(list(read_samples(tmp_path / "set.npz").batches(9))) == pictures).all()
    write_samples(tmp_path / "again.npz", iter([pictures]), 23)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "set.npz").read_bytes()


def test_grey_samples(tmp_path):
    write_samples(tmp_path / "set.npz", [np.zeros((3, 8, 8, 1), np.uint8)], 3)
    assert read_samples(tmp_path / "set.npz").shape == (3, 8, 8, 1)


def test_a_large_set_needs_the_memory_of_a_batch(tmp_path):
    """64 MB of pictures, read and written a megabyte at a time."""
    batch = np.zeros((16, 128, 128, 3), np.uint8) + np.arange(16, dtype=np.uint8)[:, None, None, None]
    tracemalloc.start()
    write_samples(tmp_path / "set.npz", (batch for _ in range(85)), 85 * 16)
    seen = sum(int(some[5, 0, 0, 0]) for some in read_samples(tmp_path / "set.npz").batches(16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 5 * 85
    assert peak < 6e6


def test_references_there_and_back(pool, pictures, tmp_path):
    spatial = Gaussian(np.arange(4.0), np.eye(4) * 2, pool.count, pool.extractor)
    write_reference(tmp_path / "ref.npz", Reference(pool, spatial), images=[pictures], count=23)
    again = read_reference(tmp_path / "ref.npz")
    for ours, theirs in ((again.pool, pool), (again.spatial, spatial)):
        assert (ours.mean == theirs.mean).all()
        assert (ours.covariance == theirs.covariance).all()
        assert (ours.count, ours.extractor) == (theirs.count, theirs.extractor)
    assert frechet(again.pool, pool) == pytest.approx(0, abs=1e-12)
    assert read_samples(tmp_path / "ref.npz").shape == pictures.shape
    with np.load(tmp_path / "ref.npz", allow_pickle=False) as theirs:
        assert set(theirs) == {"mu", "sigma", "mu_s", "sigma_s", "arr_0", "ditwright_extractor", "ditwright_count"}
        assert theirs["sigma_s"].shape == (4, 4)


def test_references_of_others(tmp_path):
    """In float32, by columns, of another byte order, and without what only we or ADM write."""
    mean, covariance = np.arange(3.0), np.array([[2, 1, 0], [1, 3, 0], [0, 0, 1.0]])
    for number, kind in enumerate(("<f4", ">f8", "<f8")):
        path = tmp_path / f"{number}.npz"
        np.savez(path, mu=mean.astype(kind), sigma=np.asfortranarray(covariance.astype(kind)))
        theirs = read_reference(path)
        assert (theirs.pool.mean == mean).all()
        assert (theirs.pool.covariance == covariance).all()
        assert (theirs.pool.count, theirs.pool.extractor, theirs.spatial) == (None, "", None)


def test_other_arrays_travel_with_a_reference(pool, tmp_path):
    features = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    write_reference(tmp_path / "ref.npz", Reference(pool), arrays={"features": features})
    assert contents(tmp_path / "ref.npz")["features"][:2] == ((30, 6), np.float32)
    assert (read_array(tmp_path / "ref.npz", "features") == features).all()


def test_arrays_by_columns_are_read(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(array), y=np.array("text"))
    assert (read_array(tmp_path / "a.npz", "x") == array).all()
    assert read_array(tmp_path / "a.npz", "y") == "text"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, r"has no array 'arr_0'; it holds images"),
        ({}, r"has no array 'arr_0'; it holds nothing"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, r"arr_0 is float32; samples are uint8"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"arr_0 is \(2, 3, 4, 4\); samples are \(number, height, width"),
        ({"arr_0": np.zeros((4, 4, 3), np.uint8)}, r"arr_0 is \(4, 4, 3\)"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"arr_0 is \(0, 4, 4, 3\)"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, r"arr_0 is stored by columns"),
        ({"arr_0": np.array([{}])}, r"arr_0 holds object, not numbers; Python objects are never read"),
        ({"arr_0": np.zeros(2, "S3")}, r"arr_0 holds \|S3, not numbers"),
    ],
)
def test_what_are_no_samples_is_refused(arrays, said, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UserError, match=said):
        read_samples(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, r"is no reference: it holds arr_0, and no mu and sigma"),
        ({"mu": np.zeros(3)}, r"is no reference: it holds mu, and no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"ref.npz': mu, sigma: a mean \(3,\) and a covariance \(4, 4\) do"),
        ({"mu": np.zeros(3) * np.nan, "sigma": np.eye(3)}, r"mu, sigma: the mean or the covariance has NaN"),
        (
            {"mu": np.array(["a"]), "sigma": np.eye(1)},
            r"mu, sigma: a mean of <U1 and a covariance of float64 are not real numbers",
        ),
        (
            {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(2), "sigma_s": np.ones((2, 3))},
            r"mu_s, sigma_s: a mean \(2,\)",
        ),
        (
            {"mu": np.zeros(3), "sigma": np.eye(3), "ditwright_extractor": np.zeros(3)},
            r"ditwright_extractor is float64 \(3,\), not one value",
        ),
    ],
)
def test_what_is_no_reference_is_refused(arrays, said, tmp_path):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(UserError, match=said):
        read_reference(tmp_path / "ref.npz")


def test_files_that_are_no_archives_are_refused(pictures, tmp_path):
    with pytest.raises(UserError, match=r"none.npz' cannot be read: No such file"):
        read_samples(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_samples(tmp_path)
    np.save(tmp_path / "set.npy", pictures)
    with pytest.raises(UserError, match=r"set.npy' is no .npz file, or a damaged one: File is not a zip file"):
        contents(tmp_path / "set.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_that_is_cut_off_or_damaged_is_refused(save, pictures, tmp_path):
    save(tmp_path / "whole.npz", pictures)
    whole = (tmp_path / "whole.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="or a damaged one"):
            list(read_samples(tmp_path / "cut.npz").batches(5))
    (tmp_path / "bad.npz").write_bytes(whole[:700] + bytes(b ^ 255 for b in whole[700:710]) + whole[710:])
    with pytest.raises(UserError, match="or a damaged one"):
        list(read_samples(tmp_path / "bad.npz").batches(5))
    with pytest.raises(UserError, match="or a damaged one"):
        read_array(tmp_path / "bad.npz", "arr_0")


def member(path, content: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", content)
    return path


def test_headers_that_promise_too_much_are_refused(tmp_path):
    """A terabyte is not even tried."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 1)}
    )
    path = member(tmp_path / "set.npz", file.getvalue() + bytes(100))
    with pytest.raises(UserError, match="arr_0 promises 1000000000000 bytes of numbers and has 100"):
        read_samples(path)
    short = io.BytesIO()
    np.lib.format.write_array_header_1_0(short, {"descr": "|u1", "fortran_order": False, "shape": (1, 2, 2, 3)})
    with pytest.raises(UserError, match="promises 12 bytes of numbers and has 13"):
        read_samples(member(tmp_path / "long.npz", short.getvalue() + bytes(13)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no array at all", "arr_0 is no array: the magic string is not correct"),
        (b"\x93NUMPY\x09\x00" + bytes(20), r"arr_0 is no array|version \(9, 0\)"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"__import__('os').x()", "arr_0 is no array"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 999) + b"{", "arr_0 is no array"),
        (b"", "arr_0 is no array"),
    ],
)
def test_headers_that_are_none_are_refused(content, said, tmp_path):
    with pytest.raises(UserError, match=said):
        read_samples(member(tmp_path / "set.npz", content))


def test_writing_is_whole_or_not_at_all(pictures, tmp_path):
    path = tmp_path / "set.npz"
    for batches, said in (
        ([pictures], "23 samples came, where 24 were to be written"),
        ([], "0 samples came"),
        ([pictures, pictures[:1, :2]], r"of one size; got uint8 \(1, 2, 4, 3\)"),
        ([pictures / 255], "samples are uint8"),
    ):
        with pytest.raises(UserError, match=said):
            write_samples(path, batches, 24)
    assert list(tmp_path.iterdir()) == []
