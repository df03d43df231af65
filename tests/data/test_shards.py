"""A prepared folder as a data set: what was written comes back, and what is damaged is told, never believed."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditwright.codec.config import CodecConfig
from ditwright.data import shards as module
from ditwright.data.base import Record, batch_items
from ditwright.data.buckets import Buckets
from ditwright.data.shards import Shards, verify
from ditwright.errors import UserError
from ditwright.prepare import PrepareConfig, prepare
from ditwright.rng import generator

SIZES = [(8, 8), (8, 12), (12, 8), (8, 8), (8, 8), (12, 8), (8, 12), (8, 8), (8, 8), (9, 8), (10, 14)]
IN_BUCKETS = PrepareConfig(buckets=Buckets(8, 2), shard_size=4, workers=1, max_corrupt=1)


class Noise:
    """A source of noise, one picture of it empty."""

    class_names = ("a", "b", "c")

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, number: int) -> Record:
        pixels = generator(0, number, "test").integers(0, 256, (*SIZES[number], 3), dtype=np.uint8)
        return Record(f"noise/{number}", lambda: b"" if number == 3 else pixels, number % 3, f"number {number}")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set in buckets. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("shards") / "made"
    prepare(Noise(), CodecConfig("pixels"), folder, IN_BUCKETS)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return Path(shutil.copytree(made, tmp_path / "copied"))


def everything(shards: Shards) -> list[bytes]:
    """Every item both ways round, in the order of their numbers."""
    found: dict[int, bytes] = {}
    for items in (group.items for group in shards.groups):
        for flip in (False, True):
            for item, moments in zip(items.tolist(), shards.read(items, np.full(len(items), flip)), strict=True):
                found[item] = found.get(item, b"") + moments.tobytes()
    return [found[item] for item in sorted(found)]


def test_items_are_numbered_as_in_the_source_whatever_a_shard_holds(made, tmp_path):
    other = PrepareConfig(buckets=IN_BUCKETS.buckets, shard_size=100, max_corrupt=1)
    prepare(Noise(), CodecConfig("pixels"), tmp_path, other)
    a, b = Shards(made), Shards(tmp_path)
    assert len(a.tars) > len(b.tars)
    assert everything(a) == everything(b)
    assert a.labels(np.arange(len(a))).tolist() == b.labels(np.arange(len(b))).tolist()
    for one, other in zip(a.groups, b.groups, strict=True):
        assert one.size == other.size
        assert one.items.tolist() == other.items.tolist()
    assert sorted(i for group in a.groups for i in group.items) == list(range(len(a)))


def test_what_is_known_of_a_picture_is_beside_it(made):
    shards = Shards(made)
    items = np.arange(len(shards))
    numbers = [int(facts["name"].removeprefix("noise/")) for facts in shards.facts(items)]
    assert numbers == sorted(numbers)
    assert shards.captions(items) == [f"number {number}" for number in numbers]
    assert shards.labels(items).tolist() == [number % 3 for number in numbers]
    assert [tuple(facts["size"]) for facts in shards.facts(items)] == [SIZES[number] for number in numbers]
    assert shards.labels(items).dtype == np.int64


def test_batches_of_training_are_of_one_size(made):
    shards = Shards(made)
    for number in range(20):
        group, items = batch_items(0, shards.groups, 3, number)
        moments = shards.read(items, np.zeros(3, bool))
        assert moments.shape == (3, 3, *group.size)
        assert moments.dtype == np.uint8
    with pytest.raises(AssertionError, match="of one group"):
        shards.read(np.array([group.items[0] for group in shards.groups]), np.zeros(len(shards.groups), bool))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_webdataset_reads_them(made):
    wds = pytest.importorskip("webdataset")
    paths, shards = sorted(map(str, made.glob("*.tar"))), Shards(made)
    samples = {int(one["__key__"]): one for one in wds.WebDataset(paths, shardshuffle=False).decode()}
    gc.collect()
    assert len(samples) == len(shards)
    for item, key in enumerate(sorted(samples)):
        alone = np.array([item])
        assert samples[key]["json"] == shards.facts(alone)[0]
        np.testing.assert_array_equal(samples[key]["npy"][0], shards.read(alone, np.array([False]))[0])
        np.testing.assert_array_equal(samples[key]["npy"][1], shards.read(alone, np.array([True]))[0])


def test_tars_say_nothing_of_who_made_them_and_when(made):
    for path in made.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
                assert member.isfile()


def test_any_number_of_threads_may_read_with_few_files_open(made, monkeypatch):
    serial = everything(Shards(made))
    monkeypatch.setattr(module, "OPEN_FILES", 1)
    shards = Shards(made)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: everything(shards), range(16)):
            assert found == serial


def test_a_worker_process_gets_its_own(made):
    assert everything(pickle.loads(pickle.dumps(Shards(made)))) == everything(Shards(made))


def test_every_flipped_bit_is_found(copied):
    assert all(good for _, good in verify(copied))
    path = sorted(copied.glob("*.tar"))[2]
    data = bytearray(path.read_bytes())
    data[generator(0, 0, "bit").integers(len(data))] ^= 16
    path.write_bytes(data)
    assert [name for name, good in verify(copied) if not good] == [path.name]
    path.unlink()
    assert [name for name, good in verify(copied) if not good] == [path.name]


def test_a_missing_and_a_cut_shard_are_named(copied):
    path = sorted(copied.glob("*.tar"))[1]
    data = path.read_bytes()
    path.write_bytes(data[:700])
    with pytest.raises(UserError, match=rf"{path.name}' has 700 bytes, not {len(data)}: it was cut .*only what is mis"):
        Shards(copied)
    path.unlink()
    with pytest.raises(UserError, match=rf"the shard .*{path.name}' is missing; put it back, or run the same"):
        Shards(copied)


def test_a_shard_that_is_cut_while_it_is_read_is_named(copied):
    shards = Shards(copied)
    for path in copied.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:100])
    item = shards.groups[0].items[:1]
    with pytest.raises(UserError, match=r"\.tar' is damaged: it ends \d+ bytes too early"):
        shards.read(item, np.array([False]))
    with pytest.raises(UserError, match=r"\.tar' is damaged: it ends \d+ bytes too early"):
        shards.facts(item)


def test_folders_that_hold_no_finished_set_say_so(copied, tmp_path):
    with pytest.raises(UserError, match="holds no prepared shards; make them with `ditwright prepare"):
        Shards(tmp_path)
    (copied / "index.json").unlink()
    with pytest.raises(UserError, match=r"is not finished \(parts done: 3\); run the same `ditwright prepare` again"):
        Shards(copied)


def test_another_format_is_refused(copied):
    text = (copied / "index.json").read_text().replace("ditwright-latents-1", "ditwright-latents-9")
    (copied / "index.json").write_text(text)
    with pytest.raises(UserError, match="of the format 'ditwright-latents-9'; this version reads"):
        Shards(copied)


@pytest.mark.parametrize("name", ["index.json", "shard-000001.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", "[" * 100_000, "\xff"])
def test_files_that_are_no_json_are_named(copied, name, text):
    (copied / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}' is damaged: it (is not JSON|holds list)"):
        Shards(copied)


def changed(data: Any, other: Callable[[Any], list[Any]]) -> Iterator[None]:
    """Every value in a tree (of lists the last) replaced by others, one at a time; it is as it was in the end."""
    for key in data if isinstance(data, dict) else [-1][: len(data)]:
        value = data[key]
        for wrong in other(value):
            data[key] = wrong
            yield
        data[key] = value
        if isinstance(value, (dict, list)):
            yield from changed(value, other)


@pytest.mark.parametrize("name", ["index.json", "shard-000001.json"])
def test_no_value_of_a_file_can_do_harm(copied, name):
    """Each is replaced by others, one at a time. What is read is what was written, or it is an error of one line."""
    before, refused = everything(Shards(copied)), set()
    labels = Shards(copied).labels(np.arange(len(before))).tolist()

    def others(value: Any) -> list[Any]:
        wrong = [None, -1, 10**30, float("nan"), "../../etc/passwd", [], [value]]
        return wrong + ([value + 1, value - 512] if isinstance(value, int) else [])

    data = json.loads((copied / name).read_text())
    for _ in changed(data, others):
        (copied / name).write_text(json.dumps(data))
        try:
            shards = Shards(copied)
            assert everything(shards) == before
            assert shards.labels(np.arange(len(before))).tolist() == labels
        except UserError as error:
            refused.add(str(error))
    assert len(refused) > 50
    assert not [line for line in refused if "\n" in line]
    (copied / name).write_text(json.dumps(data))
    assert everything(Shards(copied)) == before


def test_facts_that_are_none_are_an_error(copied):
    tar = Shards(copied).tars[0]
    path = copied / tar.name
    for old, new in ((b'{"name"', b'["name"'), (b"ustar", b"USTAR")):
        data = path.read_bytes()
        path.write_bytes(data.replace(old, new))
        shards = Shards(copied)
        group = next(group for group in shards.groups if group.size == tar.size)
        with pytest.raises(UserError, match=rf"{path.name}' is damaged"):
            shards.facts(group.items)
        path.write_bytes(data)
