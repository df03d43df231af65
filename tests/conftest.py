"""What several test files share: one thread, and training runs that take a blink."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ditwright.cli.main import main
from ditwright.config import merge, overrides
from ditwright.experiment import TrainConfig
from ditwright.recipes import RECIPES

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: tiny networks gain nothing from more

TINY = """
    --model.width 16 --model.heads 2 --model.stages.0.depth 2 --data.batch_size 8 --precision fp32
    --optim.warmup 2 --log.every 1 --log.preview_every 0 --log.checkpoint_every 3 --sample.num_inference_steps 2
""".split()


@pytest.fixture(scope="session")
def tiny_words() -> list[str]:
    """The recipe `digits`, in options that make a run of a few steps take a blink."""
    return [*TINY]


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """tiny("--optim.lr 1e-3") is that recipe with more options."""
    return lambda words="": merge(RECIPES["digits"](), overrides([*TINY, *words.split()]))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of six steps. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "digits", "--steps", "6", "--output", str(folder), *TINY]) == 0
    return folder


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files below a folder, by name, with what they hold."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
