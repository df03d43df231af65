"""The training step: what it computes, what it leaves alone, and how it stops when numbers end."""

from __future__ import annotations

import copy
import weakref
from itertools import islice

import pytest
import torch
from torch import nn

from ditwright.diffusion.grid import uniform
from ditwright.diffusion.guidance import guided
from ditwright.diffusion.objective import Objective
from ditwright.diffusion.path import linear
from ditwright.diffusion.process import Denoiser, Process
from ditwright.diffusion.sampler import SAMPLERS, last
from ditwright.diffusion.target import data, velocity
from ditwright.diffusion.times import Uniform
from ditwright.model.build import build
from ditwright.model.config import CONDITIONINGS, DiTConfig, Stage, conditioned
from ditwright.nn.branch import run_all
from ditwright.rng import Draws
from ditwright.train.config import OptimConfig
from ditwright.train.ema import EMA
from ditwright.train.fit import Batch, NonFinite, fit
from ditwright.train.optim import Constant, adamw
from ditwright.train.runners import checkpointed

CONFIG = DiTConfig(width=16, heads=2, stages=(Stage(2),), channels=1, out_channels=1, num_classes=3)
OBJECTIVE = Objective(Process(linear, velocity), Uniform())


def network(conditioning: str = "adaln-zero", process: Process = OBJECTIVE.process) -> Denoiser:
    """A network whose every weight matters: none of them zero, as gates and head are at first."""
    denoiser = Denoiser(build(conditioned(CONFIG, conditioning)), process)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(torch.randn(p.shape, generator=noise), alpha=0.1)
    return denoiser


def batch(places: range, stream: str = "train") -> Batch:
    """Noise for pictures; a pure function of the places."""
    draws = Draws(0, places, "pictures")
    x0 = draws.normal(torch.empty(len(places), 1, 8, 8))
    return Batch(x0, {"label": torch.tensor([p % 3 for p in places])}, Draws(0, places, stream))


def batches(size: int, start: int = 0):
    while True:
        yield batch(range(start, start + size))
        start += size


def plain_steps(denoiser: Denoiser, feed, steps: int = 1, **settings):
    """Ticks of gradient descent with rate 1, so that a step is the gradient."""
    optim = torch.optim.SGD(denoiser.parameters(), lr=1.0)
    settings = {"schedule": Constant(), "clip": 1e9} | settings
    return list(islice(fit(denoiser, OBJECTIVE, feed, optim, **settings), steps))


def moves(denoiser: Denoiser, before: Denoiser) -> torch.Tensor:
    """How far all weights went, as one vector."""
    pairs = zip(denoiser.parameters(), before.parameters(), strict=True)
    return torch.cat([(p - old).detach().flatten() for p, old in pairs])


def test_a_few_pictures_are_learned_by_heart():
    """With the same noise at every step the loss has to fall to nearly nothing."""
    denoiser = Denoiser(build(CONFIG), OBJECTIVE.process)
    optim = adamw(denoiser, OptimConfig(lr=1e-2))
    same = (batch(range(4)) for _ in range(120))
    losses = [tick.loss for tick in fit(denoiser, OBJECTIVE, same, optim, schedule=Constant())]
    assert len(losses) == 120
    assert losses[-1] < 0.02 * losses[0]


@pytest.fixture(scope="module")
def one_picture() -> tuple[Denoiser, torch.Tensor]:
    """A network that saw a single picture, under all noise."""
    process = Process(linear, data)
    denoiser, picture = Denoiser(build(CONFIG), process), batch(range(1)).x0.clamp(-1, 1)
    feed = (
        Batch(
            picture.expand(8, -1, -1, -1),
            {"label": torch.zeros(8, dtype=torch.int64)},
            Draws(0, range(i, i + 8), "train"),
        )
        for i in range(0, 8 * 150, 8)
    )
    optim = adamw(denoiser, OptimConfig(lr=1e-2))
    for _ in fit(denoiser, Objective(process, Uniform()), feed, optim, schedule=lambda step: 1 - step / 150):
        pass
    return denoiser.eval(), picture


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim", "dpmpp_2m"])
def test_a_network_that_saw_one_picture_draws_that_picture(sampler, one_picture):
    denoiser, picture = one_picture
    draws = Draws(1, range(3), "sample")
    cond = {"label": torch.zeros(3, dtype=torch.int64)}
    with torch.no_grad():
        noise = draws.normal(torch.empty(3, 1, 8, 8))
        drawn = last(SAMPLERS[sampler](guided(denoiser, cond, cond, 1.0), noise, uniform(8), linear))
    assert (drawn - picture).abs().max() < 0.15
    assert (noise - picture).abs().max() > 1


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_batches_are_one_large_batch(accumulate):
    whole, parts = network(), network()
    (large,) = plain_steps(whole, batches(16))
    (small,) = plain_steps(parts, batches(16 // accumulate), accumulate=accumulate)
    before = network()
    torch.testing.assert_close(moves(parts, before), moves(whole, before), rtol=1e-4, atol=1e-6)
    assert small.loss == pytest.approx(large.loss, rel=1e-6)
    assert small.grad_norm == pytest.approx(large.grad_norm, rel=1e-5)
    assert small.samples == large.samples == 16


def test_a_clipped_step_keeps_no_gradient_until_the_next():
    """They are as large as the weights, and the next forward pass needs the room."""
    denoiser, seen, left = network(), [], []
    for p in denoiser.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(weakref.ref(p.grad)))

    def feed():
        for one in islice(batches(4), 2):
            left.append(sum(gradient() is not None for gradient in seen))
            yield one

    plain_steps(denoiser, feed(), steps=2, clip=0.01)
    assert len(seen) > 20
    assert left == [0, 0]


def test_clipping_shortens_a_long_gradient_and_only_that():
    free, clipped, roomy = network(), network(), network()
    (tick,) = plain_steps(free, batches(4))
    (short,) = plain_steps(clipped, batches(4), clip=0.01)
    plain_steps(roomy, batches(4), clip=2 * tick.grad_norm)
    before = network()
    assert short.grad_norm == tick.grad_norm == pytest.approx(moves(free, before).norm().item(), rel=1e-4)
    assert moves(clipped, before).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert torch.equal(moves(roomy, before), moves(free, before))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_checkpointed_blocks_give_the_same_bits(conditioning):
    kept, again = network(conditioning), network(conditioning)
    assert plain_steps(kept, batches(4), 2) == plain_steps(again, batches(4), 2, run=checkpointed)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), again.parameters(), strict=True))


def test_checkpointed_blocks_run_again_on_the_way_back():
    """Which is what the memory is saved with."""
    runs = []
    for run in (run_all, checkpointed):
        denoiser = network()
        denoiser.net.blocks[0]["attn"].register_forward_hook(lambda *args, run=run: runs.append(run))
        plain_steps(denoiser, batches(2), run=run)
    assert (runs.count(run_all), runs.count(checkpointed)) == (1, 2)


def test_ticks_count_and_the_schedule_reads_the_step():
    ticks = plain_steps(network(), batches(2), 3, done=5, schedule=lambda step: 10.0**-step)
    assert [tick.step for tick in ticks] == [6, 7, 8]
    assert [tick.lr for tick in ticks] == pytest.approx([1e-5, 1e-6, 1e-7])


@pytest.mark.parametrize(("count", "accumulate", "steps"), [(3, 1, 3), (5, 2, 2), (1, 2, 0), (0, 1, 0)])
def test_the_end_of_the_batches_is_the_end(count, accumulate, steps):
    assert len(plain_steps(network(), islice(batches(2), count), 99, accumulate=accumulate)) == steps


def test_the_average_moves_once_a_step():
    denoiser = network()
    ema = EMA(denoiser, 0.5)
    plain_steps(denoiser, batches(2), 3, ema=ema, accumulate=2)
    assert ema.updates == 3
    assert not torch.equal(ema.module.net.head.proj.weight, denoiser.net.head.proj.weight)


def stopped(denoiser: Denoiser, feed, **settings) -> str:
    """The message of a training that leaves the numbers at step 4; nothing of the network or its state moved."""
    ema = EMA(denoiser, 0.9)
    optim = adamw(denoiser, OptimConfig())
    before = copy.deepcopy((denoiser.state_dict(), ema.module.state_dict()))
    steps = fit(denoiser, OBJECTIVE, feed, optim, schedule=Constant(), ema=ema, done=3, **settings)
    with pytest.raises(NonFinite) as caught:
        next(steps)
    for kept, now in zip(before, (denoiser.state_dict(), ema.module.state_dict()), strict=True):
        assert all(torch.equal(kept[name].nan_to_num(7e7), now[name].nan_to_num(7e7)) for name in kept)
    assert ema.updates == 0
    assert not optim.state
    assert "step 4" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "net.patchify.proj",
        "net.time.mlp.2",
        "net.vectors.label.table",
        "net.blocks.0.attn.x.mod.lin",
        "net.blocks.0.attn.x.qkv",
        "net.blocks.1.mlp.x.fc2",
        "net.head.proj",
    ],
)
def test_a_poisoned_module_is_named(name, value):
    denoiser = network()
    module = denoiser.get_submodule(name)
    with torch.no_grad():
        module.weight[0] = value
    assert repr(name) in stopped(denoiser, batches(4))


def test_the_second_batch_of_a_step_is_watched_too():
    denoiser = network()
    with torch.no_grad():
        denoiser.net.vectors.label.table.weight[2] = float("nan")
    feed = iter([batch(range(2)), batch(range(2, 4))])  # the third class comes in the second
    assert "'net.vectors.label.table'" in stopped(denoiser, feed, accumulate=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["net.patchify.proj.weight", "net.blocks.1.attn.x.qkv.bias", "net.head.proj.weight"])
def test_a_poisoned_gradient_is_named(name, value):
    denoiser = network()
    denoiser.get_parameter(name).register_hook(lambda grad: torch.full_like(grad, value))
    message = stopped(denoiser, batches(4))
    assert "gradient" in message
    assert repr(name) in message


def test_gradients_too_large_to_add_up_stop_the_run():
    denoiser = network()
    denoiser.net.head.proj.weight.register_hook(lambda grad: torch.full_like(grad, 1e30))
    assert "gradient" in stopped(denoiser, batches(4))


def test_a_loss_may_be_any_function_per_sample():
    """`fit` knows neither paths nor targets: a loss that pulls outputs to zero shrinks the head."""
    denoiser = network()

    def size(ask, x0, cond, draws):
        return ask(x0, draws.uniform().float(), cond).x0.square().flatten(1).mean(1)

    optim = torch.optim.SGD(denoiser.net.head.proj.parameters(), lr=0.01)
    ticks = list(islice(fit(denoiser, size, batches(8), optim, schedule=Constant(), clip=1e9), 20))
    assert ticks[-1].loss < 0.9 * ticks[0].loss
    assert isinstance(denoiser, nn.Module)
