"""What fails is a row with its reason, whenever it fails and whatever it raises; Ctrl-C ends all, quietly."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from ditwright.bench.contest import Contest, Entry, Turn, hold

CPU = torch.device("cpu")
DEAF = """
import signal, sys
from functools import partial
from ditwright.bench.startup import alone
signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and & have it ignored
alone("pressed", partial(signal.raise_signal, signal.SIGINT))
print("none heard")
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    sys.exit(130)
"""
SLOW = """
import signal, sys
from functools import partial
from pathlib import Path
from ditwright.bench.startup import alone
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    alone("slow", partial(Path.read_text, Path(sys.argv[1])))
except KeyboardInterrupt:
    sys.exit(130)
"""


def found(**made):
    """The rows of contestants by the functions that make them ready."""
    entries = [Entry(name, make) for name, make in made.items()]
    return {row.entry.peer: row for row in hold(Contest("forward", "", entries, 4, 1e-9), CPU).rows}


def raising(error, after=0):
    """Work that fails after so many calls."""
    calls = iter(range(after))

    def work():
        if next(calls, None) is None:
            raise error

    return work


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("no attribute 'norm_eps'\nand more"),
        TypeError("unexpected keyword"),
        KeyError("norm"),
        AssertionError("no"),
        NotImplementedError("not on this device"),
        RuntimeError("a kernel"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_another_package_raises_is_a_row(error):
    rows = found(good=Turn, bad=raising(error), also=Turn)
    assert rows["bad"].why == f"{type(error).__name__}: {str(error).splitlines()[0]}"
    assert {name: (len(row.times), row.why == "") for name, row in rows.items()} == {
        "good": (4, True), "bad": (0, False), "also": (4, True)
    }  # fmt: skip


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("16 GiB")], ids=repr)
@pytest.mark.parametrize("after", [0, 2, 4], ids=["warm-up", "first round", "third round"])
def test_who_fails_late_is_a_row_without_times(error, after):
    """Two calls are to warm up, and a round is a call; the others have all their rounds."""
    rows = found(good=Turn, bad=lambda: Turn(raising(error, after)), also=Turn)
    assert "does not fit into memory" in rows["bad"].why
    assert [len(rows[name].times) for name in ("good", "bad", "also")] == [4, 0, 4]


@pytest.mark.parametrize("when", [None, 0, 2], ids=["made", "warm-up", "timed"])
def test_an_interrupt_goes_through(when):
    work = raising(KeyboardInterrupt(), when or 0)
    with pytest.raises(KeyboardInterrupt):
        found(bad=work if when is None else lambda: Turn(work))


def opened(fifo):
    """The end to write to, once somebody reads; None where nobody does."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def until(happens, seconds=60):
    """What something gives as soon as that is true."""
    end = time.monotonic() + seconds
    while not (given := happens()):
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)
    return given


def test_a_command_that_is_timed_hears_no_interrupt():
    """The first of a process neither, where multiprocessing has yet to begin; the process itself does."""
    done = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("none heard\n", "", 130)


def test_an_interrupted_command_leaves_no_traceback_and_no_process(tmp_path):
    """Ctrl-C is sent to all processes of a terminal's job, those that are timed too."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = [sys.executable, "-c", SLOW, str(fifo)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as timing:
        try:
            reader = until(partial(opened, fifo))
            os.killpg(timing.pid, signal.SIGINT)
            assert (timing.communicate(timeout=60)[1], timing.returncode) == ("", 130)
        except BaseException:
            os.killpg(timing.pid, signal.SIGKILL)
            raise
    os.close(reader)
    assert until(lambda: opened(fifo) is None)
