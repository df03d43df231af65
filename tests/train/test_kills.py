"""SIGKILL at any moment loses nothing but time: the run that goes on ends in the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ATTEMPTS = Path(__file__).with_name("attempts.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a process with threads is not to be forked


def attempts(mode: str, folder: Path, seed: int, words: list[str]) -> Any:
    command = [sys.executable, "-W", "ignore", str(ATTEMPTS), mode, str(folder), str(seed), *words]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("seed", [0])
def test_kills_at_random_moments(seed, tiny_words, outcome, tmp_path):
    kept = attempts("moments", tmp_path, seed, [*tiny_words, "--steps=30", "--log.keep=1", "--log.preview_every=6"])
    assert len(set(kept)) > 3  # it was killed at several places on its way
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


def test_a_kill_at_any_change_of_the_disk(tiny_words, outcome, tmp_path):
    words = [*tiny_words, "--steps=2", "--log.checkpoint_every=1", "--log.preview_every=1", "--log.keep=1"]
    assert attempts("operations", tmp_path, 0, words) > 20
    straight = outcome(tmp_path / "straight")
    different = [run.name for run in sorted(tmp_path.glob("killed-*")) if outcome(run) != straight]
    assert different == []
