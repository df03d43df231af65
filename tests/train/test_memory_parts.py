"""The worked-out memory of a run that is spread over processes is what these hold.

The processes of `shared` train a step and count their bytes; the tests read that.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.model.build import build, parameters
from ditwright.model.config import DiTConfig, Stage
from ditwright.nn.branch import run_all
from ditwright.nn.sequence import InParts
from ditwright.train.config import OptimConfig, ParallelConfig
from ditwright.train.cost import largest_block, memory
from ditwright.train.ema import EMA
from ditwright.train.optim import optimizer_from
from ditwright.train.parallel import arranged, join
from ditwright.train.processes import together

PROCESSES = 2
NETWORK = DiTConfig(width=32, heads=2, stages=(Stage(3),), num_classes=3)
SIDE = 36  # of latents: 324 tokens, past the length up to which a CPU computes attention by plain products
HELD = ("weights", "gradients", "optimizer", "average")


def shared(output):
    """In every process: bytes of a step of copies, of shards, and of activations alone and in parts."""
    world = join()
    found = {"copies": step(world), "shards": step(arranged(world, ParallelConfig(shard=PROCESSES)))}
    run = InParts(dist.group.WORLD)
    found["activations"] = {name: activations(how) for name, how in {"alone": run_all, "in parts": run}.items()}
    if world.main:
        Path(output).write_text(json.dumps(found))
    dist.barrier()
    world.leave()


def step(world):
    """Bytes that a process holds after a step, and the most weights that are whole in a block."""
    denoiser = Denoiser(build(NETWORK), process_from(ProcessConfig("linear", "velocity")))
    ema = EMA(denoiser, 0.9)
    world.place(denoiser, ema.module)
    optim, net = optimizer_from(denoiser.net, OptimConfig()), world.wrap(denoiser)
    whole = []

    def count(block, args, out):
        whole.append(sum(p.numel() for p in denoiser.parameters() if not isinstance(p, DTensor)))

    for block in denoiser.net.blocks:
        block["mlp"].register_forward_hook(count)
    pred = net(torch.ones(2, 4, 8, 8), torch.tensor([0.2, 0.7]), {"label": torch.tensor([0, 1])})
    (pred.x0.square().mean() + pred.eps.square().mean()).backward()
    grads = [p.grad for p in denoiser.parameters()]
    optim.step()
    ema.update()
    weights = list(denoiser.parameters())
    moments = [value for p in weights for value in optim.state[p].values() if value.shape == p.shape]
    kept = {"weights": weights, "gradients": grads, "optimizer": moments, "average": list(ema.module.parameters())}
    places = {grad.untyped_storage().data_ptr() for grad in grads if not isinstance(grad, DTensor)}
    counts = {"whole": max(whole), "places": len(places)}
    return {name: sum(map(size, tensors)) for name, tensors in kept.items()} | counts


def size(tensor):
    """Bytes of a tensor in this process."""
    mine = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return mine.numel() * mine.element_size()


def activations(run):
    """Bytes that two more blocks keep for the backward pass, with bf16 products; weights and their copies not."""
    return kept(Stage(3), run) - kept(Stage(1), run)


def kept(stage, run):
    net = build(DiTConfig(width=96, heads=4, stages=(stage,)))
    storages, weights = {}, {p.numel() for p in net.parameters() if p.ndim == 2}

    def pack(tensor):
        if tensor.numel() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        net(torch.ones(1, 4, SIDE, SIDE), torch.zeros(1), {"label": torch.zeros(1, dtype=torch.long)}, run=run)
    return sum(nbytes for nbytes, _ in storages.values())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the processes counted."""
    path = tmp_path_factory.mktemp("memory") / "found.json"
    together(PROCESSES, shared, str(path))
    return json.loads(path.read_text())


@pytest.mark.parametrize(("ways", "given"), [("copies", {}), ("shards", {"shard": 2})])
def test_what_a_process_holds_is_what_is_said(ways, given, found):
    said = memory(NETWORK, (8, 8), 1, parameters(NETWORK), **given)
    assert {name: said[name] for name in HELD} == {name: found[ways][name] for name in HELD}


def test_gradients_of_copies_lie_in_the_buckets_that_are_averaged(found):
    """And not in a place each, with the buckets beside them."""
    assert found["copies"]["places"] == 1


def test_no_more_than_a_block_and_the_rest_are_whole_at_once(found):
    """Besides, torch fetches the next block, which is not a part of the network yet."""
    block, rest = largest_block(NETWORK)
    assert found["shards"]["whole"] == block + rest
    assert found["copies"]["whole"] == parameters(NETWORK) == 3 * block + rest


@pytest.mark.parametrize(("name", "sequence"), [("alone", 1), ("in parts", PROCESSES)])
def test_activations_are_what_autograd_keeps(name, sequence, found):
    deep, shallow = (
        memory(DiTConfig(width=96, heads=4, stages=(Stage(n),)), (SIDE, SIDE), 1, 0, sequence=sequence)["activations"]
        for n in (3, 1)
    )
    assert deep - shallow == pytest.approx(found["activations"][name], rel=0.15)
