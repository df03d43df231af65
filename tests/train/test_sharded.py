"""Processes that hold a part of the weights each compute, save and go on as one that holds them all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from started import noted, torchrun

from ditwright.cli.main import main
from ditwright.errors import UserError
from ditwright.model.weights import read_safetensors
from ditwright.recipes import RECIPES
from ditwright.train.config import ParallelConfig
from ditwright.train.dcp import read
from ditwright.train.parallel import World, arranged
from ditwright.train.state import checkpoint_path, checkpoints, read_whole

STEPS = 6
# Small enough a clip that every step is clipped: the norm over all shards decides what is learnt.
WORDS = f"--steps {STEPS} --optim.clip 0.05 --optim.accumulate 2 --checkpoint_activations true".split()
WAYS = {
    "copies": (4, ""),
    "shards": (2, "--parallel.shard 2"),
    "many shards": (4, "--parallel.data 1 --parallel.shard 4 --log.async_save true"),
    "copies of shards": (4, "--parallel.data 2 --parallel.shard 2 --parallel.offload true"),
    "shards and tokens": (4, "--parallel.shard 2 --parallel.sequence 2"),
}


@pytest.fixture(scope="module")
def words(tiny_words):
    return ["train", "digits", *tiny_words, *WORDS]


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main([*words, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def halves(words, tmp_path_factory):
    """The run of two processes that hold one half each."""
    folder = tmp_path_factory.mktemp("halves") / "run"
    done = torchrun(2, *words, *WAYS["shards"][1].split(), "--output", folder)
    assert checkpoint_path(folder, STEPS).is_dir(), done.stderr
    return folder


def same(ours, theirs):
    """Whether two runs computed the same, but for the order of their sums."""
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(noted(ours, name), noted(theirs, name), rtol=1e-5, atol=0)
    one, two = (read_safetensors(checkpoints(run)[-1] / "model.safetensors") for run in (ours, theirs))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_however_weights_are_parted_the_losses_are_those_of_one_process(way, words, alone, halves, tmp_path):
    processes, more = WAYS[way]
    folder = halves if way == "shards" else tmp_path / "run"
    if folder != halves:
        done = torchrun(processes, *words, *more.split(), "--output", folder)
        assert checkpoint_path(folder, STEPS).is_dir(), done.stderr
    assert len(noted(folder)) == STEPS
    same(folder, alone)
    assert (checkpoints(folder)[-1] / "train.dcp").is_dir() == ("shard" in more)


def test_a_run_goes_on_with_any_number_of_processes(words, alone, tmp_path):
    """1 -> 2 shards -> 2 copies of 2 shards -> 1, and 2 shards -> 1."""
    legs = [(1, ""), (2, "--parallel.shard 2 --log.async_save true"), (4, "--parallel.data 2 --parallel.shard 2")]
    for step, (processes, more) in enumerate(legs, 1):
        asked = [*words, *more.split(), "--steps", str(step), "--output", str(tmp_path / "run")]
        if processes == 1:
            assert main(asked) == 0
        else:
            done = torchrun(processes, *asked)
            assert checkpoint_path(tmp_path / "run", step).is_dir(), done.stderr
        if processes == 2:
            shutil.copytree(tmp_path / "run", tmp_path / "other")
    for name in ("run", "other"):
        assert main([*words, "--output", str(tmp_path / name)]) == 0
        same(tmp_path / name, alone)


def test_the_state_in_shards_is_the_state_in_one_file(alone, halves):
    one, two = (read_whole(checkpoints(run)[-1] / "train.safetensors") for run in (alone, halves))
    assert {name: tensor.dtype for name, tensor in one.items()} == {name: tensor.dtype for name, tensor in two.items()}
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_shards_are_safetensors_and_nothing_else(halves):
    """DCP's own format has a pickle in it."""
    shapes, *files = sorted((checkpoints(halves)[-1] / "train.dcp").iterdir())
    assert [path.suffix for path in files] == [".safetensors"] * 2
    assert json.loads(shapes.read_text())["optim.net.patchify.proj.weight.step"] == []
    for path in files:
        with safe_open(path, "pt") as shard:
            assert shard.keys()
            json.loads(shard.metadata()["DCP_SHARDING_INFO"])


@pytest.mark.parametrize(
    "wrong",
    [
        "one is missing",
        "the first is missing",
        "shapes are missing",
        "one is cut",
        "one is nonsense",
        "its header lies",
        "all are missing",
    ],
)
def test_what_is_wrong_with_shards_is_told_in_a_line(wrong, halves, tmp_path):
    shutil.copytree(checkpoints(halves)[-1] / "train.dcp", tmp_path / "train.dcp")
    last = max((tmp_path / "train.dcp").glob("*.safetensors"))
    whole = last.read_bytes()
    if "is missing" in wrong:
        (last if "one" in wrong else min(last.parent.glob("*.safetensors"))).unlink()
    elif wrong == "shapes are missing":
        (last.parent / "shapes.json").unlink()
    elif wrong == "all are missing":
        shutil.rmtree(last.parent)
    else:
        lies = whole.replace(b"saved_offsets", b"saved_offsett")
        last.write_bytes({"one is cut": whole[:-100], "one is nonsense": b"\x80\x04N.", "its header lies": lies}[wrong])
    with pytest.raises(UserError, match=r"a shard is missing|is damaged or incomplete|there is no checkpoint") as told:
        read(tmp_path / "train.dcp")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("wrong", ["a shard is missing", "shapes are missing", "a bit is flipped", "a shard is cut"])
def test_a_run_passes_over_a_checkpoint_with_a_damaged_shard(wrong, words, alone, halves, tmp_path, capsys):
    run = shutil.copytree(halves, tmp_path / "run")
    shapes, *shards = sorted((checkpoints(run)[-1] / "train.dcp").iterdir())
    path = shapes if "shapes" in wrong else shards[-1]
    content = bytearray(path.read_bytes())
    path.unlink()
    if "missing" not in wrong:
        content[len(content) // 2] ^= 4
        path.write_bytes(content[:-9] if "cut" in wrong else content)
    assert main([*words, "--output", str(run)]) == 0
    first, *said = capsys.readouterr().err.splitlines()
    assert first.startswith(f"step-00000006/train.dcp/{path.name} is {'missing' if 'missing' in wrong else 'damaged'}")
    assert first.endswith("set aside as damaged-00000006; the checkpoint before it is step-00000003")
    assert any(line.startswith("going on at step 3 ") for line in said)
    same(run, alone)


@pytest.mark.parametrize(
    ("size", "config", "message"),
    [
        (1, ParallelConfig(shard=2), r"\(data \(any\), shard 2, sequence 1\) is for 2 process\S+ and 1 .*start 2 with"),
        (4, ParallelConfig(8, 4, 2), r"\(data 8, shard 4, sequence 2\) is for 64 process\S+ and 4 .*start 64 with tor"),
        (6, ParallelConfig(shard=4), "start 4 with torchrun"),
        (2, ParallelConfig(data=1), r"is for 1 process\S+ and 2 were started"),
    ],
)
def test_the_number_of_processes_is_checked(size, config, message):
    with pytest.raises(UserError, match=message):
        arranged(World(torch.device("cpu"), size=size), config)


def test_without_shards_the_processes_stay_as_they_are():
    world = World(torch.device("cpu"), size=4)
    assert arranged(world, ParallelConfig()) is world
    assert arranged(world, ParallelConfig(data=4)) is world
    with pytest.raises(UserError, match=r"leave it out with parallel.sequence above 1"):
        replace(RECIPES["digits"](), compile=True, parallel=ParallelConfig(sequence=2))
    with pytest.raises(UserError, match=r"parallel.shard and parallel.sequence are at least 1.*got 0, 1 and 0"):
        ParallelConfig(shard=0)


KILLED = """
import os, signal, sys, threading
from ditwright.cli.main import main
from ditwright.train import job

seal = job.seal

def sealed(folder):
    seal(folder)
    if "step-00000006" in folder.name:
        assert threading.current_thread() is not threading.main_thread()
        os.kill(os.getpid(), signal.SIGKILL)

job.seal = sealed
main(sys.argv[1:])
"""


def test_a_save_that_is_killed_in_the_background_is_not_taken_for_one(words, alone, tmp_path, capsys):
    (tmp_path / "killed.py").write_text(KILLED)
    asked = [*words, "--parallel.shard", "2", "--log.async_save", "true", "--output", str(tmp_path / "run")]
    torchrun(2, *asked, script=[tmp_path / "killed.py"])
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]
    assert any((tmp_path / "run/checkpoints").glob(".step-00000006*"))
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    assert "going on at step 3" in capsys.readouterr().err
    same(tmp_path / "run", alone)
    assert not any((tmp_path / "run/checkpoints").glob(".*"))
