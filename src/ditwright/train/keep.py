"""The checkpoints of a run: which is the newest whole one, which are the best, and what is removed.

RUN/checkpoints/step-*/       whole when written: sizes and SHA-256 of its files are in its checksums.json
RUN/checkpoints/damaged-*/    found to be otherwise later, and passed over; for a person to look at
RUN/best                      leads to the best of them by log.best_by, where log.keep_best is given

Of the newest two losses that leapt (log.spike), the checkpoint before is kept too: `ditwright replay` begins with it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..files import CHECKSUMS, damage
from .config import LogConfig
from .state import FACTS, TENSORS, checkpoints, read_facts

SEALED = "sealed"  # a fact of every checkpoint that has checksums: without them it is not whole


def newest_whole(run: Path, weights: str, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is as it was written, None where there is none at all.

    Newer ones are named, and set aside. UserError where there are some and none is whole. `weights`: the file that
    holds the average.
    """
    wrong: dict[Path, str] = {}
    for path in reversed(checkpoints(run)):
        if not (why := fault(path, weights)):
            break
        wrong[path] = why
    else:
        if not wrong:
            return None
        told = "; ".join(f"{path.name}/{why}" for path, why in wrong.items())
        raise UserError(f"no checkpoint of {str(run)!r} is whole: {told}; bring one back, or choose another --output")
    for damaged, why in wrong.items():
        aside = damaged.with_name(damaged.name.replace("step", "damaged"))
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(damaged, aside)
        say(f"{damaged.name}/{why}: set aside as {aside.name}; the checkpoint before it is {path.name}")
    return path


def fault(checkpoint: Path, weights: str) -> str:
    """The first file of a checkpoint that is not as it was written, and how; "" where it is whole.

    One that was written before there were checksums is judged by what its files tell of themselves.
    """
    if (why := damage(checkpoint)) or (checkpoint / CHECKSUMS).exists():
        return why
    try:
        facts = read_facts(checkpoint)
    except UserError as error:
        return f"{FACTS} is missing or damaged ({error.__cause__})"
    for name in (TENSORS, weights):
        try:
            with safe_open(checkpoint / name, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{name} is missing or damaged ({error})"
    return f"{CHECKSUMS} is missing" if SEALED in facts else ""


def best(run: Path, log: LogConfig) -> list[Path]:
    """The checkpoints that `log.keep_best` keeps, the best first, of equals the earlier."""
    sign = 1 if log.best_is == "lowest" else -1
    found = [(sign * score, path) for path in checkpoints(run) if math.isfinite(score := score_of(path, log.best_by))]
    return [path for _, path in sorted(found)[: log.keep_best]]


def score_of(checkpoint: Path, name: str) -> float:
    """What was measured at a checkpoint's step; NaN where that was not, or cannot be read any more."""
    try:
        facts = read_facts(checkpoint)
    except UserError:  # a damaged one is nobody's best, and `newest_whole` names it when it is needed
        return math.nan
    scores = facts.get("scores", {}) if isinstance(facts, dict) else {}
    score = scores.get(name) if isinstance(scores, dict) else None
    return float(score) if isinstance(score, (int, float)) else math.nan


def is_among_best(run: Path, log: LogConfig, score: float) -> bool:
    """Whether a checkpoint with this score would be kept for it."""
    if not log.keep_best or not math.isfinite(score):
        return False
    kept, sign = best(run, log), 1 if log.best_is == "lowest" else -1
    return len(kept) < log.keep_best or sign * score < sign * score_of(kept[-1], log.best_by)


def before(run: Path, steps: Sequence[int]) -> list[Path]:
    """For each of these steps the newest checkpoint that has not seen it, where there is one."""
    saved = {int(path.name[5:]): path for path in checkpoints(run)}
    return [saved[max(older)] for step in steps if (older := [at for at in saved if at < step])]


def forget_others(run: Path, log: LogConfig, spikes: Sequence[int] = ()) -> None:
    """Remove all checkpoints but the newest few, the best few and those before some steps whose loss leapt.

    What a killed process left half-written is removed too.
    """
    kept, pinned = best(run, log), before(run, spikes)
    if kept:
        link = run / ".best.half"
        link.unlink(missing_ok=True)
        link.symlink_to(kept[0].relative_to(run))
        os.replace(link, run / "best")
    elif (run / "best").is_symlink():
        (run / "best").unlink()
    folder = run / "checkpoints"
    _remove_hidden(folder)
    for path in checkpoints(run)[: -log.keep]:
        if path not in (*kept, *pinned):
            os.replace(path, folder / f".{path.name}.gone")  # one that is removed in part must not be taken for whole
    _remove_hidden(folder)


def _remove_hidden(folder: Path) -> None:
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)
