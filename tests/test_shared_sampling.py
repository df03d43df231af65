"""Processes that share the work on pictures draw what one draws.

The processes of `drawn` draw everything in one go and note how far it is off; the tests read that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import small_pipelines
from ditwright.cli.main import main
from ditwright.diffusion.config import SampleConfig
from ditwright.errors import UserError
from ditwright.model.presets import BASELINES
from ditwright.pipeline import Pipeline
from ditwright.pipeline.shared import Halves, shared
from ditwright.train.parallel import World, join
from ditwright.train.processes import together

SETTINGS = {
    "plain": {},
    "two batches": {"batch_size": 2},
    "heun, in an interval": {"sampler": "heun", "guidance_interval": (0.2, 0.7)},
    "rescaled": {"guidance_rescale": 0.5, "clip": 1.0},
    "away from fewer blocks": {"skip_guidance_layers": (1,), "skip_layer_guidance_stop": 0.9},
}
ONE = torch.device("cpu")


def drawn(output, wanted):
    """In every process: each setting alone and shared, and the text's; the distances from one to the other."""
    world, found = join(), {}
    size = world.size
    for name, settings in SETTINGS.items():
        pipe = small_pipelines.pipeline()
        found[name] = distance(pipe, world, [0, 1, 2], wanted, settings)
    texts = ["a red circle", "a blue square"]
    pipe = small_pipelines.prompted_pipeline(texts)
    found["text"] = distance(pipe, world, texts, wanted, {})
    if wanted["guidance"]:
        found["rows"] = rows_of_a_call(pipe, world, wanted)
    told = torch.tensor([max(map(float, value)) for value in found.values()])
    dist.all_reduce(told, dist.ReduceOp.MAX)  # what another process drew counts as well
    if world.main:
        Path(output).write_text(json.dumps(dict(zip(found, told.tolist(), strict=True)) | {"size": size}))
    dist.barrier()
    world.leave()


def distance(pipe, world, asked, wanted, settings):
    """Between the samples of one process and of all of them, as a share of the largest number."""
    one = pipe(asked, output_type="latent", **settings).images
    many = shared(pipe, world, pipe.settings(settings), **wanted)(asked, output_type="latent", **settings).images
    return [((many - one).abs().max() / one.abs().max()).item()]


def rows_of_a_call(pipe, world, wanted):
    """How many samples the network itself sees at once: half of the 8 that a batch is filled up to, twice."""
    seen = []
    handle = pipe.denoiser.net.register_forward_hook(lambda net, args, out: seen.append(len(args[0])))
    shared(pipe, world, pipe.settings({}), **wanted)(["a red circle"], output_type="latent")
    handle.remove()
    return seen


def run(tmp_path_factory, processes, **wanted):
    path = tmp_path_factory.mktemp("drawn") / "found.json"
    together(processes, drawn, str(path), wanted)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return run(tmp_path_factory, 2, guidance=True, sequence=1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return run(tmp_path_factory, 2, guidance=False, sequence=2)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return run(tmp_path_factory, 4, guidance=True, sequence=2)


@pytest.mark.parametrize("name", [*SETTINGS, "text"])
def test_halves_of_guidance_are_drawn_alike(name, halves):
    assert halves[name] <= 1e-6


def test_each_process_does_its_half(halves):
    assert halves["rows"] == 8  # and not 16


@pytest.mark.parametrize("name", [*SETTINGS, "text"])
def test_tokens_in_parts_are_drawn_alike(name, parts):
    assert parts[name] <= 1e-5


@pytest.mark.parametrize("name", [*SETTINGS, "text"])
def test_halves_and_parts_go_together(name, both):
    assert both["size"] == 4
    assert both[name] <= 1e-5


def test_the_command_draws_the_same_pictures(tiny_run, contents, tmp_path):
    words = ["sample", str(tiny_run), "--class-labels", "3", "7", "--guidance-scale", "2", "--num-inference-steps", "3"]
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ditwright"]
    done = subprocess.run(
        [*start, *words, "--guidance-parallel", "--output", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 pictures") == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--guidance-parallel", "guidance by halves takes 2 processes"),
        ("--sequence-parallel 2", "2 here, and torchrun started 1"),
        ("--sequence-parallel 0", "guidance by halves takes 2 processes, tokens in N parts N times as many"),
        ("--num-fid-samples 4 --guidance-parallel", "--guidance-parallel is for pictures"),
        ("--num-fid-samples 4 --sequence-parallel 2", "--sequence-parallel is for pictures"),
    ],
)
def test_another_number_of_processes_is_refused(words, said, tiny_run, tmp_path, capsys):
    assert main(["sample", str(tiny_run), "--output", str(tmp_path), *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_shared_is_refused():
    """Before any process waits for another."""
    pipe = small_pipelines.pipeline()
    with pytest.raises(UserError, match="guidance has no second half here"):
        shared(pipe, World(ONE, 0, 2), SampleConfig(guidance_scale=1.0), guidance=True)
    with pytest.raises(UserError, match="2 are not divisible by 3"):
        shared(pipe, World(ONE, 0, 3), SampleConfig(), sequence=3)
    u_net = Pipeline(pipe.denoiser, replace(pipe.card, model=BASELINES["ADM-256"]))
    with pytest.raises(UserError, match="a U-Net's work cannot be shared by tokens"):
        shared(u_net, World(ONE, 0, 2), SampleConfig(), sequence=2)


def test_an_odd_batch_is_asked_whole():
    class Group:
        size, rank = (lambda self: 2), (lambda self: 1)

    net = small_pipelines.pipeline().denoiser.net
    x, t, cond = torch.randn(9, 1, 8, 8), torch.rand(9), {"label": torch.zeros(9, dtype=torch.long)}
    torch.testing.assert_close(Halves(net, Group())(x, t, cond), net(x, t, cond), rtol=0, atol=0)
