"""A process that stalls says so itself, with the place where it is stuck, and those that wait for it say that.

Where it is frozen, they name it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from ditwright.errors import UserError
from ditwright.train import watch
from ditwright.train.config import LogConfig
from ditwright.train.watch import Watchdog, doing

STUCK = """
import ctypes, os, signal, subprocess, sys, time
from ditwright import run
from ditwright.cli.main import main

real, real_validate, [how, rank, *words] = run.batch_of, run.validate, sys.argv[1:]

def sleeps_in_a_batch(seconds):
    if how == "lock":
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # without letting other threads run
    elif how == "stop":
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        time.sleep(seconds)

def validate(parts):
    if how == "measure" and os.environ.get("RANK", "0") == rank:
        sleeps_in_a_batch(4)
    return real_validate(parts)

def batch_of(parts, data, items, places, **rest):
    if how != "measure" and places.start // parts.config.data.batch_size == 3 and os.environ.get("RANK", "0") == rank:
        sleeps_in_a_batch(4)
    return real(parts, data, items, places, **rest)

run.batch_of, run.validate = batch_of, validate
main(words)
"""


def started(how, rank, words, *, processes=1):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return command, environment, [how, str(rank), *map(str, words)]


@pytest.fixture
def stuck(tmp_path):
    """stuck("sleep", 1, words, processes=2): a run whose process 1 sleeps in a batch; what it said."""
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)

    def go(how, rank, words, *, processes=1):
        command, environment, rest = started(how, rank, words, processes=processes)
        done = subprocess.run(
            [*command, str(script), *rest], env=environment, capture_output=True, text=True, timeout=300
        )
        return done.stderr

    return go


def test_a_process_that_sleeps_in_a_batch_names_the_function_and_goes_on(stuck, tiny_words, tmp_path):
    run = tmp_path / "run"
    words = ["train", "digits", *tiny_words, "--steps", 5, "--data.prefetch", 0, "--log.stall_after", 2]
    err = stuck("sleep", 0, [*words, "--output", run])
    told = [line for line in err.splitlines() if " stalls: " in line and "sleeps_in" in line]
    assert len(told) == 1, err
    assert re.fullmatch(
        r"process 0 of 1 \(pid \d+ on \S+\) stalls: no step has ended for [2-9] s, since step 3; "
        r"it is in sleeps_in_a_batch "
        r"\(\S+/stuck.py:\d+\), called by batches \(ditwright/run.py:\d+\); its stacks are in \S+/stalls/rank-0.txt",
        told[0],
    )
    assert re.search(r"process 0 of 1 \(.*\) goes on after \d+ s: step \d is done", err)
    stacks = (run / "stalls/rank-0.txt").read_text()
    assert all(part in stacks for part in (" stalls: ", "thread MainThread", "in sleeps_in_a_batch", "in work"))
    assert (run / "checkpoints/step-00000005").is_dir()  # nothing was stopped


def test_batches_made_ahead_are_looked_for_in_their_thread(stuck, tiny_words, tmp_path):
    words = ["train", "digits", *tiny_words, "--steps", 5, "--data.prefetch", 1, "--log.stall_after", 2]
    err = stuck("sleep", 0, [*words, "--output", tmp_path / "run"])
    assert re.search(
        r"it is waiting for its batches, which are in sleeps_in_a_batch \(\S+:\d+\), called by batches", err
    )


def test_the_one_that_stalls_is_told_from_those_that_wait_for_it(stuck, tiny_words, tmp_path):
    run = tmp_path / "run"
    words = ["train", "digits", *tiny_words, "--steps", 5, "--data.prefetch", 0, "--log.stall_after", 2]
    err = stuck("sleep", 1, [*words, "--output", run], processes=2)
    assert re.search(r"process 1 of 2 \(.*\) stalls: .* since step 3; it is in sleeps_in_a_batch \(", err), err
    assert re.search(
        r"process 0 of 2 \(.*\) stalls: .* since step 3; it is in _engine_run_backward \(.*\), called by .*, "
        r"where gradients are computed and the other processes waited for",
        err,
    ), err
    assert "in sleeps_in_a_batch" in (run / "stalls/rank-1.txt").read_text()
    assert "sleeps_in_a_batch" not in (run / "stalls/rank-0.txt").read_text()
    assert "heard of" not in err  # both are alive
    assert "no sign" not in err
    assert sorted(path.name for path in (run / "stalls").iterdir()) == ["rank-0.txt", "rank-1.txt"]


def test_a_frozen_process_is_named_by_the_one_that_waits_for_it(stuck, tiny_words, tmp_path):
    """Within the set time, by its number and its id on its machine; and nobody else is."""
    run = tmp_path / "run"
    words = ["train", "digits", *tiny_words, "--steps", 5, "--data.prefetch", 0, "--log.stall_after", 2]
    err = stuck("stop", 1, [*words, "--output", run], processes=2)
    told = re.findall(
        r"process 0 of 2 \(.*\) stalls: no step has ended for ([2-3]) s, since step 3; it is in .*; "
        r"process 1 of 2 \(pid \d+ on \S+\) has not been heard of for [1-3] s; its stacks are in",
        err,
    )
    assert len(told) == 1, err
    assert err.count("heard of") == 1, err
    assert re.search(r"process 0 of 2 \(.*\) goes on after \d+ s: step \d is done", err), err
    assert (run / "checkpoints/step-00000005").is_dir()


def test_a_measurement_that_takes_its_time_is_said_once_and_is_no_stall(stuck, tiny_words, tmp_path):
    """Neither of the process that measures, nor of the one that waits for it."""
    run = tmp_path / "run"
    words = ["train", "digits", *tiny_words, "--steps", 3, "--log.stall_after", 2, "--log.evaluate_every", 2]
    words += ["--data.validation", "digits", "--data.validation_size", 8, "--output", run]
    err = stuck("measure", 0, words, processes=2)
    told = re.findall(r"process (\d) of 2 \(.*\) has been (\w+) for \d+ s, after step (\d)", err)
    assert told == [("0", "measuring", "2"), ("0", "measuring", "3")], err
    assert not re.search(r"stalls: .* since step [23]", err), err
    assert (run / "checkpoints/step-00000003").is_dir()


def test_a_call_that_lets_no_other_thread_run_is_seen_by_faulthandler(stuck, tiny_words, tmp_path):
    """After twice the time, in the words of faulthandler."""
    words = ["train", "digits", *tiny_words, "--steps", 5, "--data.prefetch", 0, "--log.stall_after", 0.8]
    err = stuck("lock", 0, [*words, "--output", tmp_path / "run"])
    assert "Timeout (0:00:01.6" in err, err
    assert "in sleeps_in_a_batch" in err


def test_a_run_that_does_not_stall_says_nothing(tiny_words, tmp_path, capsys):
    from ditwright.cli.main import main

    words = [
        "train",
        "digits",
        *tiny_words,
        "--steps",
        "3",
        "--log.stall_after",
        "30",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(words) == 0
    assert "stalls" not in capsys.readouterr().err
    assert not (tmp_path / "run/stalls").exists()
    assert not [thread for thread in watch.threading.enumerate() if thread.name == "watchdog"]


def test_a_stall_is_told_once_and_the_next_one_again(tmp_path, capsys):
    with Watchdog(0.2, tmp_path) as dog:
        time.sleep(0.6)
        dog.beat(1)
        time.sleep(0.15)  # time for it to see that
        dog.beat(2)
        time.sleep(0.6)
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"since step \d|goes on", line)[0] for line in lines] == [
        *("since step 0", "goes on", "since step 2"),
    ]
    assert (tmp_path / "stalls/rank-0.txt").read_text().count(" stalls: ") == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_known_work_is_a_stall_after_ten_times_as_long(rank, tmp_path, capsys):
    with Watchdog(0.1, tmp_path, rank=rank, size=2) as dog:
        dog.beat(7, "saving")
        time.sleep(0.5)
        before = capsys.readouterr().err
        time.sleep(0.9)
        dog.beat(7)
        time.sleep(0.08)
    assert "stalls" not in before
    assert before.count("has been saving for 0 s, after step 7") == before.count("\n") == (1 if rank == 0 else 0)
    stall, over = capsys.readouterr().err.splitlines()
    assert re.search(rf"process {rank} of 2 .* stalls: it has been saving for 1 s, since step 7; it is in test_", stall)
    assert over.endswith("s: step 7 is done")
    assert (tmp_path / f"stalls/rank-{rank}.txt").read_text().count(" stalls: ") == 1


def test_0_looks_at_nothing(tmp_path, capsys):
    with Watchdog(0, tmp_path):
        time.sleep(0.05)
        assert not [thread for thread in watch.threading.enumerate() if thread.name == "watchdog"]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"log\.stall_after must be at least 0; got -1"):
        LogConfig(stall_after=-1)


def test_where_stacks_cannot_be_written_they_are_said(tmp_path, capsys):
    (tmp_path / "stalls").write_text("in the way")
    with Watchdog(0.1, tmp_path):
        time.sleep(0.3)
    err = capsys.readouterr().err
    assert "could not be written" in err
    assert "in test_where_stacks_cannot_be_written_they_are_said" in err


def frames(*places):
    return traceback.StackSummary.from_list(
        [traceback.FrameSummary(file, line, name, lookup_line=False, line="") for file, line, name in places]
    )


def test_the_words_for_what_a_process_does():
    package = Path(watch.__file__).parents[1]
    work = (f"{package}/train/job.py", 9, "work")
    gather = ("/x/torch/distributed/distributed_c10d.py", 5, "all_gather")
    ahead = (f"{package}/train/ahead.py", 44, "ahead")
    backward = ("/x/torch/autograd/graph.py", 7, "_engine_run_backward")
    assert doing(frames(work), []) == "in work (train/job.py:9)"
    assert doing(frames(work, ("/x/y/z.py", 3, "f")), []) == "in f (y/z.py:3), called by work (train/job.py:9)"
    assert doing(frames(work, gather), []).startswith("waiting for the other processes in all_gather (distributed/")
    inside = doing(frames(work, ahead, ("/x/queue.py", 171, "get")), [frames(("/x/y/z.py", 3, "slow"))])
    assert inside == "waiting for its batches, which are in slow (y/z.py:3)"
    assert "other processes" not in doing(frames(work, backward), [])
    assert doing(frames(work, backward), [], alone=False).endswith("the other processes waited for")
