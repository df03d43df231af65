"""`ditwright bench` times in turns, counts as `info` does, and holds results against the ceilings of the same run."""

from __future__ import annotations

import json
import os
import statistics

import pytest
import torch

from ditwright.bench import ceilings, measure, peers
from ditwright.cli import bench
from ditwright.cli.info import NETWORKS
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.flops import macs

SMALL = DiTConfig(width=16, heads=2, stages=(Stage(1),), out_channels=8, num_classes=10)
PLAIN = DiTConfig(width=16, heads=2, stages=(Stage(2),), num_classes=0)
WORDS = ("--image-size", 32, "--seconds", 1e-6, "--batch-size", 3, "--rounds", 3)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Small networks among the presets; ceilings that take no time, of a CPU that has bf16."""
    monkeypatch.setitem(NETWORKS, "small", SMALL)
    monkeypatch.setitem(NETWORKS, "plain", PLAIN)
    monkeypatch.setattr(ceilings, "peak_flops", lambda precision, device: {"fp32": 2e12, "bf16": 8e12}[precision])
    monkeypatch.setattr(ceilings, "copy_rate", lambda device: 5e9)
    monkeypatch.setattr(ceilings, "in_software", lambda precision, device: "")


def test_every_number_follows_from_the_rounds(command, tmp_path):
    files = ("--json", tmp_path / "bench.json", "--markdown", tmp_path / "bench.md")
    code, out, err = command("bench", "small", "plain", *WORDS, "--peers", "ditwright", "plain", *files)
    assert (code, err) == (0, "")  # no bar where nobody looks on
    assert (tmp_path / "bench.md").read_text() == out
    facts = json.loads((tmp_path / "bench.json").read_text())
    assert facts["ceilings"] == {"fp32_tflops": 2, "bf16_tflops": 8, "copy_gb_per_second": 5}
    assert facts["threads"] == torch.get_num_threads()
    order = [(case["case"], case["subject"]) for case in facts["cases"]]
    assert order == [(case, name) for case in ("forward", "step") for name in ("small", "plain")]
    for case in facts["cases"]:
        assert (case["batch_size"], case["input"]) == (3, [4, 4])
        halves = ["bf16 autocast", "bf16 weights"] if case["case"] == "forward" else ["bf16 autocast"]
        rows = {(row["peer"], row["variant"]): row for row in case["rows"]}
        others = [("plain", variant) for variant in ("fp32", *halves)]
        assert list(rows) == [("ditwright", "fp32"), ("ditwright", "bf16"), *others]
        for (peer, variant), row in rows.items():
            if peer == "plain" and case["subject"] == "plain":
                assert row["not_measured"] == "no such network in the paper's DiT"
                continue
            assert row["not_measured"] is None
            told, rounds = row["seconds"], row["rounds"]
            assert len(rounds) == 3
            assert told == {"median": statistics.median(rounds), "min": min(rounds), "max": max(rounds)}
            times = 1 if case["case"] == "forward" else 3
            assert row["flops_of_a_call"] == 3 * times * 2 * sum(macs(NETWORKS[case["subject"]], (4, 4)).values())
            assert row["tflops"] == pytest.approx(row["flops_of_a_call"] / told["median"] / 1e12)
            assert row["share_of_ceiling"] == pytest.approx(row["tflops"] / (2 if variant == "fp32" else 8))
    assert "## Forward pass: small, batch 3, input 4x4" in out
    assert "matrix products 2 TFLOP/s in fp32, 8 TFLOP/s in bf16; copying 5 GB/s" in out


def test_the_options_are_the_plan(command, monkeypatch):
    plans = []
    monkeypatch.setattr(measure, "measure", lambda asked, device, **how: plans.extend(asked) or empty())
    words = ["--cases", "sampling", "startup", "--peers", "plain", "--precision", "bf16", "--num-inference-steps", 7]
    assert command("bench", "small", *words, "--compile", *WORDS).code == 0
    assert command("bench").code == 0
    told, usual = plans
    assert (told.cases, told.peers, told.precisions, told.compiled) == (
        ("sampling", "startup"), ("plain",), ("bf16",), True
    )  # fmt: skip
    assert (told.steps, told.rounds, told.batch_size, told.seconds) == (7, 3, 3, 1e-6)
    assert told.subjects["small"].space == (4, 4)
    assert (list(usual.subjects), usual.cases) == (["DiT-S/2"], ("forward", "step"))
    assert (usual.peers, usual.precisions, usual.compiled) == (bench.PEERS, ("fp32", "bf16"), False)
    assert {"import ditwright", "ditwright --help", "ditwright train --help"} <= usual.commands.keys()


def empty():
    from ditwright.bench.machine import machine
    from ditwright.bench.report import Report

    return Report(machine(torch.device("cpu")), ceilings.Ceilings(torch.device("cpu")), ())


def test_its_choices_are_those_of_the_package():
    """They are written down twice, so that --help imports no torch."""
    assert set(bench.CASES) == set(measure.CASES)
    assert bench.PEERS == peers.PEERS


def test_its_commands_run():
    for name, run in bench.commands().items():
        try:
            code = run()
        except SystemExit as left:
            code = left.code
        assert code in (None, 0) or name == "import ditwright"


def test_what_is_asked_for_and_not_here_is_a_row(command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = command("bench", "small", *WORDS, "--device", "cuda", "--cases", "forward")
    assert (code, err) == (0, "")
    assert out.count("not measured: there is no device 'cuda' here") == 3


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
        ("small --num-inference-steps 0", ["--num-inference-steps", "0"]),
        ("small --precision fp64", ["--precision", "'fp64'", "bf16"]),
        ("small --cases forwards", ["--cases", "'forwards'", "sampling"]),
        ("small --peers timm", ["--peers", "'timm'", "diffusers"]),
        ("small --device tpu", ["--device", "'tpu'", "cuda"]),
        ("small --json nowhere/bench.json", ["--json", "nowhere"]),
        ("small --markdown nowhere/bench.md", ["--markdown", "nowhere"]),
        ("small --fast", ["--fast"]),
    ],
)
def test_bad_input_is_one_line(words, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused("bench", *words.split())
    assert [part for part in said if part not in line] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--json x.json --markdown ./x.json", ["--json and --markdown", "a file each", "x.json"]),
        (f"--json {'x' * 250}", ["--json", "can be written", "File name too long"]),
        ("--markdown fifo", ["--markdown takes a file", "'fifo'"]),
        ("--markdown .", ["--markdown takes a file", "'.'"]),
        ("--text-tokens -5", ["--text-tokens is at least 0", "-5"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(words, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "measure", lambda *asked, **how: pytest.fail("it was measured"))
    os.mkfifo("fifo")
    line = refused("bench", "small", *words.split())
    assert [part for part in said if part not in line] == []
    assert os.listdir() == ["fifo"]


def test_files_that_are_there_stay_until_all_is_measured(command, tmp_path, monkeypatch):
    (tmp_path / "bench.md").write_text("before")

    def measured(*asked, **how):
        assert (tmp_path / "bench.md").read_text() == "before"
        assert os.listdir(tmp_path) == ["bench.md"]
        return empty()

    monkeypatch.setattr(measure, "measure", measured)
    code, out, _ = command("bench", "small", "--markdown", tmp_path / "bench.md")
    assert (code, (tmp_path / "bench.md").read_text()) == (0, out)


def test_an_interrupt_leaves_what_was_measured(command, tmp_path, monkeypatch):
    def pressed(*asked):
        raise KeyboardInterrupt

    monkeypatch.setitem(measure.OF_NETWORKS, "step", pressed)
    files = ("--json", tmp_path / "bench.json", "--markdown", tmp_path / "bench.md")
    asked = (*WORDS, "--peers", "ditwright", "--precision", "fp32", *files)
    code, out, err = command("bench", "small", *asked)
    assert (code, err) == (130, "ditwright: interrupted\n")
    assert "## Forward pass: small" in out
    assert "## Training step" not in out
    assert (tmp_path / "bench.md").read_text() == out
    (case,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert len(case["rows"][0]["rounds"]) == 3
    code, out, err = command("bench", "small", "--cases", "step", *asked)
    assert (code, out, err) == (130, "", "ditwright: interrupted\n")


def test_what_does_not_fit_into_memory_is_a_row(command, monkeypatch):
    def full(*asked):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ditwright.bench.forward.laid_out", full)
    asked = ("--cases", "forward", "--peers", "ditwright", "--precision", "fp32")
    code, out, _ = command("bench", "small", *WORDS, *asked)
    assert code == 0
    assert "does not fit into memory" in out
