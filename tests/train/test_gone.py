"""Where a process of a run is killed, the others say so in a line and leave."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from ditwright.cli import info
from ditwright.cli.main import main
from ditwright.train.processes import lost, together

KILLED = """
import os, signal, sys
from ditwright import run
from ditwright.cli.main import main

real = run.batch_of

def batch_of(parts, data, items, places, **rest):
    if os.environ["RANK"] == "1" and places.start // parts.config.data.batch_size == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(parts, data, items, places, **rest)

run.batch_of = batch_of
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("ways", [[], ["--parallel.shard", "2"]], ids=["copies", "shards"])
def test_the_one_that_is_left_says_it_in_a_line(ways, tiny_words, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [
        "train",
        "digits",
        *tiny_words,
        *ways,
        "--steps",
        "6",
        "--data.prefetch",
        "0",
        "--output",
        tmp_path / "run",
    ]
    about = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    about |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = [
        subprocess.Popen(
            [sys.executable, tmp_path / "killed.py", *words],
            env=about | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    first, second = ((process.communicate(timeout=120)[1], process.returncode) for process in started)
    assert second == ("", -signal.SIGKILL)
    said, code = first
    assert code == 1
    training, line = said.splitlines()
    assert training.startswith("training on 2 x cpu")
    assert re.fullmatch(
        r"ditwright: error: another process of this run is gone, as process 0 of 2 was told \(.*\); what was saved is "
        r"whole: where torchrun does not start them again, the same command goes on",
        line,
    )
    assert (tmp_path / "run/checkpoints/step-00000003").is_dir()


def is_told() -> None:
    if os.environ["RANK"] == "1":
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")


def test_processes_started_from_here_say_it_too(capfd):
    with pytest.raises(SystemExit) as left:
        together(2, is_told)
    assert left.value.code == 1
    err = capfd.readouterr().err
    assert err.startswith("ditwright: error: another process of this run is gone, as process 1 of 2 was told")
    assert err.count("\n") == 1


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_that_is_killed_is_named(capfd):
    with pytest.raises(SystemExit) as left:
        together(2, dies)
    assert left.value.code == 128 + signal.SIGKILL
    err = capfd.readouterr().err
    assert re.fullmatch(r"ditwright: error: process [01] of 2 was ended by SIGKILL; what was saved is whole\n", err)


@pytest.mark.parametrize(
    ("size", "words", "told"),
    [
        ("2", "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:6848: Connection reset by peer.", True),
        ("2", "NCCL error: remote process exited or there was a network error", True),
        ("2", "mat1 and mat2 shapes cannot be multiplied", False),
        ("1", "Connection reset by peer", False),
        (None, "Connection reset by peer", False),
    ],
)
def test_other_failures_keep_their_traceback(size, words, told, monkeypatch, capsys):
    def fails(words_of_it):
        raise RuntimeError(words)

    monkeypatch.setattr(info, "run", fails)
    monkeypatch.setenv("RANK", "1")
    if size is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", size)
    if not told:
        assert lost(RuntimeError(words)) == ""
        with pytest.raises(RuntimeError, match=re.escape(words)):
            main(["info"])
        return
    assert main(["info"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ditwright: error: another process of this run is gone, as process 1 of 2 was told (")
    assert said.count("\n") == 1
