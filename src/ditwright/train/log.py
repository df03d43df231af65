"""What a run notes as it goes: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..extras import need
from ..files import whole_file
from .config import LogConfig
from .fit import Tick


def say(line: str) -> None:
    """A line for people, beside the progress bar."""
    tqdm.write(line, file=sys.stderr)


class Found(NamedTuple):
    """What a measurement found."""

    line: dict[str, Any]  # for metrics.jsonl
    curves: dict[str, Any]  # for TensorBoard: numbers, or lists of them, by name


class Log:
    """The notes of one run that has `done` of `total` steps behind it."""

    def __init__(self, run: Path, config: LogConfig, done: int, total: int, *, flops: float = 0, peak: float = 0):
        """`flops`: of a training sample, on each device; `peak`: FLOP/s of one device. 0 where not known."""
        self.config, self.total, self.flops, self.peak = config, total, flops, peak
        keep_until(run / "metrics.jsonl", done)
        self.file = open(run / "metrics.jsonl", "a")  # noqa: SIM115 (closed by __exit__)
        self.started, self.samples = time.perf_counter(), 0
        self.board: Any = None
        if config.tensorboard:
            need("tensorboard", extra="track")
            self.board = need("torch.utils.tensorboard", extra="track").SummaryWriter(
                run / "tensorboard", purge_step=done + 1
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
        speed = {"samples_per_second": round(rate, 2)}
        if self.flops:
            speed["tflops"] = float(f"{rate * self.flops / 1e12:.4g}")
            speed["share_of_peak"] = round(rate * self.flops / self.peak, 4)
        numbers = {"loss": tick.loss, "grad_norm": tick.grad_norm, "lr": tick.lr}
        self._note(tick.step, {**numbers, "samples": tick.step * tick.samples, **speed}, numbers)

    def measured(self, step: int, found: Found) -> None:
        """Note what a measurement found, on a line of its own."""
        self._note(step, found.line, found.curves)

    def _note(self, step: int, line: dict[str, Any], curves: dict[str, Any]) -> None:
        self.file.write(json.dumps({"step": step, **line}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in curves.items():
                for i, one in enumerate(value if isinstance(value, list) else [value]):
                    self.board.add_scalar(f"{name}/{i}" if isinstance(value, list) else name, one, step)

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
