"""A process of a run that stalls is named, with the stack that it is stuck in. Each process watches itself.

One that is frozen, or whose machine is gone, says nothing: those that wait for it name it, as its beats have stopped.

RUN/stalls/rank-K.txt     the stacks of all threads of process K, for every time that it stalled
RUN/stalls/beat-K         who process K is; touched while it lives, gone when it leaves
"""

from __future__ import annotations

import errno
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
BATCHES = "batches"  # the thread of train/ahead.py
STDERR = 2  # the descriptor: it is there whatever sys.stderr is
LONGER = 10  # times as long as a step a measurement, a preview or a save may take
BEATS = 20  # in the time after which a stall is told, or fewer: one at every look
NAMED = 8  # processes in a line
TOGETHER = 60  # seconds within which the processes of a run begin


class Watchdog:
    """Speaks up when the thread that made it ends no step for `after` seconds: once a stall, and when it is over.

    A thread of its own looks, so a step may be stuck in any call that lets other threads run, as waiting, reading and
    kernels do. Where a call lets none run, faulthandler, which needs no leave, writes the stacks to stderr after twice
    the time. `after` 0: nobody looks.

    What is known to take its time, such as a measurement, is no stall before LONGER times that; the first process says
    once that it is at it. The others, which wait for it then, have turned to it as well. But where one that should take
    part in it is not heard of, that is a stall.
    """

    def __init__(self, after: float, run: Path, *, rank: int = 0, size: int = 1, done: int = 0):
        """`rank` of `size` processes; `done`: steps that the run has behind it."""
        self.after, self.path = after, run / "stalls" / f"rank-{rank}.txt"
        self.name = f"process {rank} of {size} (pid {os.getpid()} on {socket.gethostname()})"
        self.beats = Beats(self.path.parent, self.name, rank=rank, size=size, after=after)
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
            self.beats.begin()
            faulthandler.dump_traceback_later(2 * self.after, file=STDERR)  # the first look may come too late
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.over.set()
        if self.after:
            self.thread.join(timeout=5)
            faulthandler.cancel_dump_traceback_later()
            self.beats.end()

    def _look(self) -> None:
        told: tuple[float, int, str] | None = None
        said, lost = self.last, ""
        while not self.over.wait(min(1.0, self.after / 4)):
            faulthandler.dump_traceback_later(2 * self.after, file=STDERR)
            beaten = self.beats.touch()
            began, step, work = last = self.last
            idle = time.monotonic() - began
            if work and self.first and idle >= self.after and last != said:
                say(f"{self.name} has been {work} for {idle:.0f} s, after step {step}")
                said = last
            found = self.beats.silent() if beaten and idle >= self.after else ""
            if told is None and (found or idle >= self.after * (LONGER if work else 1)):
                lost = self.beats.silent(absent=True)
                self._tell(step, idle, work, lost)
                told = last
            elif told == last and found and not lost:  # it froze since
                say(f"{self.name} still stalls: {found}")
                lost = found
            elif told is not None and last != told:
                self._tell_of_the_end(told)
                told = None
        if told is not None and self.last != told:  # the run was over before the next look
            self._tell_of_the_end(told)

    def _tell_of_the_end(self, told: tuple[float, int, str]) -> None:
        began, step, _ = self.last
        say(f"{self.name} goes on after {began - told[0]:.0f} s: step {step} is done")

    def _tell(self, step: int, idle: float, work: str, lost: str) -> None:
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = {ident: traceback.extract_stack(frame) for ident, frame in frames.items()}
        made = [stacks[ident] for ident, name in names.items() if name == BATCHES and ident in stacks]
        words = doing(stacks[self.trains], made, alone=self.alone)
        what = f"it has been {work}" if work else "no step has ended"
        line = (
            f"{self.name} stalls: {what} for {idle:.0f} s, since step {step}; it is {words}{'; ' if lost else ''}{lost}"
        )
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


class Beats:
    """Signs of life of process `rank` of `size`, and what it sees of the others'. Alone there are none.

    Ages are told by the clock of the file system, which is one for all machines. Where the disk takes no beat, that is
    said once.
    """

    def __init__(self, folder: Path, name: str, *, rank: int, size: int, after: float):
        """`name`: of the process, for people; `after`: seconds; half of them without a beat are silence."""
        self.folder, self.name, self.rank, self.size, self.after = folder, name, rank, size, after
        self.path = folder / f"beat-{rank}"
        self.began = 0.0  # by the file system's clock
        self.beaten = self.looked = time.monotonic()
        self.mute = False  # the disk took no beat, which was said
        self.frozen = False  # this process was: it cannot judge the others, which may have been, too

    def begin(self) -> None:
        if self.size > 1:
            self._write()
            self.began = _touched(self.path)

    def touch(self) -> bool:
        """Beat, if it is time to; whether it was. To be called at every look."""
        now = time.monotonic()
        self.frozen, self.looked = now - self.looked > self.after / 2, now
        if self.size == 1 or now - self.beaten < self.after / BEATS:
            return False
        self.beaten = now
        try:
            os.utime(self.path)
        except OSError:  # somebody tidied up
            self._write()
        return True

    def silent(self, *, absent: bool = False) -> str:
        """Which of the others are not heard of, in words, and how many are; nothing where all are.

        `absent`: those without a file are named as well, which have left, or not come so far.
        """
        ranks = [] if self.size == 1 or self.frozen else [rank for rank in range(self.size) if rank != self.rank]
        lost, gone, now = [], [], _touched(self.path)
        for rank in ranks:
            path = self.folder / f"beat-{rank}"
            if not (touched := _touched(path)):
                gone += [str(rank)]
            elif (age := now - max(touched, self.began)) >= self.after / 2:  # an older one is of an earlier process
                name = _name(path) if touched >= self.began - TOGETHER else ""
                lost.append((age, name or f"process {rank} of {self.size}"))
        words = [f"{name} has not been heard of for {age:.0f} s" for age, name in sorted(lost, reverse=True)[:NAMED]]
        words += [f"{len(lost) - NAMED} more have not, either"] * (len(lost) > NAMED)
        if gone and absent:
            more = f" and {len(gone) - NAMED} more" * (len(gone) > NAMED)
            words.append(f"there is no sign of process {', '.join(gone[:NAMED])}{more} in {self.folder}")
        alive = len(ranks) - len(lost) - len(gone)
        return "; ".join([*words, *[f"alive besides: {alive}"] * (alive > 0)]) if words else ""

    def end(self) -> None:
        if self.size > 1:
            try:
                self.path.unlink(missing_ok=True)
                self.folder.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):  # other beats, stacks; gone
                    say(f"{self.path} could not be taken away ({error.strerror or error})")

    def _write(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self.name)
        except OSError as error:
            if not self.mute:
                say(
                    f"{self.path} could not be written ({error.strerror or error}): others cannot tell whether it lives"
                )
            self.mute = True


def _touched(path: Path) -> float:
    """When a file was, 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _name(path: Path) -> str:
    """Who a beat is of; nothing where it does not say."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def doing(stack: StackSummary, batches: list[StackSummary], *, alone: bool = True) -> str:
    """What a thread that trains is at, in words: waiting for other processes, for its batches, or computing.

    `batches`: the stacks of threads that make them; `alone`: there are no other processes.
    """
    inner = stack[-1]
    if "/torch/distributed/" in inner.filename:
        return f"waiting for the other processes in {placed(stack)}"
    if batches and any(frame.name == "ahead" and frame.filename == str(PACKAGE / "train/ahead.py") for frame in stack):
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
