"""How long commands take to start: each in a fresh process, beside an interpreter that does nothing.

The processes are Python's own (`multiprocessing`, spawn): this package starts no programs.
"""

from __future__ import annotations

import io
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from multiprocessing import resource_tracker
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import torch

    from .contest import Contest
    from .plan import Plan

NOTHING = "an interpreter alone"


def startup(plan: Plan, device: torch.device) -> Contest:
    """The plan's commands."""
    from .contest import Contest, Entry, Turn
    from .peers import OURS

    commands: dict[str, Callable[[], object]] = {NOTHING: int, **plan.commands}
    entries = [
        Entry(OURS, partial(Turn, partial(alone, name, command)), what=name) for name, command in commands.items()
    ]
    notes = ("Seconds from the start of a process to its end. Files have been read before, so they are in memory.",)
    return Contest("startup", "commands", entries, plan.rounds, plan.seconds, notes=notes)


def alone(name: str, command: Callable[[], object]) -> None:
    """Run a command in a process of its own. UserError where it fails."""
    target, args = (int, ()) if command is int else (quietly, (command,))  # of nothing, ours neither
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    with no_main(), no_interrupts():
        process.start()
    try:
        process.join()
    finally:
        process.terminate()  # where Ctrl-C ended the wait; otherwise it is over
        process.join()
    code = process.exitcode
    process.close()
    if code:
        raise UserError(f"{name} ended with exit code {code}")


def quietly(command: Callable[[], object]) -> None:
    """What the process does."""
    with redirect_stdout(io.StringIO()):
        done = command()
    sys.exit(done if isinstance(done, int) else 0)


@contextmanager
def no_interrupts() -> Iterator[None]:
    """A new process does not hear Ctrl-C, of which it would print a traceback; this one hears it afterwards."""
    resource_tracker.ensure_running()  # which undoes the mask where it is what begins it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def no_main() -> Iterator[None]:
    """A new process imports what the present one was started with; that is not to be timed."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
