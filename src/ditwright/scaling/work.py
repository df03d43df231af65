"""Doing the runs of a study: any number of processes share them, and a kill at any moment loses no finished step.

A run belongs to whoever holds the lock of its name; locks die with their process, so what a killed one left is taken
up by the next that comes by. Under torchrun or in as many terminals, every process calls the same function.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ..pipeline.fid import locked
from ..run import train
from ..train.fit import NonFinite
from ..train.log import say
from ..train.parallel import World
from ..train.precision import resolve
from .fit import keep_prediction
from .plan import Run, available_memory, check_memory, runs_of
from .results import DIVERGED, SCORES
from .score import Referee, referee_of, score, write_json
from .study import HELD_OUT, Study, settle

LOCKS = ".locks"
PATIENCE = 2.0  # seconds between looks at what other processes are doing


def run_study(study: Study, folder: Path, device: torch.device) -> None:
    """Do every run that is not done yet; before the held-out network is trained, its prediction is written down.

    UserError where a run cannot fit into memory, or where the folder holds another study.
    """
    runs = runs_of(study)
    check_memory([run for run in runs if not is_done(folder / run.name)], available_memory(device))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        study = settle(study, folder, lambda: resolve("auto", device))
        referee = referee_of(study, folder, device)
    runs = runs_of(study, runs[0].space)

    def do(run: Run) -> None:
        say(f"run {runs.index(run) + 1} of {len(runs)}")
        train_and_score(run, study, referee, folder, device)

    share([run for run in runs if run.role != HELD_OUT], folder, do)
    last = [run for run in runs if run.role == HELD_OUT]
    if last:
        with locked(folder):
            if not any((folder / run.name).exists() for run in last):
                keep_prediction(study, folder, last[0])
    share(last, folder, do)


def train_and_score(run: Run, study: Study, referee: Referee | None, folder: Path, device: torch.device) -> None:
    """One run from wherever it is to its scores. One that leaves the numbers is noted as such, and not tried again."""
    try:
        checkpoint = train(run.config, folder / run.name, World(device))
    except NonFinite as error:
        say(f"{run.name} is left out: {error}")
        write_json(folder / run.name / DIVERGED, {"why": str(error)})
        return
    score(run, study, referee, folder / run.name, checkpoint, device)


def is_done(output: Path) -> bool:
    """Whether a run has come to its end, good or bad."""
    return (output / SCORES).exists() or (output / DIVERGED).exists()


def share(runs: Sequence[Run], folder: Path, do: Callable[[Run], None]) -> None:
    """Do all runs that nobody else is doing; returns when every one is done, whoever did it."""
    waits = False
    while left := [run for run in runs if not is_done(folder / run.name)]:
        did = False
        for run in left:
            with claim(folder / LOCKS, run.name) as mine:
                if mine and not is_done(folder / run.name):
                    do(run)
                    did = True
        if not did:
            if not waits:
                say(f"waiting for other processes, which are at {', '.join(run.name for run in left)}")
            waits = True
            time.sleep(PATIENCE)


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process holds a name now; it gives it back in the end, even by dying."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
