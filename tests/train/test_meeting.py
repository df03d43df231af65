"""Processes that are started again meet each other, whatever those before them left behind."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from started import noted, torchrun

from ditwright.train.meeting import agreed, meeting
from ditwright.train.state import checkpoints


def test_each_time_there_is_another_name_that_all_have():
    """One of the processes comes late: what the others find of it is from the time before."""
    store = dist.HashStore()

    def comes(rank, late):
        time.sleep(0.3 * (rank == late))
        return agreed(store, rank, 3, 20)

    names = []
    with ThreadPoolExecutor(3) as pool:
        for late in (None, 1, 0):
            found = set(pool.map(comes, range(3), [late] * 3))
            assert len(found) == 1
            names += found
    assert len(set(names)) == 3


def test_fewer_processes_than_before_meet_too():
    store = dist.HashStore()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda rank: agreed(store, rank, 3, 20), range(3)))
        assert len(set(pool.map(lambda rank: agreed(store, rank, 2, 20), range(2)))) == 1


def test_one_that_never_comes_is_told():
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: agreed(store, rank, 2, 20), range(2)))
    with pytest.raises(RuntimeError, match=r"the 2 processes of this run did not find each other within 0\.3 s"):
        agreed(store, 0, 2, 0.3)


def test_without_torchrun_they_meet_as_torch_has_it(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert meeting(0, 2) == {}


DIES = """
import os, signal, sys, time
from ditwright.cli.main import main
from ditwright.train import job

rank, restart, real = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], job.ticks

def ticks(*args, **more):
    for tick in real(*args, **more):
        if (rank, restart, tick.step) == ("1", "0", 5):
            os.kill(os.getpid(), signal.SIGKILL)
        yield tick

job.ticks = ticks
if (rank, restart) == ("1", "1"):
    time.sleep(4)  # what this process left when it was killed is found first
main(sys.argv[1:])
"""


@pytest.mark.parametrize("more", ["", "--parallel.shard 2"])
def test_a_process_that_was_killed_is_started_again_with_the_others(more, tiny_words, tmp_path):
    """With one restart, so that the first has to do."""
    (tmp_path / "dies.py").write_text(DIES)
    words = [*tiny_words, "--steps", "9", *more.split(), "--output", str(tmp_path / "run")]
    script = ["--max-restarts=1", tmp_path / "dies.py"]
    done = torchrun(2, "train", "digits", *words, script=script)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000006", "step-00000009"], done.stderr
    assert "going on at step 3 " in done.stderr
    assert len(noted(tmp_path / "run")) == 9
