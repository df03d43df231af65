"""A step that is not finite is told by all processes in the same words, whichever of them holds what is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ditwright.cli.main import main
from ditwright.diffusion.objective import Objective
from ditwright.diffusion.path import linear
from ditwright.diffusion.process import Denoiser, Process
from ditwright.diffusion.target import velocity
from ditwright.diffusion.times import Uniform
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from ditwright.rng import Draws
from ditwright.train.config import OptimConfig, ParallelConfig
from ditwright.train.ema import EMA
from ditwright.train.fit import Batch, fit
from ditwright.train.nonfinite import first_of, own
from ditwright.train.optim import Constant, adamw
from ditwright.train.parallel import arranged, join
from ditwright.train.processes import together

CONFIG = DiTConfig(width=16, heads=2, stages=(Stage(1),), channels=1, out_channels=1, num_classes=3)
OBJECTIVE = Objective(Process(linear, velocity), Uniform())
WAYS = {"copies": ParallelConfig(), "shards": ParallelConfig(shard=2), "matrices": ParallelConfig(tensor=2)}
FIRST, LAST, DATA = "net.patchify.proj.weight", "net.head.proj.weight", "data"
NAN, LARGE = math.nan, 3e38  # the norm of the latter overflows
# By what happens: in which gradients of which processes lies what, and what is told of the step.
GRADIENT = "the gradient of step 1 is {}; first non-finite gradient: {}"
FAULTS = {
    "on the other": ({1: [LAST]}, NAN, GRADIENT.format("nan", f"{LAST!r}, on process 1")),
    "earlier on the other": ({0: [LAST], 1: [FIRST]}, NAN, GRADIENT.format("nan", f"{FIRST!r}, on process 1")),
    "earlier on the main one": ({0: [FIRST], 1: [LAST]}, NAN, GRADIENT.format("nan", repr(FIRST))),
    "on both": ({0: [LAST], 1: [LAST]}, NAN, GRADIENT.format("nan", repr(LAST))),
    "too large on the other": ({1: [LAST]}, LARGE, GRADIENT.format("inf", "none; their norm overflows")),
    "in the data of the other": ({1: [DATA]}, NAN, "the data of step 1 is not finite, on process 1"),
    "in the data of both": ({0: [DATA], 1: [DATA]}, NAN, "the data of step 1 is not finite"),
}
CASES = [(way, fault) for way in WAYS for fault in FAULTS]


def told(world, names, value):
    """Why the first of two steps is left out, and the second, when something lies in gradients or data of this one."""
    denoiser = Denoiser(build(CONFIG), OBJECTIVE.process)
    ema = EMA(denoiser, 0.9)
    world.place(denoiser, ema.module)
    weights, left = dict(denoiser.named_parameters()), [names]

    def norm(grads):
        for name in left.pop() if left else ():
            if name != DATA:
                mine = own(weights[name].grad)
                assert mine.numel()
                mine.fill_(value)
        return world.norm(grads)

    def batches():
        for n in range(2):
            places = world.share(range(4 * n, 4 * n + 4))
            x0 = Draws(0, places, "pictures").normal(torch.empty(len(places), 1, 8, 8))
            if n == 0 and DATA in names:
                x0[0] = value
            yield Batch(x0, {"label": torch.zeros(len(places), dtype=torch.long)}, Draws(0, places, "train"))

    net, optim = world.wrap(denoiser), adamw(denoiser, OptimConfig())
    ways = {"mean": world.mean, "norm": norm, "gather": world.gather}
    ticks = list(fit(net, OBJECTIVE, batches(), optim, schedule=Constant(), ema=ema, skip=1, **ways))
    assert math.isfinite(ticks[1].loss + ticks[1].grad_norm)
    return [tick.why for tick in ticks]


def spoilt(folder):
    """In each of the processes: every fault in every arrangement of them."""
    world, found = join(), {}
    for way, config in WAYS.items():
        placed = arranged(world, config)
        for fault, (where, value, _) in FAULTS.items():
            found[f"{way} {fault}"] = told(placed, where.get(world.rank, []), value)
    (Path(folder) / f"{world.rank}.json").write_text(json.dumps(found))
    dist.barrier()
    world.leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes was told."""
    folder = tmp_path_factory.mktemp("nonfinite")
    together(2, spoilt, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("way", "fault"), CASES)
def test_all_processes_name_the_first_wherever_it_lies(way, fault, found):
    """And they go on together: the next step is none that is left out."""
    assert [said[f"{way} {fault}"] for said in found] == [[FAULTS[fault][2], ""]] * 2


def test_of_the_same_place_the_first_process_is_told():
    assert first_of([(3, "c"), (2, "b"), (2, "other b")]) == "b, on process 1"
    assert first_of([(2, "b"), (2, "other b"), (3, "c")]) == "b"


@pytest.mark.parametrize(
    ("every", "left"), [(1, "the last checkpoint in {} is untouched"), (0, "no checkpoint is in {} yet")]
)
def test_the_last_line_tells_what_is_left(every, left, tiny_words, tmp_path):
    words = ["train", "digits", *tiny_words, "--steps", "30", "--optim.lr", "1e30", "--optim.warmup", "0"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--log.checkpoint_every", str(every), "--output", str(tmp_path / "run")])
    assert str(ended.value).startswith("ditwright: stopped: the ")
    assert str(ended.value).endswith(f"; {left.format(tmp_path / 'run')}")
