"""What a run notes as it goes: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..extras import need
from ..files import whole_file
from .config import LogConfig
from .fit import Tick


def say(line: str) -> None:
    """A line for people, beside the progress bar."""
    tqdm.write(line, file=sys.stderr)


class Log:
    """The notes of one run that has `done` of `total` steps behind it."""

    def __init__(self, run: Path, config: LogConfig, done: int, total: int):
        self.config, self.total = config, total
        keep_until(run / "metrics.jsonl", done)
        self.file = open(run / "metrics.jsonl", "a")  # noqa: SIM115 (closed by __exit__)
        self.started, self.samples = time.perf_counter(), 0
        self.board: Any = None
        if config.tensorboard:
            need("tensorboard", extra="track")
            self.board = need("torch.utils.tensorboard", extra="track").SummaryWriter(
                run / "tensorboard", purge_step=done
            )
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def write(self, tick: Tick) -> None:
        """Note a step: the bar moves with each, the rest every so many."""
        self.samples += tick.samples
        rate = self.samples / (time.perf_counter() - self.started)
        self.bar.update()
        if tick.step % self.config.every and tick.step != self.total:
            return
        self.bar.set_postfix_str(f"loss {tick.loss:.4f}, {rate:.0f} samples/s")
        numbers = {"loss": tick.loss, "grad_norm": tick.grad_norm, "lr": tick.lr}
        line = {"step": tick.step, **numbers, "samples": tick.step * tick.samples, "samples_per_second": round(rate, 2)}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, tick.step)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        self.file.close()
        if self.board is not None:
            self.board.close()


def keep_until(path: Path, done: int) -> None:
    """Drop lines after step `done`, and a last one cut short: their steps will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= done:
                kept.append(line)
        except json.JSONDecodeError:
            break
    with whole_file(path) as half:
        half.write_text("".join(f"{line}\n" for line in kept))
