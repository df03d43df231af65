"""A process of a run that stalls is named, with the stack that it is stuck in. Each process watches itself.

RUN/stalls/rank-K.txt     the stacks of all threads of process K, for every time that it stalled
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from traceback import StackSummary
from types import TracebackType

from .log import say

PACKAGE = Path(__file__).parents[1]
BATCHES = "batches"  # the thread of data/ahead.py
STDERR = 2  # the descriptor: it is there whatever sys.stderr is
LONGER = 10  # times as long as a step a measurement, a preview or a save may take


class Watchdog:
    """Speaks up when the thread that made it ends no step for `after` seconds: once a stall, and when it is over.

    A thread of its own looks, so a step may be stuck in any call that lets other threads run, as waiting, reading and
    kernels do. Where a call lets none run, faulthandler, which needs no leave, writes the stacks to stderr after twice
    the time. `after` 0: nobody looks.

    What is known to take its time, such as a measurement, is no stall before LONGER times that; the first process says
    once that it is at it. The others, which wait for it then, have turned to it as well.
    """

    def __init__(self, after: float, run: Path, *, rank: int = 0, size: int = 1, done: int = 0):
        """`rank` of `size` processes; `done`: steps that the run has behind it."""
        self.after, self.path = after, run / "stalls" / f"rank-{rank}.txt"
        self.name = f"process {rank} of {size} (pid {os.getpid()} on {socket.gethostname()})"
        self.alone, self.first = size == 1, rank == 0
        self.trains = threading.get_ident()
        self.last = (time.monotonic(), done, "")  # since when it is at it, steps done, and what it is
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def beat(self, step: int, work: str = "") -> None:
        """`step` steps are done; `work`: what all processes turn to before the next, such as "saving"."""
        self.last = (time.monotonic(), step, work)

    def __enter__(self) -> Watchdog:
        if self.after:
            self.beat(self.last[1])
            faulthandler.dump_traceback_later(2 * self.after, file=STDERR)  # the first look may come too late
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.over.set()
        if self.after:
            self.thread.join(timeout=5)
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        told: tuple[float, int, str] | None = None
        said = self.last
        while not self.over.wait(min(1.0, self.after / 4)):
            faulthandler.dump_traceback_later(2 * self.after, file=STDERR)
            began, step, work = last = self.last
            idle = time.monotonic() - began
            if work and self.first and idle >= self.after and last != said:
                say(f"{self.name} has been {work} for {idle:.0f} s, after step {step}")
                said = last
            if told is None and idle >= self.after * (LONGER if work else 1):
                self._tell(step, idle, work)
                told = last
            elif told is not None and last != told:
                self._tell_of_the_end(told)
                told = None
        if told is not None and self.last != told:  # the run was over before the next look
            self._tell_of_the_end(told)

    def _tell_of_the_end(self, told: tuple[float, int, str]) -> None:
        began, step, _ = self.last
        say(f"{self.name} goes on after {began - told[0]:.0f} s: step {step} is done")

    def _tell(self, step: int, idle: float, work: str) -> None:
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = {ident: traceback.extract_stack(frame) for ident, frame in frames.items()}
        made = [stacks[ident] for ident, name in names.items() if name == BATCHES and ident in stacks]
        words = doing(stacks[self.trains], made, alone=self.alone)
        what = f"it has been {work}" if work else "no step has ended"
        line = f"{self.name} stalls: {what} for {idle:.0f} s, since step {step}; it is {words}"
        text = [f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n"]
        for ident in sorted(stacks, key=lambda ident: ident != self.trains):
            text += [f"\nthread {names.get(ident, ident)}\n", *stacks[ident].format()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("".join(text) + "\n")
            say(f"{line}; its stacks are in {self.path}")
        except OSError as error:  # a full disk may be what it waits for
            say(f"{line}; its stacks could not be written to {self.path} ({error.strerror or error}):\n{''.join(text)}")


def doing(stack: StackSummary, batches: list[StackSummary], *, alone: bool = True) -> str:
    """What a thread that trains is at, in words: waiting for other processes, for its batches, or computing.

    `batches`: the stacks of threads that make them; `alone`: there are no other processes.
    """
    inner = stack[-1]
    if "/torch/distributed/" in inner.filename:
        return f"waiting for the other processes in {placed(stack)}"
    if batches and any(frame.name == "ahead" and frame.filename == str(PACKAGE / "data/ahead.py") for frame in stack):
        return "waiting for its batches, which are in " + " and ".join(map(placed, batches))
    if not alone and inner.name == "_engine_run_backward":
        return f"in {placed(stack)}, where gradients are computed and the other processes waited for"
    return f"in {placed(stack)}"


def placed(stack: StackSummary) -> str:
    """The innermost function of a stack, and the innermost of this package where that is another."""
    ours = [frame for frame in stack if PACKAGE in Path(frame.filename).parents]
    text = _named(stack[-1])
    return text if not ours or ours[-1] is stack[-1] else f"{text}, called by {_named(ours[-1])}"


def _named(frame: traceback.FrameSummary) -> str:
    return f"{frame.name} ({'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno})"
