"""Prepares a folder in forks of itself, some of which are killed. Run by test_prepare.py, in a process of its own, as

python prepare_attempts.py PICTURES OUTPUT SEED

OUTPUT/straight: one process, undisturbed. OUTPUT/killed: two processes at a time, killed at random moments until they
are done. OUTPUT/together: three processes at once. Prints how many parts there were after each kill, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from ditwright.codec.config import CodecConfig
from ditwright.data.sources import open_source
from ditwright.prepare import PrepareConfig, prepare

CONFIG = PrepareConfig(size=16, shard_size=4, workers=2)


def in_forks(pictures: str, output: Path, count: int) -> list[int]:
    """The ids of processes that prepare a folder together and leave without a word."""
    forks = []
    for rank in range(count):
        if pid := os.fork():
            forks.append(pid)
            continue
        status = 1
        try:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
            prepare(open_source(pictures), CodecConfig("pixels"), output, CONFIG, name="pictures")
            status = 0
        finally:
            os._exit(status)
    return forks


def ended(pid: int) -> bool:
    """Whether a process is over, its status left to be read."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def status(pid: int) -> int:
    """0 where a process came to its end, -9 where it was killed. Anything else is an error."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"an attempt left with {code}"
    return code


def done(output: Path) -> int:
    """How many parts are done."""
    return len(list(output.glob("shard-*.json")))


def killed(pictures: str, output: Path, chance: random.Random) -> list[int]:
    """Kill both processes a few parts and a moment after each start. Returns what was done at each of their ends."""
    kept = [0]
    while True:
        forks, aim = in_forks(pictures, output, 2), kept[-1] + chance.randrange(1, 6)
        while not all(map(ended, forks)) and done(output) < aim:
            time.sleep(0.0005)
        for pid in forks:
            time.sleep(chance.uniform(0, 0.005))
            os.kill(pid, signal.SIGKILL)
        codes = [status(pid) for pid in forks]
        if not any(codes):
            return kept
        kept.append(done(output))


if __name__ == "__main__":
    pictures, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    for name, count in (("straight", 1), ("together", 3)):
        assert [status(pid) for pid in in_forks(pictures, folder / name, count)] == [0] * count
    print(json.dumps(killed(pictures, folder / "killed", random.Random(seed))))
