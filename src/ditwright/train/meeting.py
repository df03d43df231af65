"""Processes that torchrun starts again find each other, and not those that were there before them.

torchrun keeps one store over all its restarts and tells nobody which restart it is on all machines alike (torch 2.13;
pytorch issue 135712). What lies there under a name, such as where a process listens, may be left by one that is gone:
whoever reads it before its successor has written is refused, or waits for half an hour. So those that are there now
first agree on a name of their own, and meet under it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from typing import Any

import torch.distributed as dist

WITHIN = 600.0  # seconds that processes wait for each other
POLL = 0.05


def meeting(rank: int, size: int) -> dict[str, Any]:
    """Where `size` processes meet, for torch's init_process_group; nothing where torchrun did not start them."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return {"store": dist.PrefixStore(agreed(store, rank, size), store), "rank": rank, "world_size": size}


def agreed(store: dist.Store, rank: int, size: int, within: float = WITHIN) -> str:
    """A name that the `size` processes that are there now have in common, and none before them had.

    Each leaves a mark of its own in place of its predecessor's, and says yes to all the marks that it sees. Nobody says
    yes to a mark of its predecessor, so where all have said yes to the same marks, those are of the living.
    """
    marks, end = [f"ditwright/here/{other}" for other in range(size)], time.monotonic() + within
    store.set(marks[rank], secrets.token_hex(16))
    while time.monotonic() < end:
        if store.check(marks):
            name = hashlib.sha256(b" ".join(store.multi_get(marks))).hexdigest()
            said = [f"ditwright/{name}/{other}" for other in range(size)]
            store.set(said[rank], "yes")
            if store.check(said):
                return f"ditwright/{name}"
        time.sleep(POLL)
    raise RuntimeError(f"the {size} processes of this run did not find each other within {within:g} s")
