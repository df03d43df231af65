"""bench/gpu.sh where no GPU is, and with the four packages that it needs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import ditwright

SCRIPT = Path(ditwright.__file__).parents[2] / "bench" / "gpu.sh"
OTHERS = ("PIL", "yaml", "tqdm", "diffusers", "transformers", "huggingface_hub", "scipy", "sklearn", "matplotlib")


def started(*words, path=""):
    hidden = {"PYTHON": sys.executable, "PYTHONPATH": str(path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([SCRIPT, *words], env=os.environ | hidden, capture_output=True, text=True)


def test_the_whole_path_runs_with_four_packages(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({OTHERS}))\n")
    done = started("--cpu-smoke", "--output", tmp_path / "found", path=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "found" / "gpu.json").read_text())
    assert done.stdout == (tmp_path / "found" / "gpu.md").read_text()
    assert [case["case"] for case in facts["cases"]] == ["forward", "step", "sampling", "tokens", "batch"]
    rows = [row for case in facts["cases"] for row in case["rows"]]
    for row in rows:
        if row["peer"] == "diffusers":
            assert "not installed" in row["not_measured"]
        else:
            assert row["not_measured"] is None
            assert len(row["rounds"]) == 3
    assert {row["peer"] for row in rows} == {"ditwright", "plain", "diffusers"}


def test_without_a_gpu_it_says_so():
    done = started()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "no CUDA device" in done.stderr


def test_its_plans_can_be_made(monkeypatch):
    """Their cases, networks and options are known, and each leaves somebody to measure."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import speed

    from ditwright.bench.measure import CASES, contests

    assert {case for plan in speed.cpu_plans() for case in plan.cases} <= set(CASES)
    found = []
    for plan in speed.plans():
        for case, name, make in contests(plan, torch.device("cpu")):
            contest = make()
            assert {entry.peer for entry in contest.entries} >= {"ditwright", "plain"}, (case, name)
            found.append((case, name))
    assert {(case, f"DiT-{size}/2") for case in ("forward", "step") for size in ("S", "B", "XL")} <= set(found)
    assert ("sampling", "DiT-XL/2") in found
