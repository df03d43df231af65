"""Trains in forks of itself that die on the way. Run by test_kills.py, in a process of its own, as

python attempts.py moments|operations FOLDER SEED OPTIONS...

moments: one run, killed at random moments until it is done. operations: many short runs; run n is killed before its
n-th change of the disk, then done again to its end. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from ditwright.config import merge, overrides
from ditwright.recipes import RECIPES
from ditwright.run import train
from ditwright.train.state import checkpoints

DISK = ("fsync", "replace", "unlink", "rmdir", "mkdir")
Work = Callable[[], object]


def in_a_fork(work: Work) -> int:
    """The id of a process that does some work and leaves without a word."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def finished(pid: int) -> bool:
    """Whether the process came to its end; False if it was killed. Anything else is an error."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"an attempt left with {status}"
    return status == 0


def ended(pid: int) -> bool:
    """Whether a process is over, its status left to be read."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def die_at(number: int) -> None:
    """Let this process be killed just before its n-th change of the disk, 0 first."""
    changes = count()

    def watched(real: Callable) -> Callable:
        def change(*args: object, **kwargs: object) -> object:
            if next(changes) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return change

    for name in DISK:
        setattr(os, name, watched(getattr(os, name)))


def moments(run: Path, work: Work, seed: int) -> list[int]:
    """Kill one run a few steps and a moment after each start. Returns what it had kept at each of its ends."""
    chance, kept = random.Random(seed), [0]
    while True:
        pid, aim = in_a_fork(work), kept[-1] + chance.randrange(1, 10)
        while not ended(pid) and noted(run) < aim:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        if finished(pid):
            return kept
        kept.append(max((int(path.name[5:]) for path in checkpoints(run)), default=0))


def noted(run: Path) -> int:
    """How many steps a run has noted."""
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def operations(folder: Path, go: Callable[[Path], object]) -> int:
    """Kill a run at every change of the disk that it makes. Returns how many there are."""
    for number in count():
        run = folder / f"killed-{number:03d}"
        if finished(in_a_fork(lambda: (die_at(number), go(run)))):  # noqa: B023 (used at once)
            return number
        assert finished(in_a_fork(lambda: go(run)))  # noqa: B023


if __name__ == "__main__":
    mode, folder, seed, *words = sys.argv[1:]
    config = merge(RECIPES["digits"](), overrides(words))
    train(config, Path(folder) / "straight")
    if mode == "moments":
        killed = Path(folder) / "killed"
        print(json.dumps(moments(killed, lambda: train(config, killed), int(seed))))
    else:
        print(json.dumps(operations(Path(folder), lambda run: train(config, run))))
