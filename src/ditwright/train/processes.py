"""Processes of one machine that train together, started from here and not by torchrun.

A small network on a CPU gains more from a process per core than from threads: its tensors are too small to be shared
out, and with threads every operation waits for the slowest (docs/scenes.md has the measurement).
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import util
from typing import Any

import torch

MOST = 8
GONE = ("closed by peer", "reset by peer", "Broken pipe", "Socket closed", "got 0 bytes", "remote process exited")
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # which a process reads as it starts: fewer pages to look up


def at_most(batch_size: int) -> int:
    """How many processes this machine's CPU should train batches of a size with; 1 where there is a GPU."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(count for count in range(1, min(cores, MOST) + 1) if batch_size % count == 0)


def together(count: int, work: Callable[..., Any], *args: Any) -> None:
    """`work(*args)` in `count` processes that find each other by torchrun's variables; in this one where it is one.

    `work` is a function of a module and `args` are plain data. Where one process leaves by SystemExit or fails, the
    others are stopped, and this one leaves with the same code; where one is killed, it says so.
    """
    if count == 1:
        work(*args)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.setdefault(*HUGE_PAGES)
    try:
        torch.multiprocessing.spawn(_member, (count, port, work, args), nprocs=count)
    except torch.multiprocessing.ProcessExitedException as left:
        if left.exit_code < 0:
            ended = f"process {left.error_index} of {count} was ended by {left.signal_name}"
            print(f"ditwright: error: {ended}; what was saved is whole", file=sys.stderr)
            raise SystemExit(128 - left.exit_code) from None
        raise SystemExit(left.exit_code) from None


def _member(rank: int, count: int, port: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    try:
        work(*args)
    except RuntimeError as error:
        if line := lost(error):
            raise SystemExit(f"ditwright: error: {line}") from None
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    util._exit_function()  # gives back what would be told to leak: tqdm's locks
    os._exit(0)  # the work is done and saved; gloo's threads abort now and then while an interpreter is taken down


def lost(error: RuntimeError) -> str:
    """A line for a failure of torch that tells that another process is gone, or what leads to it; else nothing.

    Its words are all that there is to go by: gloo's failures have no kind of their own.
    """
    reason = next((words for words in GONE if words in str(error)), "")
    if not reason or os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    name = f"process {os.environ.get('RANK', '0')} of {os.environ['WORLD_SIZE']}"
    return (
        f"another process of this run is gone, as {name} was told ({reason}); what was saved is whole: where torchrun "
        "does not start them again, the same command goes on"
    )
