"""Several processes see the same samples as one, and stop and go on as one."""

from __future__ import annotations

import pytest
import torch
from started import noted, torchrun

from ditwright.cli.main import main
from ditwright.errors import UserError
from ditwright.model.weights import read_safetensors
from ditwright.train.parallel import World, join
from ditwright.train.state import checkpoints


def test_two_processes_train_as_one_does(tiny_words, tmp_path):
    words = ["train", "digits", *tiny_words, "--optim.accumulate", "2"]
    assert main([*words, "--steps", "6", "--output", str(tmp_path / "one")]) == 0
    for steps in (3, 6):  # stopped half-way and gone on
        done = torchrun(2, *words, "--steps", steps, "--output", tmp_path / "two")
        assert (tmp_path / "two/checkpoints" / f"step-{steps:08d}").is_dir(), done.stderr
    torch.testing.assert_close(noted(tmp_path / "two"), noted(tmp_path / "one"), rtol=1e-5, atol=0)
    one, two = (read_safetensors(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert done.stdout.count("checkpoint: ") == 1


def test_a_batch_is_parted_whole():
    worlds = [World(torch.device("cpu"), rank, 4) for rank in range(4)]
    parts = [world.share(range(40, 56)) for world in worlds]
    assert [place for part in parts for place in part] == list(range(40, 56))
    with pytest.raises(UserError, match=r"batch_size 6 is not divisible by 4 processes"):
        worlds[0].share(range(6))


def test_alone_nothing_is_asked_of_others(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = join()
    assert (world.rank, world.size, world.main) == (0, 1, True)
    net = torch.nn.Linear(2, 2)
    assert world.wrap(net) is net
    assert (world.mean(3.5), world.any(False), world.agree("word")) == (3.5, False, "word")
