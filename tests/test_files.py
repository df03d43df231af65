"""Files and folders are whole or absent, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from ditwright.files import whole_file, whole_folder


def put_file(path: Path, text: str) -> None:
    with whole_file(path) as half:
        half.write_text(text)


def put_folder(path: Path, text: str) -> None:
    with whole_folder(path) as half:
        (half / "a").write_text(text)
        (half / "b").write_text(text)


PUTS = {"file": put_file, "folder": put_folder}


def failing(real: Callable, after: int) -> Callable:
    """A call that does as it should so many times, and then finds the disk full."""
    calls = count()

    def call(*args: object, **kwargs: object) -> object:
        if next(calls) == after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    return call


@pytest.fixture(params=PUTS)
def put(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    return PUTS[request.param]


def test_what_was_written_takes_its_place_and_leaves_nothing_beside(put, contents, tmp_path):
    put(tmp_path / "it", "old")
    old = contents(tmp_path)
    put(tmp_path / "it", "new")
    assert contents(tmp_path) == dict.fromkeys(old, b"new")
    assert set(old.values()) == {b"old"}


def test_a_folder_is_replaced_and_not_mixed_with_the_old(tmp_path):
    put_folder(tmp_path / "it", "old")
    with whole_folder(tmp_path / "it") as half:
        (half / "c").write_text("new")
    assert [p.name for p in (tmp_path / "it").iterdir()] == ["c"]


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
@pytest.mark.parametrize("before", [True, False], ids=["replacing", "new"])
def test_a_block_that_raises_changes_nothing(whole, before, contents, tmp_path):
    if before:
        PUTS["file" if whole is whole_file else "folder"](tmp_path / "it", "old")
    old = contents(tmp_path)

    def stopped() -> None:
        with whole(tmp_path / "it") as half:
            (half / "a" if whole is whole_folder else half).write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert contents(tmp_path) == old
    assert [p.name for p in tmp_path.iterdir()] == (["it"] if before else [])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_all_of_the_old_or_all_of_the_new(call, put, contents, tmp_path, monkeypatch):
    put(tmp_path / "it", "old")
    names = contents(tmp_path).keys()
    seen = []
    for after in range(4):
        with monkeypatch.context() as patch, suppress(OSError):
            patch.setattr(os, call, failing(getattr(os, call), after))
            put(tmp_path / "it", "new")
        assert contents(tmp_path).keys() == names
        (text,) = set(contents(tmp_path).values())
        seen.append(text)
        put(tmp_path / "it", "old")
        assert contents(tmp_path) == dict.fromkeys(names, b"old")
    assert seen[0] == b"old"
    assert set(seen) <= {b"old", b"new"}


@pytest.mark.parametrize("before", [True, False], ids=["replacing", "new"])
@pytest.mark.parametrize("left", [".it.half", ".it.old"])
def test_what_a_killed_process_left_is_neither_used_nor_in_the_way(left, before, put, contents, tmp_path):
    if before:
        put(tmp_path / "it", "old")
    if put is put_folder:
        (tmp_path / left).mkdir()
        (tmp_path / left / "stale").write_text("stale")
    elif left == ".it.half":
        (tmp_path / left).write_text("stale and longer than the new")
    for text in ("new", "newer"):
        put(tmp_path / "it", text)
        assert set(contents(tmp_path).values()) == {text.encode()}


@pytest.mark.parametrize("left", [".it.half", ".it.old"])
def test_what_is_in_the_way_and_stays_is_told(left, tmp_path, monkeypatch):
    """Else new files would lie among old ones, or the error be one of a folder that is not empty."""
    put_folder(tmp_path / "it", "old")
    (tmp_path / left / "stale").mkdir(parents=True)

    def stays(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr(shutil, "rmtree", stays)
    with pytest.raises(OSError, match=rf"busy.*{left}"):
        put_folder(tmp_path / "it", "new")
    assert (tmp_path / "it" / "a").read_text() == "old"


def test_files_reach_the_disk_before_they_take_their_place_and_then_their_names_do(put, tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    put(tmp_path / "it", "new")
    assert calls[: calls.index("replace")].count("fsync") >= (2 if put is put_folder else 1)
    assert calls[-1] == "fsync"  # of the folder around it, which has the name
