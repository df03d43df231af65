"""What several test files share: one thread, and training runs that take a blink."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ditwright.cli.main import main
from ditwright.config import merge, overrides
from ditwright.experiment import TrainConfig
from ditwright.recipes import RECIPES

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: tiny networks gain nothing from more

TINY = """
    --model.width 16 --model.heads 2 --model.patch 2,2 --model.stages.0.depth 2 --data.batch_size 8 --precision fp32
    --optim.lr 2e-3 --optim.warmup 2 --log.every 1 --log.preview_every 999 --log.checkpoint_every 3
    --sample.sampler heun --sample.num_inference_steps 2
"""
CLOCK = {"seconds": None, "energy": None}
ASKED = {"config": None}  # what config.yaml holds too
SPEED = ("samples_per_second", "tflops", "share_of_peak")


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Every test draws the same numbers, whichever tests ran before it in its process."""
    import torch  # not above: OMP_NUM_THREADS comes first

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_words() -> list[str]:
    """The recipe `digits`, in options that make a run of a few steps take a blink."""
    return TINY.split()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """tiny("--optim.lr 1e-3") is that recipe with more options."""
    return lambda words="": merge(RECIPES["digits"](), overrides(f"{TINY} {words}".split()))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of six steps. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "digits", "--steps", "6", "--output", str(folder), *TINY.split()]) == 0
    return folder


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files below a folder, by name, with what they hold."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def outcome(contents: Callable[[Path], dict[str, bytes]]) -> Callable[[Path], dict[str, Any]]:
    """All that a finished run of equal settings must have in common to the last bit: only the clock is left out."""

    def read(run: Path) -> dict[str, Any]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        newest = max((run / "checkpoints").glob("step-*"))
        checkpoint: dict[str, Any] = contents(newest)
        checkpoint.pop("checksums.json", None)  # it tells of the clock's bytes too
        return {
            "metrics": [{key: value for key, value in line.items() if key not in SPEED} for line in lines],
            "checkpoint": {
                "name": newest.name,
                **checkpoint,
                "train.json": json.loads(checkpoint["train.json"]) | CLOCK | ASKED,
            },
            "samples": contents(run / "samples"),
            "half-written": [str(path) for path in run.rglob("*.half")],
        }

    return read
