"""What goes wrong inside a process of `ditwright`, by plan: it kills itself at a moment, its clock runs backwards, ...

python fault_hooks.py VERB ...   is `ditwright VERB ...` with the plan that the variable FAULTS holds as JSON:

{"kill": ["save", n, s]}      SIGKILL s seconds after its n-th save began, 0 first, and before the next one begins
{"kill": ["rename", n, 0|1]}  SIGKILL just before, or just after, the n-th checkpoint takes its place
{"nan": [steps], "times": n}  a NaN in a gradient of these steps, at most n times in all
{"rank": n}                   of the processes, these two happen to the n-th, not to the main one
{"slow": s}                   every save takes s seconds longer
{"file": n}                   no file may grow beyond n bytes (RLIMIT_FSIZE), as on a disk that is full
{"clock": seed}               every clock of Python's `time` jumps backwards now and then
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from ditwright.train import job

POISONED = "net.blocks.1.mlp.x.fc1.weight"


def install(plan: dict[str, Any]) -> None:
    """Let what a plan says happen in this process."""
    chosen = plan.get("rank", 0) == int(os.environ.get("RANK", 0))
    if "kill" in plan and chosen:
        kind, number, moment = plan["kill"]
        {"save": kill_in_save, "rename": kill_at_rename}[kind](number, moment)
    if "nan" in plan and chosen:
        poison(set(plan["nan"]), plan.get("times", 10**9))
    if "slow" in plan:
        before_saves(lambda number: time.sleep(plan["slow"]))
    if "file" in plan:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["file"], resource.RLIM_INFINITY))
    if "clock" in plan:
        turn_back_clocks(random.Random(plan["clock"]))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_saves(act: Callable[[int], object]) -> None:
    """Do something before every save, told its number, and when the one before it is there."""
    numbers, real = count(), job.save

    def save(asked: job.Job, *args: Any) -> None:
        asked.saves.finish()
        act(next(numbers))
        real(asked, *args)

    job.save = save


def kill_in_save(number: int, after: float) -> None:
    def act(n: int) -> None:
        if n == number:
            threading.Timer(after, die).start()
        elif n > number:
            time.sleep(60)  # the end comes before this save

    before_saves(act)


def kill_at_rename(number: int, side: int) -> None:
    numbers, real = count(), os.replace

    def replace(old: Any, new: Any, **kwargs: Any) -> None:
        hit = Path(new).name.startswith("step-") and next(numbers) == number
        if hit and side == 0:
            die()
        real(old, new, **kwargs)
        if hit:
            die()

    os.replace = replace


def poison(steps: set[int], times: int) -> None:
    """Put a NaN into one gradient of some steps, so often at most: a fault that passes, not one of the data.

    With copies of the weights all processes get it; with shards it stays in that of this process.
    """
    real, left = job.fit, [times]

    def fit(denoiser: Any, loss: Any, batches: Iterator[Any], optim: Any, **settings: Any) -> Any:
        now = [settings["done"] * settings["accumulate"]]  # batches taken

        def counted() -> Iterator[Any]:
            for batch in batches:
                now[0] += 1
                yield batch

        def spoil(grad: Any) -> Any:
            if -(-now[0] // settings["accumulate"]) not in steps or left[0] == 0:
                return grad
            left[0] -= 1
            spoiled = grad.clone()
            spoiled.view(-1)[7] = float("nan")
            return spoiled

        def spoilt_norm(grads: list[Any]) -> Any:  # no hook is called of a weight in shards
            mine = weight.grad.to_local()
            mine.copy_(spoil(mine))
            return norm(grads)

        weight, norm = dict(getattr(denoiser, "module", denoiser).named_parameters())[POISONED], settings["norm"]
        if hasattr(weight, "to_local"):
            yield from real(denoiser, loss, counted(), optim, **{**settings, "norm": spoilt_norm})
            return
        handle = weight.register_hook(spoil)
        try:
            yield from real(denoiser, loss, counted(), optim, **settings)
        finally:
            handle.remove()

    job.fit = fit


def turn_back_clocks(chance: random.Random) -> None:
    back = [0.0]

    def turned(real: Callable[[], float]) -> Callable[[], float]:
        def clock() -> float:
            if chance.random() < 0.2:
                back[0] += chance.choice((0.001, 1.0, 3600.0))
            return real() - back[0]

        return clock

    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, turned(getattr(time, name)))


if __name__ == "__main__":
    from ditwright.cli.main import main

    install(json.loads(os.environ.get("FAULTS", "{}")))
    sys.exit(main(sys.argv[1:]))
