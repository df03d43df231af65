"""A checkpoint that is written in the background is there before the next one is begun, and before anybody leaves."""

from __future__ import annotations

import threading

import pytest

from ditwright.run import train
from ditwright.train.saves import Saves


def test_the_next_save_waits_for_the_one_before():
    order, go, saves = [], threading.Event(), Saves()

    def slow():
        go.wait(10)
        order.append("slow")

    saves.start(slow, later=True)
    assert order == []
    go.set()
    saves.start(lambda: order.append("next"), later=True)
    saves.finish()
    assert order == ["slow", "next"]


def test_at_once_means_here_and_now():
    threads, saves = [], Saves()
    saves.start(lambda: threads.append(threading.current_thread()), later=False)
    assert threads == [threading.main_thread()]


def test_what_went_wrong_in_the_background_is_raised_once_by_the_next_that_asks():
    def full():
        raise OSError("the disk is full")

    saves = Saves()
    saves.start(full, later=True)
    with pytest.raises(OSError, match="full"):
        saves.start(lambda: None, later=True)
    saves.finish()
    with pytest.raises(OSError, match="full"), saves:
        saves.start(full, later=True)


def test_who_leaves_waits_for_it_whatever_makes_them_leave():
    done, go, saves = [], threading.Event(), Saves()
    saves.start(lambda: done.append(go.wait(10)), later=True)
    threading.Timer(0.05, go.set).start()
    with pytest.raises(KeyboardInterrupt), saves:
        raise KeyboardInterrupt
    assert done == [True]


def test_a_run_that_saves_in_the_background_leaves_the_same_bits(tiny, outcome, tmp_path):
    train(tiny("--steps 7 --log.checkpoint_every 1"), tmp_path / "now")
    train(tiny("--steps 7 --log.checkpoint_every 1 --log.async_save true"), tmp_path / "later")
    assert outcome(tmp_path / "now") == outcome(tmp_path / "later")
