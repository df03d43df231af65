"""Processes that are alive leave beats; one whose beats have stopped is named by those that wait for it.

That a process that is really frozen is, test_watch.py shows.
"""

from __future__ import annotations

import os
import re
import time

import pytest

from ditwright.train.watch import Beats, Watchdog


@pytest.fixture
def beats(tmp_path):
    """beats(1, 60): a beat of process 1, a minute ago."""

    def put(rank, seconds):
        path = tmp_path / f"stalls/beat-{rank}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"process {rank} of 9 (pid 7 on host)")
        os.utime(path, (time.time() - seconds,) * 2)
        return path

    return put


@pytest.fixture
def mine(tmp_path):
    """The beats of process 0 of some, which began an hour ago and beats now; seconds until a stall is told: 10."""

    def make(size, *, rank=0):
        mine = Beats(tmp_path / "stalls", f"process {rank} of {size}", rank=rank, size=size, after=10)
        mine.begin()
        mine.began -= 3600
        return mine

    return make


def test_those_that_are_not_heard_of_are_told_from_those_that_are_alive(mine, beats):
    for rank, seconds in enumerate((60, 1, 30, 4)):
        beats(rank + 1, seconds)
    first, last = (
        f"process {rank} of 9 (pid 7 on host) has not been heard of for {s} s" for rank, s in ((1, 60), (3, 30))
    )
    assert mine(5).silent() == f"{first}; {last}; alive besides: 2"
    beats(1, 0)
    beats(3, 0)
    assert mine(5).silent() == mine(5).silent(absent=True) == mine(1).silent(absent=True) == ""


def test_one_that_left_no_beat_is_named_only_where_that_is_asked(mine, beats, tmp_path):
    beats(1, 0)
    assert mine(3).silent() == ""
    assert mine(3).silent(absent=True) == f"there is no sign of process 2 in {tmp_path}/stalls; alive besides: 1"
    assert ", 9 and 3 more in" in mine(13).silent(absent=True)


def test_a_beat_of_an_earlier_process_does_not_tell_who_is_frozen_now(mine, beats):
    beats(1, 10_000)
    assert mine(2).silent() == "process 1 of 2 has not been heard of for 3600 s"


def test_many_that_are_not_heard_of_are_counted(mine, beats):
    for rank in range(1, 12):
        beats(rank, 60)
    said = mine(12).silent()
    assert said.count("has not been heard of") == 8
    assert said.endswith("; 3 more have not, either")


def test_one_that_was_frozen_itself_does_not_judge_the_others(mine, beats):
    beats(1, 60)
    woken = mine(2)
    woken.looked -= 6
    assert woken.touch() is False
    assert woken.silent() == ""
    woken.touch()
    assert "process 1 of 9" in woken.silent()


def test_beats_come_now_and_then_and_go_with_their_process(mine, tmp_path):
    one = mine(2, rank=1)
    path = tmp_path / "stalls/beat-1"
    os.utime(path, (5, 5))
    assert one.touch() is False
    assert path.stat().st_mtime == 5
    one.beaten -= 0.5  # a twentieth of the time
    assert one.touch() is True
    assert path.stat().st_mtime == pytest.approx(time.time(), abs=5)
    path.unlink()
    one.beaten -= 0.5
    one.touch()
    assert path.read_text() == "process 1 of 2"
    one.end()
    assert not (tmp_path / "stalls").exists()


def test_where_the_disk_takes_no_beat_that_is_said_once(mine, tmp_path, capsys):
    (tmp_path / "stalls").write_text("in the way")
    one = mine(2)
    one.beaten -= 0.5
    one.touch()
    assert one.silent(absent=True).startswith("there is no sign of process 1 in")
    said = capsys.readouterr().err
    assert said.count("\n") == said.count("stalls/beat-0 could not be written (") == 1


def test_a_frozen_process_is_named_during_known_work_too(beats, tmp_path, capsys):
    """Not only after ten times as long; and where it froze after the stall was told, once more."""
    with Watchdog(0.4, tmp_path, rank=0, size=2) as dog:
        beats(1, 0)
        dog.beat(7, "saving")
        time.sleep(0.9)
    err = capsys.readouterr().err
    assert re.search(r"stalls: it has been saving for 0 s, since step 7; it is in .*; process 1 of 9 .* heard of", err)
    assert err.count("heard of") == 1
    with Watchdog(0.4, tmp_path, rank=0, size=2) as dog:
        for _ in range(10):
            beats(1, 0)
            time.sleep(0.06)
        time.sleep(0.6)
    stall, later = capsys.readouterr().err.splitlines()
    assert "heard of" not in stall
    assert re.search(r"process 0 of 2 \(.*\) still stalls: process 1 of 9 .* has not been heard of for 0 s", later)
