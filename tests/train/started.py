"""Processes as torchrun starts them, and what a run of theirs leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def torchrun(processes, *words, script=("-m", "ditwright")):
    """As a person would start it. The exit code of workers is not judged: what they leave behind is."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *map(str, script), *map(str, words)], env=environment, capture_output=True, text=True, timeout=300
    )


def noted(run: Path, name: str = "loss") -> list[float]:
    """A number of every logged step."""
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]
