"""Processes that hold a part of every matrix train, save and go on as one that holds them all.

The processes of `shared` run all networks in one go and note how far they are off; the tests read that.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from started import noted, torchrun
from torch.distributed.tensor import DTensor

from ditwright.cli.main import main
from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig
from ditwright.diffusion.objective import objective_from
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.errors import UserError
from ditwright.model.build import build, parameters
from ditwright.model.tensor_parallel import PLANS
from ditwright.model.weights import load_strictly, read_safetensors, write_safetensors
from ditwright.rng import Draws
from ditwright.train.config import OptimConfig, ParallelConfig
from ditwright.train.cost import memory
from ditwright.train.ema import EMA
from ditwright.train.fit import Batch, fit
from ditwright.train.optim import Constant, optimizer_from
from ditwright.train.parallel import World, arranged, join
from ditwright.train.precision import autocast
from ditwright.train.processes import together
from ditwright.train.runners import checkpointed
from ditwright.train.state import checkpoint_path, checkpoints, read_whole, training_state
from small_networks import NETWORKS, given, off

PROCESSES = 4
WAYS = {
    "data": (ParallelConfig(data=2, tensor=2), "fp32", "adamw"),
    "shards": (ParallelConfig(shard=2, tensor=2), "fp32", "adamw"),
    "tokens": (ParallelConfig(sequence=2, tensor=2), "fp32", "adamw"),
    "muon": (ParallelConfig(shard=2, tensor=2), "fp32", "muon"),
    "bf16": (ParallelConfig(shard=2, tensor=2, offload=True), "bf16", "adamw"),
}
NETS = {name: NETWORKS[name] for name in ("lightning", "sd3", "flux", "pixart")}  # between them every plan
NETS["four heads"] = (replace(NETWORKS["adaln-zero"][0], heads=4), (4, 6))  # by two of tokens, by two of tensor
PAIRS = [("data", "four heads"), ("tokens", "four heads"), ("muon", "lightning"), ("bf16", "lightning")]
PAIRS += [("shards", name) for name in NETS if name != "four heads"]
ROUNDED = {"muon": 1e-4, "bf16": 2e-2}  # its steps, all products
STEPS = 2


def trained(world, name, precision="fp32", kind="adamw"):
    """A network after some steps on two samples, clipped and with two batches each, its average and its numbers."""
    net, x, _, cond = given(*NETS[name], NETS[name][0].text_width > 0)
    process = process_from(ProcessConfig("linear", "velocity"))
    denoiser = Denoiser(net, process)
    ema = EMA(denoiser, 0.9)
    world.place(denoiser, ema.module)
    optim, mine = optimizer_from(denoiser.net, OptimConfig(kind, lr=1e-3)), world.share(range(2))
    part = slice(mine.start, mine.stop)
    cond = {name: told[part] for name, told in cond.items()}
    draws = [Draws(0, range(2 * n + mine.start, 2 * n + mine.stop), "train") for n in range(2 * STEPS)]
    ticks = fit(
        world.wrap(denoiser),
        objective_from(ObjectiveConfig(), process),
        iter([Batch(x[part], cond, drawn) for drawn in draws]),
        optim,
        schedule=Constant(),
        ema=ema,
        accumulate=2,
        clip=0.05,
        run=world.runner(checkpointed),
        autocast=autocast(precision, world.device),
        mean=world.mean,
        norm=world.norm,
    )
    return denoiser, ema, optim, [number for tick in ticks for number in (tick.loss, tick.grad_norm)]


def shared(folder):
    """In every process: all networks in all ways, and alone."""
    world, found, folder = join(), {}, Path(folder)
    for way, name in PAIRS:
        there = folder / f"{way} {name}"
        if world.main:
            (there / "alone").mkdir(parents=True)
        dist.barrier()
        found[there.name] = compared(world, way, name, there)
    try:
        trained(arranged(world, WAYS["tokens"][0]), "lightning")
    except UserError as error:
        found["refused"] = str(error)
    if world.main:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    world.leave()


def compared(world, way, name, folder):
    """How far a run of all processes is from one of this process alone, and what it writes and reads."""
    config, precision, kind = WAYS[way]
    net, ema, optim, want = trained(World(world.device), name, precision, kind)
    state, average, file = training_state(net, optim, None), ema.module.state_dict(), folder / "alone/train.safetensors"
    if world.main:
        write_safetensors(file, state)
    dist.barrier()
    world = arranged(world, config, precision)
    net, ema, optim, got = trained(world, name, precision, kind)
    mine = training_state(net, optim, None)
    world.keep(mine, folder / ".half", later=False)(folder)
    dist.barrier()
    written, again = read_whole(folder / "train.safetensors"), world.read(folder / "train.safetensors", net)
    assert mine.keys() == state.keys() == written.keys() == again.keys()
    same = all(torch.equal(plain(again[key]), plain(mine[key])) for key in mine)
    whole = world.whole(ema.module, everywhere=True).state_dict()
    load_strictly(net, {key[4:]: p for key, p in world.read(file, net).items() if key.startswith("net.")})
    loaded = {name: world.full(name, p) for name, p in net.named_parameters()}
    parts = [held(p) for key, p in mine.items() if key.startswith("net.") and p.ndim == 2 and "blocks" in key]
    return {
        "numbers": max(abs(a - b) / b for a, b in zip(got, want, strict=True)),
        "average": max(off(whole[key], average[key]) for key in average),
        "written": max(off(written[key], state[key]) for key in state if state[key].any()),
        "again": same,
        "loaded": all(torch.equal(loaded[key], state[f"net.{key}"]) for key in loaded),
        "held": min(parts),
        "bytes": sum(4 * plain(p).numel() for p in net.parameters()),
    }


def plain(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held(tensor):
    """The share of it that a process has."""
    return plain(tensor).numel() / tensor.numel()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the processes noted."""
    folder = tmp_path_factory.mktemp("parts")
    together(PROCESSES, shared, str(folder))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(("way", "name"), PAIRS)
def test_processes_together_train_as_one_does(way, name, found):
    one = found[f"{way} {name}"]
    assert one["numbers"] <= ROUNDED.get(way, 1e-5)  # losses, and the norms by which gradients are clipped
    assert one["average"] <= 1e-4 or way in ROUNDED  # Adam moves what has no gradient, such as keys' biases
    assert one["held"] == 1 / 2 / WAYS[way][0].shard


@pytest.mark.parametrize(("way", "name"), PAIRS)
def test_what_is_written_lies_as_without_parts_and_comes_back_to_the_bit(way, name, found):
    one = found[f"{way} {name}"]
    assert one["written"] <= 1e-3 or way in ROUNDED  # the moments too, of small gradients
    assert one["again"]
    assert one["loaded"]  # the file of one process


def test_heads_are_for_tokens_and_matrices_together(found):
    assert found["refused"] == "parallel.sequence times parallel.tensor is 4 and must divide the 2 heads"


def test_every_plan_is_tried():
    kinds = {type(module) for config, _ in NETS.values() for module in build(config).blocks.modules()}
    assert set(PLANS) <= kinds


@pytest.mark.parametrize(("way", "name"), [pair for pair in PAIRS if pair[1] != "pixart"])  # its tables have odd rows
def test_the_memory_of_a_process_is_what_is_said(way, name, found):
    (config, space), parallel = NETS[name], WAYS[way][0]
    ways = {name: getattr(parallel, name) for name in ("shard", "sequence", "tensor")}
    assert found[f"{way} {name}"]["bytes"] == memory(config, space, 1, parameters(config), **ways)["weights"]


# Small enough a clip that every step is clipped: the norm over all parts decides what is learnt.
LAST = 4
WORDS = f"--steps {LAST} --optim.clip 0.05 --optim.accumulate 2 --checkpoint_activations true".split()
WORDS += ["--model.qk_norm", "true", "--model.mlp", "swiglu"]


@pytest.fixture(scope="module")
def words(tiny_words):
    return ["train", "digits", *tiny_words, *WORDS]


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main([*words, "--output", str(folder)]) == 0
    return folder


def same(ours, theirs):
    """Whether two runs computed the same, but for the order of their sums."""
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(noted(ours, name), noted(theirs, name), rtol=1e-5, atol=0)
    one, two = (read_safetensors(checkpoints(run)[-1] / "model.safetensors") for run in (ours, theirs))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("processes", "more"),
    [
        (2, "--parallel.tensor 2"),
        (4, "--parallel.data 2 --parallel.tensor 2"),
        (4, "--parallel.shard 2 --parallel.tensor 2 --log.async_save true"),
    ],
    ids=["parts", "copies of parts", "shards of parts"],
)
def test_a_run_in_parts_is_that_of_one_process(processes, more, words, alone, tmp_path):
    done = torchrun(processes, *words, *more.split(), "--output", tmp_path / "run")
    assert checkpoint_path(tmp_path / "run", LAST).is_dir(), done.stderr
    assert "matrices in 2 parts" in done.stderr
    assert len(noted(tmp_path / "run")) == LAST
    same(tmp_path / "run", alone)
    assert (tmp_path / f"run/samples/step-{LAST:08d}.png").is_file()


def test_a_run_goes_on_with_any_parts(words, alone, tmp_path):
    """1 -> 2 parts -> 2 shards -> 2 parts, and 2 parts -> 1."""
    legs = [(1, ""), (2, "--parallel.tensor 2"), (2, "--parallel.shard 2"), (2, "--parallel.tensor 2")]
    for step, (processes, more) in enumerate(legs, 1):
        asked = [*words, *more.split(), "--steps", str(step), "--output", str(tmp_path / "run")]
        if processes == 1:
            assert main(asked) == 0
        else:
            done = torchrun(processes, *asked)
            assert checkpoint_path(tmp_path / "run", step).is_dir(), done.stderr
        if step == 2:
            shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert main([*words, "--output", str(tmp_path / "other")]) == 0
    for name in ("run", "other"):
        same(tmp_path / name, alone)


@pytest.mark.parametrize("size", [4, 6])
def test_processes_with_the_same_samples_are_neighbours(size):
    worlds = [World(torch.device("cpu"), rank, size, tensor=2) for rank in range(size)]
    shares = [world.share(range(12)) for world in worlds]
    assert shares[::2] == shares[1::2]
    assert [place for share in shares[::2] for place in share] == list(range(12))


def test_what_cannot_be_parted_is_told_in_a_line():
    world = World(torch.device("cpu"), size=4)
    with pytest.raises(
        UserError, match=r"\(data \(any\), shard 1, sequence 1, tensor 3\) is for 3 process.* and 4 were"
    ):
        arranged(world, ParallelConfig(tensor=3))
    with pytest.raises(UserError, match=r"batch_size 3 is not divisible by 2 parts"):
        replace(world, tensor=2).share(range(3))
    with pytest.raises(UserError, match=r"parallel.tensor is at least 1; got 0"):
        ParallelConfig(tensor=0)
