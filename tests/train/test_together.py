"""Processes that are started from here: they find each other, and leave as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditwright.train.parallel import join
from ditwright.train.processes import MOST, at_most, together


def sums(folder: str) -> None:
    """Every process writes what all of them together hold."""
    world = join()
    pages = os.environ.get("GLIBC_TUNABLES", "")
    (Path(folder) / str(world.rank)).write_text(f"{world.size} {world.sum(world.rank + 1.0)} {pages}")
    world.leave()


def leaves(code: int) -> None:
    sys.exit(code if os.environ.get("RANK", "0") == "0" else 0)


@pytest.mark.parametrize("asked", ["", "glibc.malloc.check=0"])
def test_two_processes_find_each_other_and_ask_for_large_pages_unless_told_otherwise(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", asked)  # so that what it sets is undone, too
    if not asked:
        monkeypatch.delenv("GLIBC_TUNABLES")
    together(2, sums, str(tmp_path))
    said = f"2 3.0 {asked or 'glibc.malloc.hugetlb=1'}"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": said, "1": said}


def test_one_is_this_one(tmp_path, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    together(1, sums, str(tmp_path))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["1 1.0 "]


BARS = """
from tqdm import tqdm
from ditwright.train.processes import together

def work():
    list(tqdm(range(2)))

if __name__ == "__main__":
    together(2, work)
"""


def test_nothing_is_said_to_leak(tmp_path):
    (tmp_path / "bars.py").write_text(BARS)
    done = subprocess.run([sys.executable, tmp_path / "bars.py"], capture_output=True, text=True, check=True)
    assert "2/2" in done.stderr
    assert "leaked" not in done.stderr


@pytest.mark.parametrize("count", [1, 2])
def test_it_leaves_with_their_code(count):
    with pytest.raises(SystemExit) as left:
        together(count, leaves, 143)
    assert left.value.code == 143


def test_a_batch_is_parted_evenly(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [at_most(size) for size in (1, 4, 6, 7, 64)] == [1, 4, 6, 1, 4]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert at_most(64) == MOST
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert at_most(64) == 1
