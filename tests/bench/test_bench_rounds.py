"""Everything has its turn in every round; a ratio that its own spread swallows is not told."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ditwright.bench import ceilings, rounds
from ditwright.bench.ceilings import Ceilings, copy_rate
from ditwright.bench.rounds import in_turns, ratio, seconds_of
from ditwright.train.precision import peak_flops

CPU = torch.device("cpu")


def turns(number, **how):
    """The order in which three had their turns."""
    order: list[str] = []
    works = {name: (lambda name=name: order.append(name)) for name in "abc"}
    return "".join(order), in_turns(works, CPU, rounds=number, seconds=1e-9, **how), order


def test_the_order_is_turned_round_every_other_round():
    _, times, order = turns(4)
    assert "".join(order) == "abccbaabccba"
    assert {name: len(each) for name, each in times.items()} == dict.fromkeys("abc", 4)


def test_no_round_begins_late_but_there_is_a_spread():
    assert {len(each) for each in turns(9, late=lambda: True)[1].values()} == {rounds.FEW}


def test_who_falls_out_has_no_further_turn():
    """The others go on, in their order."""
    fallen: list[str] = []

    def falls(key, turn):
        turn()
        fallen.append(key)
        return key == "b" and fallen.count("b") == 2

    _, times, order = turns(4, falls=falls)
    assert "".join(order) == "abccbaacca"
    assert {name: len(each) for name, each in times.items()} == {"a": 4, "c": 4}


def test_every_turn_is_told():
    told: list[str] = []
    turns(2, tell=told.append)
    assert told == ["round 1 of 2"] * 3 + ["round 2 of 2"] * 3


def test_the_time_of_a_call_is_that_of_whole_calls(monkeypatch):
    done: list[int] = []
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=count(0, 2).__next__))  # work takes 2 s
    assert seconds_of(lambda: done.append(1), CPU, 5) == 2
    assert len(done) == 3
    assert seconds_of(lambda: done.append(1), CPU) == 2
    assert len(done) == 4
    assert copy_rate(CPU, 1000) == 1000  # a thousand bytes read and as many written in 2 s


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ([2, 2.2, 1.9], 2.0),
        ([0.5, 0.4, 0.45], 0.45),
        ([2, 2.2, 0.9], None),  # once it was slower
        ([1, 1.2, 1.3], None),  # once it was not faster
        ([2, 2.2], None),  # two rounds are no spread
        ([2, 2.2, 1.9, 2, 2, 2, 2, 2, 0.1], 2.0),  # of many, one may be an accident
        ([2, 2.2, 1.9, 2, 2, 2, 0.2, 0.3, 0.1], None),
    ],
)
def test_a_ratio_is_told_where_its_spread_leaves_1_out(over, told):
    found = ratio(over, [1.0] * len(over))
    assert found.told == (None if told is None else pytest.approx(told))
    assert found.spread == ("quartiles" if len(over) > 8 else "min and max")
    facts = found.as_dict()
    assert facts["told"] == found.told
    assert (facts["why_not"] == "") == (told is not None)
    assert facts["spread"] == [found.low, found.high]


def test_a_ratio_is_of_times_beside_each_other():
    """A busy moment that slows both in a round changes nothing."""
    found = ratio([2, 20, 2], [1, 10, 1])
    assert (found.median, found.low, found.high) == (2, 2, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_ceiling_is_of_numbers_drawn_where_they_are_multiplied(precision):
    """In the format of the product: a GPU does not wait for the CPU to draw them."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            done.append((func._overloadpacket.__name__, args[0].dtype if isinstance(args[0], torch.Tensor) else None))
            return func(*args, **(kwargs or {}))

    done: list[tuple] = []
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with Seen():
        assert peak_flops(precision, CPU) > 1e6
    assert done[:4] == [("empty", None), ("normal_", dtype)] * 2
    assert done[4:] == [("mm", dtype)] * 6


def test_the_best_ceiling_counts(monkeypatch):
    seen = iter((3e12, 5e12, 2e12, 9e12))
    monkeypatch.setattr(ceilings, "peak_flops", lambda precision, device: next(seen))
    monkeypatch.setattr(ceilings, "copy_rate", lambda device: 5e9)
    monkeypatch.setattr(ceilings, "in_software", lambda precision, device: "")
    found = Ceilings(CPU)
    assert found.as_dict() == {"copy_gb_per_second": 0}
    found.look()
    found.look()
    assert found.as_dict() == {"fp32_tflops": 3, "bf16_tflops": 9, "copy_gb_per_second": 5}
