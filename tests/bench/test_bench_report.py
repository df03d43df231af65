"""What is reported follows from the rounds, as JSON and as a page; costs against size get their exponents."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from ditwright.bench.ceilings import Ceilings
from ditwright.bench.contest import Contest, Entry, Result, Row, Variant
from ditwright.bench.machine import FLAGS, flags, machine, processor
from ditwright.bench.report import HEADER, Report, exponent, table

CPU = torch.device("cpu")
BF16 = Variant("bf16")
TIMES = {
    ("ditwright", Variant()): (1.0, 1.1, 0.9),
    ("ditwright", BF16): (0.5, 0.6, 0.4),
    ("plain", Variant()): (2.0, 2.3, 1.9),
    ("plain", Variant("autocast")): (0.5, 0.7, 0.3),
    ("plain", Variant("autocast", compiled=True)): (0.4, 0.4, 0.4),
    ("plain", Variant("fp32", compiled=True)): (1.2, 1.2, 1.2),
    ("ditwright", Variant("fp32", compiled=True)): (0.5, 0.5, 0.5),
}


def made(rows, **how):
    contest = Contest("forward", "DiT-S/2", (), 3, 1.0, settings={"batch_size": 4, "input": [32, 32]}, **how)
    ceilings = Ceilings(CPU, {"fp32": 2e12, "bf16": 8e12}, 5e9)
    return Report(machine(CPU), ceilings, (Result(contest, tuple(rows)),))


@pytest.fixture
def report():
    rows = [
        Row(Entry(peer, variant=variant, samples=4, flops=10**12), times, {"output": 3e-6})
        for (peer, variant), times in TIMES.items()
    ]
    rows.append(Row(Entry("diffusers", variant=Variant(), samples=4, flops=10**12), why="it is | not installed"))
    rows.append(Row(Entry("diffusers", variant=BF16), errors={"output": 0.3}, why="it is wrong"))
    return made(rows, notes=("A note.",))


def test_the_numbers_follow_from_the_rounds(report):
    facts = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert facts["ceilings"] == {"fp32_tflops": 2, "bf16_tflops": 8, "copy_gb_per_second": 5}
    assert {"date", "device", "processor", "cpu_flags", "cores", "threads", "load_before", "python"} <= facts.keys()
    assert {"ditwright", "torch", "diffusers"} <= facts["versions"].keys()
    (case,) = facts["cases"]
    assert (case["case"], case["subject"], case["batch_size"], case["rounds"]) == ("forward", "DiT-S/2", 4, 3)
    assert case["largest_errors_allowed"] == {"fp32": 1e-4, "bf16": 2e-2}
    for row, times in zip(case["rows"], TIMES.values(), strict=False):
        median = statistics.median(times)
        assert row["rounds"] == list(times)
        assert row["seconds"] == {"median": median, "min": min(times), "max": max(times)}
        assert row["samples_per_second"] == pytest.approx(4 / median)
        assert row["tflops"] == pytest.approx(1 / median)
        assert row["share_of_ceiling"] == pytest.approx(1 / median / (2 if row["variant"].startswith("fp32") else 8))
        assert (row["not_measured"], row["errors"]) == (None, {"output": 3e-6})


def test_ratios_are_beside_the_right_rows(report):
    rows = report.as_dict()["cases"][0]["rows"]
    found = {f"{row['peer']}, {row['variant']}": row for row in rows}
    plain = {name: row["times_as_fast_as_plain_fp32"] for name, row in found.items()}
    ours = {name: row["ditwright_is_times_as_fast"] for name, row in found.items()}
    assert plain["plain, fp32"] is None
    assert plain["ditwright, fp32"]["told"] == pytest.approx(2.3 / 1.1)
    assert plain["ditwright, bf16"]["told"] == pytest.approx(4)
    assert ours["ditwright, bf16"] is None
    assert ours["plain, fp32"]["told"] == pytest.approx(2.3 / 1.1)
    swallowed = ours["plain, bf16 autocast"]
    assert swallowed["told"] is None
    assert "swallows" in swallowed["why_not"]
    assert swallowed["spread"] == pytest.approx([0.3 / 0.4, 0.7 / 0.6])
    assert ours["plain, bf16 autocast, compiled"] is None  # ours was not compiled
    assert ours["plain, fp32, compiled"]["told"] == pytest.approx(2.4)
    assert plain["diffusers, fp32"] is ours["diffusers, fp32"] is None
    compiled = {name: row["compiled_it_is"] for name, row in found.items() if row["compiled_it_is"]}
    assert compiled.keys() == {"plain, fp32"}  # beside what is compiled too, the column before tells
    assert compiled["plain, fp32"]["told"] == pytest.approx(4)


def test_a_page_says_what_was_not_measured(report):
    page = report.as_markdown()
    lines = page.splitlines()
    assert "matrix products 2 TFLOP/s in fp32, 8 TFLOP/s in bf16; copying 5 GB/s" in page
    assert "## Forward pass: DiT-S/2, batch 4, input 32x32" in lines
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    assert rows[0] == list(HEADER)
    assert rows[2][:6] == ["ditwright", "fp32", "1,000 (900 to 1,100)", "4", "50.0%", "3e-06"]
    assert rows[2][6:] == ["2.09 [2.00, 2.11]", "-", "-"]
    assert rows[4][8] == "4.00 [3.80, 4.60]"
    assert rows[5][7] == "not told"
    assert "1.00" not in rows[5][7]
    assert rows[-2][:3] == ["diffusers", "fp32", "not measured: it is \\| not installed"]
    assert rows[-1][:3] == ["diffusers", "bf16", "not measured: it is wrong"]
    assert rows[-1][5] == "3e-01"
    assert "A note." in lines
    assert {len(line) for line in lines if line.startswith("|")} == {len(lines[lines.index("A note.") - 2])}


def test_exponents_are_those_of_the_cost():
    rows = [
        Row(Entry(peer, variant=Variant(), size=size), (0.99 * cost(size), cost(size), 1.5 * cost(size)))
        for peer, cost in {"ditwright": lambda n: 3e-4 * n, "plain": lambda n: 1e-6 * n**2}.items()
        for size in (64, 256, 1024, 4096)
    ]
    rows += [
        Row(Entry("diffusers", variant=Variant(), size=64), (1.0,) * 3),
        Row(Entry("diffusers", size=256), why="time"),
    ]
    report = made(rows, unit="tokens")
    found = {one["peer"]: one for one in report.as_dict()["cases"][0]["exponents"]}
    assert {peer: one["exponent"] for peer, one in found.items()} == pytest.approx({"ditwright": 1, "plain": 2})
    assert found["plain"]["sizes"] == [64, 256, 1024, 4096]
    assert "| ditwright  | fp32    |                 1.00 |" in report.as_markdown()
    ratios = [row["ditwright_is_times_as_fast"] for row in report.as_dict()["cases"][0]["rows"]]
    assert [r["told"] for r in ratios[4:8]] == pytest.approx([n / 300 for n in (64, 256, 1024, 4096)])


def test_a_bend_shows_at_the_end():
    curve = {64: 1.0, 256: 4.0, 1024: 64.0}
    assert exponent(curve) == pytest.approx(1.5)
    assert exponent(dict(list(curve.items())[-2:])) == pytest.approx(2)


def test_a_table_is_aligned():
    assert table(("a", "b", "c"), [("x", "yy", "1")]).splitlines() == [
        "| a | b  | c |",
        "| - | -- | : |",
        "| x | yy | 1 |",
    ]


def test_the_processor_has_a_name_and_flags(tmp_path):
    told = "vendor_id : x\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu amx_bf16 avx2 sse\nmodel name\t: Other\n"
    (tmp_path / "cpuinfo").write_text(told)
    assert processor(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert flags(tmp_path / "cpuinfo") == ("avx2", "amx_bf16")
    assert processor(tmp_path / "nothing")
    assert flags(tmp_path / "nothing") == ()
    assert {"amx_bf16", "avx512_bf16"} <= set(FLAGS)
