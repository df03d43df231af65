"""A small part of the fault suite (`make faults` runs the whole): a process of its own, for it forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("fault_driver.py")
FORKED = "full_disk,damaged_checkpoint,bit_flipped_beside_checkpoints,nan_in_a_gradient,clock_goes_backwards"


def driven(cases: str, kills: int = 0, seed: int = 0) -> str:
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(DRIVER),
        "--cases",
        cases,
        "--kills",
        str(kills),
        "--seed",
        str(seed),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_random_kills_lose_nothing_beyond_the_last_save():
    said = driven("kill_during_a_step,kill_during_a_save,kill_at_the_rename,kill_in_a_background_save", kills=16)
    assert said.splitlines()[-1].startswith("16 random kill points, 0 failed")


@pytest.mark.parametrize("cases", [FORKED, "term_with_a_deadline,shard_disappears"])
def test_faults_are_named_and_survived(cases):
    said = driven(cases)
    assert "0 failed" in said.splitlines()[-1]
    assert all(case in said for case in cases.split(","))
