"""Processes that were started differently, or read other data, refuse to train, all in the same words."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright.errors import UserError
from ditwright.experiment import TrainConfig
from ditwright.run import train
from ditwright.train.folder import claimed
from ditwright.train.parallel import World, join
from ditwright.train.processes import together
from ditwright.train.same import NAMED, apart, check_alike, on_all
from ditwright.train.state import checkpoints

DATA = {"items": 48, "sizes": {"8x8": 48}, "classes": 2, "names": "ab"}


@dataclass(frozen=True)
class Several(World):
    """A process that hears from the others what a test says they have."""

    others: tuple = ()

    def gather(self, found):
        return [found, *(change(*found) for change in self.others)]


class Heard(Several):
    """One that hears just that."""

    def gather(self, found):
        return [found, *self.others]


def several(*changes):
    """Of each other process: what it makes of the main one's configuration and data."""
    return Several(torch.device("cpu"), size=1 + len(changes), others=changes)


def as_it_is(config, data):
    return config, data


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([lambda config, data: (config | {"seed": 1}, data)], "seed 0 on 0, 1 on 1"),
        ([as_it_is, lambda config, data: (config | {"seed": 1}, data)], "seed 0 on 0 and 1, 1 on 2"),
        (
            [lambda config, data: (config | {"seed": 1, "steps": 9}, data), lambda c, d: (c | {"seed": 2}, d)],
            "steps 6 on 0 and 2, 9 on 1; seed 0 on 0, 1 on 1, 2 on 2",
        ),
    ],
)
def test_another_configuration_is_told_by_key_rank_and_value(changes, said, tiny):
    words = f"not all processes were started with the same configuration: {said}; give all of them the same options"
    with pytest.raises(UserError) as refused:
        check_alike(tiny("--steps 6"), DATA, several(*changes))
    assert str(refused.value) == words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"items": 47, "sizes": {"8x8": 47}, "names": "cd"}, "items 48 on 0 and 1, 47 on 2"),
        ({"sizes": {"8x8": 40, "8x16": 8}}, "sizes.8x8 48 on 0 and 1, 40 on 2; sizes.8x16 None on 0 and 1, 8 on 2"),
        ({"names": "cd"}, "as many on 0, of other names, labels or captions on 2"),
    ],
)
def test_other_data_are_told_by_what_they_are_known_by(change, said, tiny):
    world = several(as_it_is, lambda config, data: (config, data | change))
    with pytest.raises(UserError) as refused:
        check_alike(tiny(), DATA, world)
    assert str(refused.value) == f"'digits' is not the same to all processes: {said}; bring the data of one to all"


def test_equal_ones_are_not_refused(tiny):
    check_alike(tiny(), DATA, several(as_it_is, as_it_is))
    check_alike(tiny(), {}, several(as_it_is))  # nothing is known of the data
    check_alike(tiny(), DATA, World(torch.device("cpu")))


def test_of_many_ranks_and_keys_a_few_are_named(tiny):
    everyones = [{"seed": 0}, *({"seed": 1} for _ in range(99))]
    assert apart(everyones) == {"seed": {"0": [0], "1": list(range(1, 100))}}
    world = several(*(lambda config, data: (dict.fromkeys(config), data) for _ in range(99)))
    with pytest.raises(
        UserError, match=rf"on {' and '.join(map(str, range(1, NAMED + 1)))} and {99 - NAMED} more; "
    ) as many:
        check_alike(tiny(), DATA, world)
    assert str(many.value).count(" on 0, ") == NAMED


def test_what_is_wrong_for_one_is_raised_on_all():
    def wrong():
        raise UserError("no such file")

    assert on_all(World(torch.device("cpu")), lambda: 3) == 3
    with pytest.raises(UserError, match=r"^no such file$"):
        on_all(World(torch.device("cpu")), wrong)
    heard = Heard(torch.device("cpu"), size=3, others=("", "no such file there"))
    with pytest.raises(UserError, match=r"^no such file there$"):
        on_all(heard, lambda: 3)


class Staying(World):
    """Processes that refuse one run after another, and part in the end."""

    def leave(self) -> None:
        pass


def refusals(place: str, config: TrainConfig) -> None:
    """Of a process of several: what it says to some runs, in files of its own."""
    world, root = Staying(**vars(join())), Path(place)
    one, pictures = world.rank == 1, root / "of-0" / "pictures"
    ours = replace(config, data=replace(config.data, source=str(pictures)))

    def tried(name: str, asked: TrainConfig) -> None:
        try:
            train(asked, root / "run", world)
            said = "trained"
        except UserError as error:
            said = str(error)
        (root / f"{name}-{world.rank}").write_text(said)
        world.any(False)  # all have written

    tried("seed", replace(ours, seed=world.rank))
    tried("best", replace(ours, log=replace(ours.log, keep_best=world.rank)))
    os.chdir(root / f"of-{world.rank}")  # where a relative path leads to, as on machines with disks of their own
    tried("data", replace(ours, data=replace(ours.data, source="pictures")))
    tried("first", ours)
    if not one:
        (pictures / "b" / "03.png").unlink()
    world.any(False)
    tried("later", replace(ours, steps=5))
    with nullcontext() if one else claimed(root / "run", World(torch.device("cpu"))):
        world.any(False)
        tried("held", ours)
    world.any(False)
    tried("done", ours)
    World.leave(world)


def test_all_processes_refuse_alike(tiny, tmp_path):
    chance = np.random.default_rng(0)
    for n in range(20):
        for rank in range(2 if n else 1):  # the first one is on one machine alone
            path = tmp_path / f"of-{rank}" / "pictures" / "ab"[n % 2] / f"{n:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    words = "--data.image_size 8 --model.channels 3 --model.out_channels 3 --codec.channels 3 --model.num_classes 2"
    words += " --log.preview_every 0 --optim.schedule constant"
    together(2, refusals, str(tmp_path), tiny(f"--steps 3 {words}"))
    run, source = str(tmp_path / "run"), str(tmp_path / "of-0/pictures")
    alike = "not all processes were started with the same configuration"
    wanted = {
        "seed": f"{alike}: seed 0 on 0, 1 on 1; give all of them the same options",
        "best": f"{alike}: log.keep_best 0 on 0, 1 on 1; give all of them the same options",
        "data": "'pictures' is not the same to all processes: items 20 on 0, 19 on 1; bring the data of one to all",
        "first": "trained",
        "later": f"{source!r} is not what {run!r} was trained on until step 3: items 20 then, 19 now; "
        "bring those back, or begin another run from its weights (--init) with another --output",
        "held": f"another process trains in {run!r}; wait, or choose another --output",
        "done": "trained",
    }
    for name, said in wanted.items():
        assert [(tmp_path / f"{name}-{rank}").read_text() for rank in range(2)] == [said, said], name
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]
