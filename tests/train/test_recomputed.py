"""Blocks that compute their activations again: which, how many, to the same bits, and how much memory that leaves."""

from __future__ import annotations

import json
import re
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditwright.accel import compiling
from ditwright.accel.compiling import compile_blocks
from ditwright.cli.main import main
from ditwright.config import read_yaml
from ditwright.data.sources import SOURCES
from ditwright.errors import UserError
from ditwright.experiment import TrainConfig
from ditwright.model.build import build, parameters
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.presets import BASELINES, PRESETS
from ditwright.nn.branch import run_all
from ditwright.run import assemble, job_of, recomputed_blocks, train
from ditwright.train.config import ParallelConfig
from ditwright.train.cost import memory, recomputed_within
from ditwright.train.parallel import World
from ditwright.train.processes import together
from ditwright.train.runners import checkpointed

ALONE = World(torch.device("cpu"))
SIDE, TEXT = 36, 300  # 324 tokens, and of text: past the length up to which a CPU computes attention by plain products
READS = {"context": "stream", "text_width": 40, "num_classes": 0, "pooled_width": 24}
KINDS = {  # of blocks: what the network says, what the stage says
    "adaln-zero": ({}, {}),
    "adaln": ({}, {"mod": "adaln"}),
    "in-context": ({"context": "stream"}, {"mod": "plain"}),
    "cross": ({"context": "cross"}, {"mod": "plain", "cross": True}),
    "pixart": (READS | {"context": "cross"}, {"mod": "adaln_single", "cross": True, "cross_norm": False}),
    "rms": ({"norm": "rms"}, {}),
    "swiglu": ({"mlp": "swiglu", "mlp_ratio": 8 / 3}, {}),
    "qk-norm": ({"qk_norm": True}, {}),
    "lightning": (
        {"norm": "rms", "mlp": "swiglu", "mlp_ratio": 8 / 3, "rope": (12, 12), "qk_norm": True},
        {},
    ),
    "sd3": (READS, {"lanes": "own"}),
    "sd3.5": (READS | {"qk_norm": True}, {"lanes": "own", "dual": True}),
    "flux": (READS | {"qk_norm": True, "rope": (12, 12), "sincos": ()}, {"parallel": True}),
}
TWO = (Stage(2, lanes="own"), Stage(3, parallel=True))  # kinds of blocks, which do not keep as much
DEEP = {
    "alike": DiTConfig(width=96, heads=4, stages=(Stage(5),)),
    "of two kinds": DiTConfig(width=96, heads=4, stages=TWO, **KINDS["flux"][0]),
}


class Alive(TorchDispatchMode):
    """Bytes of the tensors that operations make: `now` of those that are there, `most` of them at once.

    Those as large as a weight are left out: its copy and its gradient are other parts of the memory.
    """

    def __init__(self, net):
        super().__init__()
        self.weights, self.there, self.now, self.most = {p.numel() for p in net.parameters()}, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, torch.Tensor) and made.numel() not in self.weights:
                self.note(made.untyped_storage())
        return out

    def note(self, storage):
        key = storage._cdata
        if key not in self.there:
            self.there[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key)

    def gone(self, key):
        self.now -= self.there.pop(key)


def asked(config, seed=0):
    """Something to ask a network: latents, a time, a condition."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(1, config.channels, SIDE, SIDE, generator=draws)
    if not config.text_width:
        return x, torch.zeros(1), {"label": torch.zeros(1, dtype=torch.long)}
    text = {
        name: torch.randn(1, *size, generator=draws) for name, size in {"text": (TEXT, 40), "pooled": (24,)}.items()
    }
    return x, torch.zeros(1), text


@cache
def held(config, count, bf16):
    """Bytes that are there after the forward pass, and the most until the backward pass is done."""
    net = build(config)
    with Alive(net) as alive:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            out = net(*asked(config), run=partial(checkpointed, count=count))
        after = alive.now
        out.sum().backward()
    return after, alive.most


def said(config, bf16=True, recomputed=0):
    """The activations of a sample, as they are worked out."""
    text = TEXT if config.text_width else 0
    return memory(config, (SIDE, SIDE), 1, 0, text, bf16=bf16, recomputed=recomputed)["activations"]


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_block_keeps_is_what_is_said(kind, bf16):
    net, stage = KINDS[kind]
    deep, shallow = (DiTConfig(width=96, heads=4, stages=(Stage(depth, **stage),), **net) for depth in (3, 1))
    measured = held(deep, 0, bf16)[0] - held(shallow, 0, bf16)[0]
    assert said(deep, bf16) - said(shallow, bf16) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_recomputed_blocks_save_what_is_said(count, name, bf16):
    """Some, all but the last, all: of what is there after the forward pass, and of the most there ever is."""
    config = DEEP[name]
    saved = said(config, bf16) - said(config, bf16, count)
    after, most = (a - b for a, b in zip(held(config, 0, bf16), held(config, count, bf16), strict=True))
    assert saved == pytest.approx(most, rel=0.15)
    assert count == config.depth or saved == pytest.approx(after, rel=0.15)


def test_the_last_block_is_whole_whether_it_is_recomputed_or_not():
    for config in DEEP.values():
        assert said(config, recomputed=config.depth) == said(config, recomputed=config.depth - 1)
    one = DiTConfig(width=96, heads=4, stages=(Stage(1),))
    assert said(one) == said(one, recomputed=1)


@pytest.mark.parametrize("count", [0, 1, 3, None])
def test_the_first_blocks_run_again_on_the_way_back_and_give_the_same_bits(count):
    config, grads = replace(DEEP["of two kinds"], width=48, heads=2), []
    for run in (run_all, partial(checkpointed, count=count)):
        net, runs = build(config), [0] * config.depth
        with torch.no_grad():
            for p in net.parameters():  # gates and the head are zero at first
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
        for place, block in enumerate(net.blocks):

            def noted(*_, runs=runs, place=place):
                runs[place] += 1

            block.register_forward_pre_hook(noted)
        net(*asked(config), run=run).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    again = config.depth if count is None else count
    assert runs == [2] * again + [1] * (config.depth - again)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_compiled_blocks_are_recomputed_too(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "can_compile", lambda: True)  # graphs run as they stand
    config, grads, counter = replace(DEEP["alike"], width=48), [], CompileCounter()
    for run in (None, partial(checkpointed, count=2)):
        net = build(config)
        if run:
            compile_blocks(net.blocks, backend=counter)
        with torch.no_grad():
            net.head.proj.weight.fill_(0.1)
        net(*asked(config), run=run or run_all).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    torch._dynamo.reset()
    assert counter.frame_count > 0
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("ways", [{}, {"shard": 4}, {"shard": 2, "tensor": 2, "sequence": 2}, {"bf16": False}], ids=str)
def test_a_budget_takes_the_fewest_blocks_that_keep_to_it(ways):
    config = replace(PRESETS["DiT-S/2"], stages=(Stage(6),))
    needs = [sum(memory(config, (32, 32), 64, 10**6, **ways, recomputed=n).values()) for n in range(7)]
    assert needs == sorted(needs, reverse=True)
    for count, most in enumerate(needs[:6]):
        assert recomputed_within(most, config, (32, 32), 64, 10**6, **ways)[0] == count
        found, parts = recomputed_within(most + 0.5, config, (32, 32), 64, 10**6, **ways)
        assert (found, sum(parts.values())) == (count, most)
    with pytest.raises(
        UserError, match=r"each device needs 0\.\d+ GB even with all blocks recomputed, and memory_gb is"
    ):
        recomputed_within(needs[-1] - 1, config, (32, 32), 64, 10**6, **ways)


def budget(config, count, batch, **ways):
    """GB with which so many blocks must be recomputed of a network on digits."""
    needs = memory(config.model, (8, 8), batch, parameters(config.model), bf16=False, recomputed=count, **ways)
    return (sum(needs.values()) + 1) / 1e9


def test_a_run_works_it_out_for_its_own_part_of_the_work(tiny, capsys):
    config = tiny("--model.stages.0.depth 4 --data.batch_size 32")
    plain = assemble(config, ALONE)
    assert (plain.recomputed, job_of(plain).run, capsys.readouterr().err) == (0, run_all, "")
    for count in range(4):
        most = budget(config, count, 32)
        parts = assemble(replace(config, memory_gb=most), ALONE)
        assert (parts.recomputed, capsys.readouterr().err.count(f"recomputing {count} of 4 blocks: 0.00")) == (count, 1)
    assert job_of(parts).run.keywords == {"count": 3}
    assert assemble(replace(config, checkpoint_activations=True), ALONE).recomputed == 4
    halves = replace(parts.config, memory_gb=budget(config, 2, 16), parallel=ParallelConfig(shard=1))
    data, two = SOURCES["digits"](), World(torch.device("cpu"), rank=1, size=2)
    assert recomputed_blocks(halves, data, two, 0) == 2
    assert recomputed_blocks(replace(halves, optim=replace(halves.optim, accumulate=8)), data, two, 0) == 2
    shards = replace(halves, memory_gb=budget(config, 1, 16, shard=2), parallel=ParallelConfig(shard=2))
    assert recomputed_blocks(shards, data, two, 0) == 1
    with pytest.raises(UserError, match="even with all blocks recomputed"):
        recomputed_blocks(halves, data, ALONE, 0)  # all of the batch
    assert capsys.readouterr().err == ""  # from the main process alone


def test_a_run_within_a_budget_is_the_run_without_one(tiny, outcome, tmp_path, capsys):
    config = tiny("--steps 3 --model.stages.0.depth 3 --optim.schedule constant")
    train(config, tmp_path / "free")
    within = replace(config, memory_gb=budget(config, 1, 8))
    train(replace(config, steps=2, checkpoint_activations=True), tmp_path / "within")
    capsys.readouterr()
    train(within, tmp_path / "within")  # which may change
    assert "recomputing 1 of 3 blocks" in capsys.readouterr().err
    free, found = outcome(tmp_path / "free"), outcome(tmp_path / "within")
    assert found | {"samples": None} == free | {"samples": None}


def test_shards_are_recomputed_within_a_budget_too(tiny, tiny_words, tmp_path):
    words = [*tiny_words, "--model.stages.0.depth", "3", "--steps", "3"]
    most = budget(tiny("--model.stages.0.depth 3"), 1, 4, shard=2)
    more = ["--memory_gb", str(most), "--parallel.shard", "2"]
    assert main(["train", "digits", *words, "--output", str(tmp_path / "alone")]) == 0
    together(2, main, ["train", "digits", *words, *more, "--output", str(tmp_path / "shards")])
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "shards")
    ]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_is_no_transformer_takes_no_budget(tiny):
    with pytest.raises(UserError, match="leave memory_gb out for a U-Net"):
        recomputed_within(1e12, BASELINES["ADM-256"], (256, 256), 1, 0)
    net = replace(BASELINES["ADM-256"], channels=1, out_channels=1, num_classes=10)
    for change in ({"memory_gb": 9.0}, {"checkpoint_activations": True}):
        with pytest.raises(UserError, match="memory_gb are for a transformer's blocks; a U-Net takes neither"):
            assemble(replace(tiny(), model=net, **change), ALONE)


def test_runs_of_before_there_were_budgets_are_read():
    path = Path(__file__).parents[2] / "docs/scaling/digits/w64-p2-600-s0/config.yaml"
    assert not re.search("memory_gb", path.read_text())
    assert read_yaml(TrainConfig, path).memory_gb == 0
