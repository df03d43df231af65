"""bench/gpu.sh where no GPU is, and with the four packages that it needs alone."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ditwright
from ditwright.accel.compiling import can_compile
from ditwright.bench.ceilings import Ceilings
from ditwright.bench.contest import Variant
from ditwright.bench.machine import machine
from ditwright.bench.measure import CASES, OF_MACHINES, OF_NETWORKS, contests
from ditwright.bench.report import Report
from ditwright.train.precision import in_software

CPU = torch.device("cpu")
SCRIPT = Path(ditwright.__file__).parents[2] / "bench" / "gpu.sh"
OTHERS = ("PIL", "yaml", "tqdm", "diffusers", "transformers", "huggingface_hub", "scipy", "sklearn", "matplotlib")


def started(*words, path="", **more):
    hidden = {"PYTHON": sys.executable, "PYTHONPATH": str(path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([SCRIPT, *words], env=os.environ | hidden | more, capture_output=True, text=True)


def test_the_whole_path_runs_with_four_packages(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({OTHERS}))\n")
    done = started("--cpu-smoke", "--output", tmp_path / "found", path=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "found" / "gpu.json").read_text())
    assert done.stdout == (tmp_path / "found" / "gpu.md").read_text()
    networks = ["step", "forward", "step", "sampling", "tokens", "batch"]
    assert [case["case"] for case in facts["cases"]] == [*networks, "decode", "loader", "startup"]
    rows = [(case["case"], row) for case in facts["cases"] for row in case["rows"]]
    for case, row in rows:
        if "bf16" in row["variant"] and row["not_measured"] and row["not_measured"] == in_software("bf16", CPU):
            continue
        if row["peer"] == "diffusers" or case in ("decode", "loader"):
            absent = "PIL" if case == "loader" else "diffusers"
            assert f"'{absent}' is not installed" in row["not_measured"]
        elif "compiled" in row["variant"] and not can_compile():
            assert "finds no compiler" in row["not_measured"]
        else:
            assert row["not_measured"] is None
            assert len(row["rounds"]) == 3
    assert {row["peer"] for _, row in rows} == {"ditwright", "plain", "diffusers"}
    compiled = {row["variant"] for case, row in rows if case == "step" and "compiled" in row["variant"]}
    assert compiled == {"bf16, compiled", "bf16 autocast, compiled by blocks"}


def test_without_a_gpu_it_says_so():
    done = started()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "no CUDA device" in done.stderr


@pytest.fixture
def speed(monkeypatch):
    """bench/speed.py"""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("speed")


def test_its_plans_can_be_made(speed):
    """Their cases, networks and options are known, each leaves somebody to measure, and none is left out."""
    found = []
    for plan in speed.plans():
        for case, name, make in contests(plan, CPU):
            contest = make()
            assert {entry.peer for entry in contest.entries} >= ({"ditwright", "plain"} if name else {"ditwright"})
            found.append((case, name))
    assert {case for case, _ in found} == set(CASES)
    assert [case for case, _ in found[-3:]] == list(OF_MACHINES)  # what matters least
    assert {(case, f"DiT-{size}/2") for case in ("forward", "step") for size in ("S", "B", "XL")} <= set(found)
    assert ("sampling", "DiT-XL/2") in found


@pytest.mark.parametrize("why", ["", "this CPU computes bf16 in software, far slower than fp32"])
def test_a_cpu_is_measured_in_what_it_is_fast_at(why, speed, monkeypatch):
    """In bf16 beside all ways of the peers in it; where there is none, in fp32, and bf16 is in rows that say so."""
    monkeypatch.setattr(speed, "missing", lambda precision, device: why if precision == "bf16" else "")
    plans = speed.cpu_plans()
    assert {case for plan in plans for case in plan.cases} == set(CASES)
    for plan in plans[: 4 if why else 5]:
        (name,) = plan.subjects
        case = OF_NETWORKS[plan.cases[0]](plan, name, CPU)
        there = {(entry.peer, str(entry.variant)) for entry in case.entries}
        assert {("plain", "fp32"), ("ditwright", "fp32, compiled" if why else "bf16, compiled")} <= there
        assert (("diffusers", "fp32") in there) == (bool(why) and plan.rounds > 1)
    first = {(entry.peer, str(entry.variant)) for entry in OF_NETWORKS["sampling"](plans[0], "DiT-XL/2", CPU).entries}
    assert {("diffusers", "bf16 weights"), ("diffusers", "bf16 autocast"), ("ditwright", "bf16")} <= first


def test_what_matters_most_is_first_and_beside_compiled_peers(speed):
    """A step of DiT-XL/2: ours compiled, in one contest with both peers compiled as ours are, and the plain fp32."""
    case, name, make = next(contests(speed.plans()[0], CPU))
    assert (case, name) == ("step", "DiT-XL/2")
    there = {(entry.peer, entry.variant) for entry in make().entries}
    halves = Variant("autocast"), Variant("autocast", True, True)
    assert there == {
        ("plain", Variant()),
        *(("ditwright", Variant("bf16", compiled)) for compiled in (False, True)),
        *((peer, half) for peer in ("plain", "diffusers") for half in halves),
    }


def test_what_is_interrupted_leaves_whole_files(speed, tmp_path, monkeypatch, capsys):
    """Ctrl-C, and what gpu.sh does when the time is over."""
    monkeypatch.setattr(sys, "argv", ["speed.py", "--cpu-smoke", "--output", str(tmp_path / "found")])

    def cut(plans, device, *, keep, **how):
        keep(Report(machine(device), Ceilings(device), ()))
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "measure", cut)
    assert speed.main() == 130
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"interrupted; contests that were over are in {tmp_path / 'found'}" in err
    assert sorted(os.listdir(tmp_path / "found")) == ["gpu.json", "gpu.md"]
    assert json.loads((tmp_path / "found" / "gpu.json").read_text())["cases"] == []


def test_what_cannot_be_written_whole_leaves_what_was_there(speed, tmp_path, monkeypatch):
    """A full disk in the middle of a file."""
    monkeypatch.setattr(sys, "argv", ["speed.py", "--cpu-smoke", "--output", str(tmp_path)])
    (tmp_path / "gpu.json").write_text("before")
    real = Path.write_text

    def full(path, text):
        real(path, text[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        speed, "measure", lambda plans, device, *, keep, **how: keep(Report(machine(device), Ceilings(device), ()))
    )
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        speed.main()
    assert (tmp_path / "gpu.json").read_text() == "before"
    assert os.listdir(tmp_path) == ["gpu.json"]


@pytest.mark.parametrize("there", [True, False], ids=["coreutils", "none"])
def test_an_outer_bound_ends_what_hangs(there, tmp_path):
    """Under 9 minutes, by coreutils' timeout, with time to write; where there is none it runs without."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "env"):
        (programs / name).symlink_to(shutil.which(name))
    if there:
        (programs / "timeout").write_text(f'#!{shutil.which("bash")}\necho "$@"\nshift 4\nexec "$@"\n')
        (programs / "timeout").chmod(0o755)
    done = started(PATH=str(programs))
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert ("--signal=INT" in done.stdout) == there
    if there:
        asked = done.stdout.splitlines()[-1].split()
        after = int(next(word for word in asked if word.startswith("--kill-after=")).partition("=")[2])
        seconds = int(next(word for word in asked if word.isdigit()))
        assert seconds + after < 540
