"""The checkpoints of a run: which is the newest whole one, which are the best, and what is removed.

RUN/checkpoints/step-*/       whole when written: sizes and SHA-256 of its files are in its checksums.json
RUN/checkpoints/damaged-*/    found to be otherwise later, and passed over; for a person to look at
RUN/best                      leads to the best of them by log.best_by, where log.keep_best is given

Of the newest two losses that leapt (log.spike), the checkpoint before is kept too: `ditwright replay` begins with it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..files import CHECKSUMS, damage, remove
from .config import LogConfig
from .state import FACTS, SHARDS, TENSORS, checkpoints, read_facts

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
        _set_aside(damaged, why, say, f"; the checkpoint before it is {path.name}")
    return path


def left_in(run: Path) -> str:
    """What a run that ends in an error leaves behind, in words."""
    return f"the last checkpoint in {run} is untouched" if checkpoints(run) else f"no checkpoint is in {run} yet"


def _set_aside(path: Path, why: str, say: Callable[[str], None], then: str = "") -> None:
    aside = path.with_name(path.name.replace("step", "damaged"))
    remove(aside)
    os.replace(path, aside)
    say(f"{path.name}/{why}: set aside as {aside.name}{then}")


def fault(checkpoint: Path, weights: str) -> str:
    """The first file of a checkpoint that is not as it was written, and how; "" where it is whole.

    One that was written before there were checksums is judged by what its files tell of themselves.
    """
    if why := damage(checkpoint):
        return why
    if os.path.lexists(checkpoint / CHECKSUMS):
        return _unsealed(checkpoint, weights)
    if why := doubt(checkpoint):
        return why
    for name in (TENSORS, weights):
        try:
            with safe_open(checkpoint / name, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{name} is missing or damaged ({error})"
    return ""


def _unsealed(checkpoint: Path, weights: str) -> str:
    """Which of the files that every checkpoint has its checksums leave out; "" where none. They are JSON."""
    sealed = json.loads((checkpoint / CHECKSUMS).read_bytes())
    state = next((name for name in sealed if name == TENSORS or name.startswith(f"{SHARDS}/")), TENSORS)
    lost = [name for name in (FACTS, weights, state) if name not in sealed]
    return f"{CHECKSUMS} is damaged: it lacks {lost[0]}" if lost else ""


def doubt(checkpoint: Path) -> str:
    """Why what a checkpoint tells of itself is not to be believed; "" where it is. No tensor is looked at."""
    if why := damage(checkpoint, only=(FACTS,)):
        return why
    try:
        facts = read_facts(checkpoint)
    except UserError as error:
        return f"{FACTS} is missing or damaged ({error.__cause__})"
    if not isinstance(facts, dict):
        return f"{FACTS} is damaged (it is no object)"
    return f"{CHECKSUMS} is missing" if SEALED in facts and not os.path.lexists(checkpoint / CHECKSUMS) else ""


def best(run: Path, log: LogConfig) -> list[Path]:
    """The checkpoints that `log.keep_best` keeps, the best first, of equals the earlier."""
    sign = 1 if log.best_is == "lowest" else -1
    found = [(sign * score, path) for path in checkpoints(run) if math.isfinite(score := score_of(path, log.best_by))]
    return [path for _, path in sorted(found)[: log.keep_best]]


def score_of(checkpoint: Path, name: str) -> float:
    """What was measured at a checkpoint's step; NaN where that was not, or is not to be believed any more."""
    scores = {} if doubt(checkpoint) else read_facts(checkpoint).get("scores", {})
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


def whole_best(run: Path, log: LogConfig, weights: str, say: Callable[[str], None], newest: Path) -> None:
    """Set aside, by name, those of the best that are not as they were written; `newest` was looked at before."""
    whole, found = {newest}, False
    while doubtful := [path for path in best(run, log) if path not in whole]:
        if why := fault(doubtful[0], weights):
            _set_aside(doubtful[0], why, say)
            found = True
        whole.add(doubtful[0])
    if found:
        _lead_to(run, best(run, log))


def _lead_to(run: Path, kept: list[Path]) -> None:
    """RUN/best to the first of the best; away where there is none."""
    if kept:
        link = run / ".best.half"
        link.unlink(missing_ok=True)
        link.symlink_to(kept[0].relative_to(run))
        os.replace(link, run / "best")
    elif (run / "best").is_symlink():
        (run / "best").unlink()


def forget_others(
    run: Path, log: LogConfig, spikes: Sequence[int] = (), say: Callable[[str], None] = lambda line: None
) -> None:
    """Remove all checkpoints but the newest few, the best few and those before some steps whose loss leapt.

    What a killed process left half-written is removed too. One whose facts are damaged may be any of them: it is named
    and set aside.
    """
    for path in checkpoints(run):
        if why := doubt(path):
            _set_aside(path, why, say)
    kept, pinned = best(run, log), before(run, spikes)
    _lead_to(run, kept)
    folder = run / "checkpoints"
    _remove_hidden(folder)
    for path in checkpoints(run)[: -log.keep]:
        if path not in (*kept, *pinned):
            os.replace(path, folder / f".{path.name}.gone")  # one that is removed in part must not be taken for whole
    _remove_hidden(folder)


def _remove_hidden(folder: Path) -> None:
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)
