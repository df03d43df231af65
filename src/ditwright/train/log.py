"""What a run notes as it goes: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..extras import need
from ..files import whole_file
from .config import LogConfig
from .fit import Tick
from .spikes import Spike, Spikes

NAMED = 8  # items of a spike's batch in the line for people; all of them are in metrics.jsonl
PLAIN = "grad_norm"  # is in the lines of losses, and in no others
CLOCKS = ("samples_per_second", "tflops", "share_of_peak")  # tell of the machine, not of the run
ROLLBACK = "rollback"  # an event, the only line that may come after its step was saved


def say(line: str) -> None:
    """A line for people, beside the progress bar."""
    tqdm.write(line, file=sys.stderr)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError that names no file, such as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class Found(NamedTuple):
    """What a measurement found."""

    line: dict[str, Any]  # for metrics.jsonl
    curves: dict[str, Any]  # for TensorBoard: numbers, or lists of them, by name


class Log:
    """The notes of one run that has `done` of `total` steps behind it."""

    def __init__(
        self,
        run: Path,
        config: LogConfig,
        done: int,
        total: int,
        *,
        flops: float = 0,
        peak: float = 0,
        items: Callable[[int], Sequence[int]] | None = None,
        before: Mapping[str, Any] | None = None,
    ):
        """`flops`: of a training sample, on each device; `peak`: FLOP/s of one device. 0 where not known.

        `items`: of the data, in the batches of a step; `before`: what `memory` told when the run was saved. What is
        out of the ordinary has lines with "event", without the names that others have: readers of losses pass over it.
        """
        self.run, self.config, self.total, self.flops, self.peak = run, config, total, flops, peak
        self.items, self.spikes = items, Spikes(config.spike, (before or {}).get("spikes"))
        self.started, self.samples = time.perf_counter(), 0
        self._open(done, before)
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def _open(self, done: int, before: Mapping[str, Any] | None) -> None:
        self.mark = keep_until(self.run / "metrics.jsonl", done, (before or {}).get("noted"))
        self.file = open(self.run / "metrics.jsonl", "a")  # noqa: SIM115 (closed by __exit__)
        self.board: Any = None
        if self.config.tensorboard:
            need("tensorboard", extra="track")
            self.board = need("torch.utils.tensorboard", extra="track").SummaryWriter(
                self.run / "tensorboard", purge_step=done + 1
            )

    def go_back(self, done: int, why: str, before: Mapping[str, Any] | None = None) -> None:
        """Drop what was noted after step `done`, which comes again, and note why. `before`: as in the beginning."""
        self._close()
        self._open(done, before)
        self.spikes = Spikes(self.config.spike, (before or {}).get("spikes"))
        self.bar.n = done
        self._note(done, {"event": ROLLBACK, "why": why}, {})

    def write(self, tick: Tick) -> None:
        """Note a step: the bar moves with each, the rest every so many."""
        self.samples += tick.samples
        rate = self.samples / max(1e-9, time.perf_counter() - self.started)  # a clock may go backwards
        self.bar.update()
        if tick.why:
            self._note(tick.step, {"event": "skipped", "skipped": tick.skipped, "why": tick.why}, {})
            return
        if tick.step % self.config.every == 0 or tick.step == self.total:
            self._line(tick, rate)
        if (spike := self.spikes.see(tick.step, tick.loss)) is not None:
            self._leapt(spike)

    def _line(self, tick: Tick, rate: float) -> None:
        self.bar.set_postfix_str(f"loss {tick.loss:.4f}, {rate:.0f} samples/s")
        speed = {"samples_per_second": round(rate, 2)}
        if self.flops:
            speed["tflops"] = float(f"{rate * self.flops / 1e12:.4g}")
            speed["share_of_peak"] = round(rate * self.flops / self.peak, 4)
        numbers = {"loss": tick.loss, "grad_norm": tick.grad_norm, "lr": tick.lr}
        self._note(tick.step, {**numbers, "samples": tick.step * tick.samples, **speed}, numbers)

    def _leapt(self, spike: Spike) -> None:
        items = [] if self.items is None else [int(item) for item in self.items(spike.step)]
        self._note(spike.step, {"event": "loss spike", "spike": {**asdict(spike), "items": items}}, {})
        named = ", ".join(map(str, items[:NAMED])) + f" and {len(items) - NAMED} more" * (len(items) > NAMED)
        say(
            f"loss spike at step {spike.step}: {spike.loss:.6g} is {spike.z:.1f} robust deviations above the median "
            f"{spike.median:.6g} of the steps before; items {named}; to look into it: "
            f"ditwright replay {shlex.quote(str(self.run))} --step {spike.step}"
        )

    def memory(self) -> dict[str, Any]:
        """What a checkpoint must remember of these notes."""
        return {"spikes": self.spikes.memory(), "noted": self.mark.memory()}

    def measured(self, step: int, found: Found) -> None:
        """Note what a measurement found, on a line of its own."""
        self._note(step, found.line, found.curves)

    def _note(self, step: int, line: dict[str, Any], curves: dict[str, Any]) -> None:
        self.mark.add({"step": step, **line})
        with naming(self.run / "metrics.jsonl"):
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
        self._close()

    def _close(self) -> None:
        with naming(self.run / "metrics.jsonl"):
            self.file.close()
        if self.board is not None:
            self.board.close()


class Mark:
    """What metrics.jsonl is known by later: how many lines, and their SHA-256, without the clock's; of losses, of all.

    Of the losses by themselves, because no more was remembered once.
    """

    def __init__(self, lines: Iterable[bytes] = ()):
        self.lines, self.sum = 0, hashlib.sha256()
        self.all, self.whole = 0, hashlib.sha256()
        for line in lines:
            self.add(json.loads(line))

    def add(self, line: Mapping[str, Any]) -> None:
        """One more line."""
        if PLAIN in line:
            self.lines += 1
            self.sum.update(json.dumps([line.get(key) for key in ("step", "loss", PLAIN, "lr")]).encode())
        self.all += 1
        self.whole.update(json.dumps({key: told for key, told in line.items() if key not in CLOCKS}).encode() + b"\n")

    def memory(self) -> dict[str, Any]:
        """As plain data."""
        everything = {"lines": self.all, "sha256": self.whole.hexdigest()}
        return {"lines": self.lines, "sha256": self.sum.hexdigest(), "all": everything}


def keep_until(path: Path, done: int, then: Mapping[str, Any] | None = None) -> Mark:
    """Drop lines after step `done`, whose steps will be written again; and damaged ones: the last is often cut.

    Returns the mark of what is left. `then`: its memory when that step was saved. What is not as it was is said.
    """
    lost = f"what was noted until step {done} is not all there; training does not need it"
    if not path.exists():
        if done:
            say(f"{path} is missing: {lost}")
        return Mark()
    lines, places, damaged = _read(path)
    with naming(path), whole_file(path) as half:
        kept = [lines[place] for place, step in places.items() if step <= done]
        half.write_bytes(b"".join(line + b"\n" for line in kept))
    everything = (then or {}).get("all")  # is not in what was remembered once
    count = everything["lines"] if everything else len(kept)
    mark, later = Mark(kept[:count]), [json.loads(line) for line in kept[count:]]
    saved = mark.memory()["all"]
    for told in later:
        mark.add(told)
    if damaged:
        say(
            f"{path}: line {damaged[0] + 1} is damaged or out of order and dropped ({len(damaged)} in all); "
            "training does not need it"
        )
    elif then and (mark.lines, mark.sum.hexdigest()) != (then.get("lines"), then.get("sha256")):
        say(f"{path} has {mark.lines} lines of losses, and other ones than the {then.get('lines')} saved: {lost}")
    elif everything and (saved != everything or any(told.get("event") != ROLLBACK for told in later)):
        say(f"{path} has {len(kept)} lines, and other ones than the {count} saved: {lost}")
    return mark


def last_noted(path: Path) -> int:
    """The last step that a run noted; 0 where there is none."""
    return max(_read(path)[1].values(), default=0) if path.exists() else 0


def _read(path: Path) -> tuple[list[bytes], dict[int, int], list[int]]:
    """All lines; the step of each that is whole and in order, by its place; the places of the others.

    A last line that was cut is none of either.
    """
    content = path.read_bytes()
    lines, found, keys = content.splitlines(), {}, []
    for place, line in enumerate(lines):
        try:
            told = json.loads(line)
            if type(told["step"]) is int:
                found[place] = told["step"]
                keys.append(2 * told["step"] + (PLAIN not in told))  # of a step the loss comes first, and once
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    places = list(found)
    ordered = {places[at]: found[places[at]] for at in _ascending(keys)}
    cut = bool(lines) and not content.endswith(b"\n") and len(lines) - 1 not in found
    return lines, ordered, [place for place in range(len(lines) - cut) if place not in ordered]


def _ascending(keys: Sequence[int]) -> list[int]:
    """The places of the most keys that can be left so that none comes after a higher one, and even ones once."""
    ends: list[int] = []  # of the lowest last keys of one, two, ... of them
    places: list[int] = []
    before: list[int] = []
    for place, key in enumerate(keys):
        length = bisect_right(ends, key) if key % 2 else bisect_left(ends, key)
        before.append(places[length - 1] if length else -1)
        ends[length : length + 1], places[length : length + 1] = [key], [place]
    found, place = [], places[-1] if places else -1
    while place >= 0:
        found.append(place)
        place = before[place]
    return found[::-1]
