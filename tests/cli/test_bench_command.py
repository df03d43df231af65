"""`ditwright bench` times in turns, counts as `info` does, and holds results against the ceilings of the same run."""

from __future__ import annotations

import json
import statistics
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from ditwright import bench
from ditwright.bench import Bench, Subject, copy_rate, measure, processor, steps, times_a_second, works_of
from ditwright.cli.info import NETWORKS
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.flops import macs
from ditwright.train.fit import Tick

CPU = torch.device("cpu")
SMALL = DiTConfig(width=16, heads=2, stages=(Stage(1),), out_channels=8, num_classes=10)
PLAIN = DiTConfig(width=16, heads=2, stages=(Stage(2),), num_classes=0)
WORDS = ("--image-size", 32, "--precision", "fp32", "--seconds", 1e-6, "--batch-size", 3)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Small networks among the presets; ceilings that take no time."""
    monkeypatch.setitem(NETWORKS, "small", SMALL)
    monkeypatch.setitem(NETWORKS, "plain", PLAIN)
    monkeypatch.setattr(bench, "peak_flops", lambda precision, device: {"fp32": 2e12, "bf16": 8e12}[precision])
    monkeypatch.setattr(bench, "copy_rate", lambda device: 5e9)


def test_every_number_follows_from_the_rounds(command, tmp_path):
    code, out, err = command("bench", "small", "plain", *WORDS, "--rounds", 3, "--json", tmp_path / "bench.json")
    assert (code, err) == (0, "")  # no bar where nobody looks on
    facts = json.loads((tmp_path / "bench.json").read_text())
    assert facts["ceilings"] == {"fp32_tflops": 2, "bf16_tflops": 8, "copy_gb_per_second": 5}
    assert (facts["batch_size"], facts["precision"], facts["threads"]) == (3, "fp32", torch.get_num_threads())
    assert {"date", "device", "processor", "cores", "load_before", "torch", "python", "ditwright"} <= facts.keys()
    assert facts["input_sizes"] == {"small": [4, 4], "plain": [4, 4]}
    rows = {(row["network"], row["pass"]): row for row in facts["results"]}
    assert list(rows) == [(name, what) for name in ("small", "plain") for what in ("forward", "training step")]
    for (name, what), row in rows.items():
        told, rounds = row["samples_per_second"], row["rounds"]
        assert len(rounds) == 3
        assert told == {"median": statistics.median(rounds), "min": min(rounds), "max": max(rounds)}
        times = 1 if what == "forward" else 3
        assert row["flops_per_sample"] == times * 2 * sum(macs(NETWORKS[name], (4, 4)).values())
        assert row["tflops"] == pytest.approx(row["flops_per_sample"] * told["median"] / 1e12)
        assert row["share_of_ceiling"] == pytest.approx(row["tflops"] / 2)
        assert f"{name}, {what}" in out
    assert "matrix products 2.00 TFLOP/s in fp32, 8.00 TFLOP/s in bf16; copying 5.00 GB/s" in out


def test_a_share_is_of_the_products_in_the_same_precision(monkeypatch):
    monkeypatch.setattr(bench, "times_a_second", lambda work, device, seconds: 1000.0)
    facts = measure(Bench({"plain": Subject(PLAIN, (4, 4))}, "bf16", 2, rounds=1), CPU).as_dict()
    for row in facts["results"]:
        assert row["samples_per_second"]["median"] == 2000
        assert row["share_of_ceiling"] == pytest.approx(row["flops_per_sample"] * 2000 / 8e12)


def test_everything_has_its_turn_in_every_round(monkeypatch):
    turns, peaks = [], iter((1e12, 4e12, 3e12, 2e12))
    monkeypatch.setattr(bench, "peak_flops", lambda precision, device: (turns.append(precision), next(peaks))[1])
    monkeypatch.setattr(bench, "copy_rate", lambda device: (turns.append("copying"), 1e9)[1])
    made = {name: {what: (lambda w=(name, what): w) for what in bench.PASSES} for name in "ab"}
    subjects = {name: Subject(PLAIN, (4, 4)) for name in made}
    works = iter(made.values())
    monkeypatch.setattr(bench, "works_of", lambda *asked: next(works))
    monkeypatch.setattr(bench, "times_a_second", lambda work, device, seconds: (turns.append(work()), 1.0)[1])
    told: list[str] = []
    plan = Bench(subjects, "fp32", 2, rounds=2)
    report = measure(plan, CPU, told.append)
    one = ["fp32", "bf16", "copying", *((name, what) for name in "ab" for what in bench.PASSES)]
    assert turns == one * 2
    assert report.products == {"fp32": 3e12, "bf16": 4e12}  # the best of the rounds
    assert len(told) == steps(plan, CPU)


@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["learned variance", "unconditional"])
def test_a_step_is_one_of_the_loop_that_trains(config):
    works = works_of(Subject(config, (4, 4)), Bench({}, "fp32", 3), CPU)
    before = works["forward"]().x0
    first, second = (works["training step"]() for _ in range(2))
    assert isinstance(first, Tick)
    assert (first.step, second.step, second.samples) == (1, 2, 3)
    assert first.loss != second.loss  # other noise, other weights
    assert not torch.equal(works["forward"]().x0, before)  # the average, as samplers use it


def test_a_rate_is_of_whole_rounds_of_work(monkeypatch):
    done: list[int] = []
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=count(0, 2).__next__))  # work takes 2 s
    assert times_a_second(lambda: done.append(1), CPU, 5) == 0.5
    assert len(done) == 3
    assert times_a_second(lambda: done.append(1), CPU, 0) == 0.5
    assert len(done) == 4
    assert copy_rate(CPU, 1000) == 1000  # a thousand bytes read and as many written in 2 s


def test_the_processor_has_a_name(tmp_path):
    (tmp_path / "cpuinfo").write_text("vendor_id : x\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Other\n")
    assert processor(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert processor(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("DiT-S/3", ["unknown preset 'DiT-S/3'", "did you mean"]),
        ("small --image-size 30", ["multiples of 8", "30"]),
        ("small --image-size 24 --precision fp32", ["3x3", "2x2"]),
        ("small --batch-size 0 --precision fp32", ["--batch-size", "at least 1", "0"]),
        ("small --rounds 0 --precision fp32", ["--rounds", "at least 1"]),
        ("small --seconds 0 --precision fp32", ["--seconds above 0"]),
        ("small --seconds nan --precision fp32", ["--seconds above 0", "nan"]),
        ("small --precision fp64", ["--precision", "'fp64'", "bf16"]),
        ("small --json nowhere/bench.json", ["--json", "nowhere"]),
        ("small --fast", ["--fast"]),
    ],
)
def test_bad_input_is_one_line(words, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused("bench", *words.split())
    assert [part for part in said if part not in line] == []
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_into_memory_is_one_line(refused, monkeypatch):
    def full(*asked):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "works_of", full)
    assert "small at --batch-size 3 does not fit into memory" in refused("bench", "small", *WORDS)
