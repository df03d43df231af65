"""Faults that happen to runs of several processes."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fault_hooks import POISONED
from fault_runs import (
    EVERY,
    STEPS,
    Moments,
    assert_close,
    finished,
    harm,
    lines,
    noted,
    saved,
    straight,
    torchrun,
    train,
    went_on,
)

SHARDS = ("--parallel.shard", 2)


def one_rank_of_two_killed(folder: Path, chance: random.Random) -> Moments:
    """Under torchrun with elastic restarts: the others are started again with it, and go on from the last save.

    With copies of the weights, and with a half of them on each.
    """
    whole, steps = straight(folder, 120), 120
    for name, more in (("copies", ()), ("shards", SHARDS)):
        run, rank, aim = folder / name, chance.randrange(2), chance.randrange(10, 60)
        going = torchrun(run, *more, steps=steps, restarts=1)
        wait_until(lambda: noted(run) >= aim or going.poll() is not None)  # noqa: B023 (used at once)
        victim = workers(going.pid)[rank]
        os.kill(victim, signal.SIGKILL)
        said = going.communicate(timeout=600)[0]
        began = [int(found) for found in re.findall(r"^going on at step (\d+) ", said, re.MULTILINE)]
        assert len(began) == 1, said
        assert began[0] >= (aim - 1) // EVERY * EVERY, f"{aim} steps were noted: {said}"
        assert saved(run)[-1] == steps, said  # the exit code is not judged: FSDP2 over gloo may abort on its way out
        assert_close(run, whole)
        yield f"{name}: rank {rank} after step {aim}; restarted by torchrun at step {began[0]}"


def one_two_one(folder: Path, chance: random.Random) -> Moments:
    """One process, then two, then one: the same sequence of samples, noises and times."""
    whole, run = straight(folder), folder / "run"
    first, second = sorted(chance.sample(range(2, STEPS - 2), 2))
    train(run, steps=first).ok()
    going = torchrun(run, steps=second)
    said = going.communicate(timeout=600)[0]
    assert saved(run)[-1] == second, said
    finished(run, second, STEPS)
    assert_close(run, whole)
    yield f"2 processes from step {first} to {second}"


def damaged_shards(folder: Path, chance: random.Random) -> Moments:
    """A run of two processes with a half of the weights each, and a shard of its newest checkpoint: likewise.

    It is gone on with by two processes, then by one.
    """
    whole, made = straight(folder), folder / "made"
    said = torchrun(made, *SHARDS, "--log.keep", 3, steps=9).communicate(timeout=600)[0]
    assert saved(made) == [3, 6, 9], said
    for damage in ("missing", "truncated", "bit flipped"):
        run = folder / damage
        shutil.copytree(made, run)
        name, where = harm(run / "checkpoints" / "step-00000009", damage, chance, among="train.dcp/*")
        if damage == "missing":
            said = torchrun(run, *SHARDS).communicate(timeout=600)[0]
            assert went_on(said, 6), said
        else:
            said = finished(run, 6, STEPS).said
        assert f"step-00000009/{name}" in said.replace("'", ""), said
        assert "the checkpoint before it is step-00000006" in said, said
        assert saved(run)[-1] == STEPS, said
        assert_close(run, whole)
        yield f"{damage}: {name} {where}"


def nan_on_one_rank_of_two(folder: Path, chance: random.Random) -> Moments:
    """Both leave the step out, and the gradient is named. Copies of the weights all get it; a shard keeps it."""
    step, options = chance.randrange(5, 15), ("--optim.skip_nonfinite", 1)
    one = folder / "one"
    train(one, *options, plan={"nan": [step]}).ok()
    for name, more in (("copies", ()), ("shards", SHARDS)):
        run, rank = folder / name, chance.randrange(2)
        said = torchrun(run, *options, *more, plan={"nan": [step], "rank": rank}).communicate(timeout=600)[0]
        assert saved(run)[-1] == STEPS, said
        assert [line["step"] for line in lines(run) if "skipped" in line] == [step], said
        where = ", on process 1" if more and rank else ""
        assert f"step {step} is nan; first non-finite gradient: {POISONED!r}{where}\n" in said, said
        assert_close(run, one)
        yield f"{name}: step {step}, rank {rank}"


def wait_until(ready: Callable[[], bool], within: float = 600) -> None:
    end = time.monotonic() + within
    while not ready():
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.005)


def workers(agent: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for number in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        variables = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
        ranks = [word.removeprefix(b"RANK=") for word in variables if word.startswith(b"RANK=")]
        found |= {int(rank): int(number) for rank in ranks}
    return [found[rank] for rank in sorted(found)]
