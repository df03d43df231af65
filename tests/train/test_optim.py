"""AdamW's groups, learning-rate schedules, and the choice of precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ditwright.errors import UserError
from ditwright.experiment import CodecTrainConfig
from ditwright.model.build import build
from ditwright.model.config import CONDITIONINGS, DiTConfig, Stage, conditioned
from ditwright.train import optim as optims
from ditwright.train import precision
from ditwright.train.config import OptimConfig
from ditwright.train.optim import Constant, Cosine, Muon, Together, adamw, optimizer_from, schedule_from

CPU = torch.device("cpu")


@pytest.mark.parametrize("schedule", [Constant(), Constant(7), Cosine(50), Cosine(50, 7)])
def test_schedules_rise_to_one_and_stay_within_it(schedule):
    factors = [schedule(step) for step in range(50)]
    warm = schedule.warmup
    assert factors[: warm + 1] == pytest.approx([(i + 1) / (warm + 1) for i in range(warm + 1)])
    assert factors[warm] == max(factors) == 1
    assert min(factors) > 0


def test_constant_stays_and_cosine_falls_to_zero_by_the_formula():
    assert {Constant(3)(step) for step in range(3, 1000)} == {1.0}
    cosine = Cosine(30, 10)
    falling = [cosine(step) for step in range(10, 31)]
    assert falling == sorted(falling, reverse=True)
    assert cosine(20) == pytest.approx(0.5)
    assert cosine(30) == pytest.approx(0, abs=1e-12)
    assert [cosine(10 + i) + cosine(30 - i) for i in range(11)] == pytest.approx([1.0] * 11)


@pytest.mark.parametrize("warmup", [0, 5, 50])
def test_a_schedule_is_made_for_the_length_of_the_run(warmup):
    assert schedule_from(OptimConfig(schedule="cosine", warmup=warmup), 50) == Cosine(50, warmup)
    assert schedule_from(OptimConfig(warmup=warmup), 50) == Constant(warmup)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_matrices_decay_and_nothing_else_does(conditioning):
    """With no gradient at all, AdamW's step is its weight decay."""
    config = DiTConfig(width=8, heads=2, stages=(Stage(1),), channels=1, out_channels=1, num_classes=3, qk_norm=True)
    net = build(conditioned(config, conditioning))
    for p in net.parameters():
        nn.init.constant_(p, 2.0)
        p.grad = torch.zeros_like(p)
    adamw(net, OptimConfig(lr=0.1, weight_decay=0.5)).step()
    decayed = {name for name, p in net.named_parameters() if torch.allclose(p, torch.tensor(2 * (1 - 0.1 * 0.5)))}
    stayed = {name for name, p in net.named_parameters() if (p == 2).all()}
    assert decayed | stayed == {name for name, _ in net.named_parameters()}
    products = {f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert decayed == products


NET = DiTConfig(width=16, heads=2, stages=(Stage(2),), channels=1, out_channels=1, num_classes=3)


def test_muon_moves_the_matrices_of_blocks_along_orthogonal_ones_and_adamw_the_rest():
    """Jordan et al. 2024: the first step is the orthogonal factor of the gradient, here at AdamW's size."""
    net = build(NET)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    optim = optimizer_from(net, OptimConfig(kind="muon", lr=0.01))
    optim.step()
    moved = {name: (before[name] - p.detach()) / 0.01 for name, p in net.named_parameters()}
    inside = {name for name in moved if name.startswith("blocks.") and moved[name].ndim == 2}
    matrices = {name for name in inside if ".mod." not in name}  # those that tokens pass through
    assert {"blocks.0.attn.x.qkv.weight"} < matrices < inside
    for name, step in moved.items():
        if name in matrices:  # singular values near 1, times 0.2 sqrt(longer side)
            values = torch.linalg.svdvals(step) / (0.2 * max(step.shape) ** 0.5)
            assert values.max() < 1.3, name
            assert 0.8 < values.mean() < 1.2, name
        else:
            assert step.abs() == pytest.approx(torch.ones_like(step), abs=1e-3), name
    optim.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_muon_remembers_by_the_weight_and_goes_on_exactly():
    nets = [build(NET) for _ in range(2)]
    one, other = (optimizer_from(net, OptimConfig(kind="muon", lr=0.01)) for net in nets)

    def step(net: nn.Module, optim: torch.optim.Optimizer, seed: int) -> None:
        for n, p in enumerate(net.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + n))
        optim.step()

    step(nets[0], one, 1)
    nets[1].load_state_dict(nets[0].state_dict())
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        other.state[q] = {key: value.clone() for key, value in one.state[p].items()}
    for net, optim in zip(nets, (one, other), strict=True):
        step(net, optim, 2)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q)


class Products(TorchDispatchMode):
    """What matrix products were computed in."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.dtypes |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 32)])
def test_muon_moves_alike_where_a_cpu_has_no_bf16(shape, monkeypatch):
    steps = {}
    for software, dtype in ("", torch.bfloat16), ("this CPU has none", torch.float32):
        monkeypatch.setattr(optims, "in_software", lambda precision, device, why=software: why)
        torch.manual_seed(0)
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        with Products() as seen:
            Muon([p], lr=0.1).step()
        assert seen.dtypes == {dtype}
        steps[dtype] = p.detach()
    assert (steps[torch.float32] - steps[torch.bfloat16]).norm() < 5e-3 * steps[torch.float32].norm()


def test_muon_is_refused_where_it_moves_nothing_or_has_another_rate():
    with pytest.raises(UserError, match="this network has none; take adamw"):
        optimizer_from(nn.Linear(2, 2), OptimConfig(kind="muon"))
    with pytest.raises(UserError, match="mup_width is for adamw"):
        OptimConfig(kind="muon", mup_width=64)
    with pytest.raises(UserError, match="an autoencoder takes adamw"):
        CodecTrainConfig(1, optim=OptimConfig(kind="muon"))
    assert not isinstance(optimizer_from(build(NET), OptimConfig()), Together)


def test_frozen_weights_are_left_out():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in adamw(net, OptimConfig()).param_groups) == 2


@pytest.mark.parametrize(("bf16_seconds", "choice"), [(0.1, "bf16"), (0.7, "bf16"), (0.9, "fp32"), (5.0, "fp32")])
def test_auto_takes_bf16_where_it_is_clearly_faster(bf16_seconds, choice, monkeypatch):
    monkeypatch.setattr(precision, "in_software", lambda name, device: "")
    monkeypatch.setattr(precision, "product_seconds", lambda fp32, bf16: [1.0, bf16_seconds])
    assert precision.resolve("auto", CPU) == choice


@pytest.mark.parametrize(
    ("times", "told"), [(7.9, ""), (8.1, "this CPU computes bf16 in software, far slower than fp32")]
)
def test_a_precision_without_instructions_is_known_by_small_products(times, told, monkeypatch):
    sizes = []

    def seconds(*dtypes, size=768, rounds=8):
        sizes.append(size)
        return [1.0, times]

    monkeypatch.setattr(precision, "product_seconds", seconds)
    precision.in_software.cache_clear()
    try:
        assert precision.in_software("bf16", CPU) == told
        assert precision.resolve("auto", CPU) == "fp32"
    finally:
        precision.in_software.cache_clear()
    assert sizes == ([256] if told else [256, 768])


def test_a_choice_that_was_made_is_not_measured(monkeypatch):
    monkeypatch.delattr(precision, "product_seconds")
    assert [precision.resolve(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_products(name, dtype):
    make = precision.autocast(name, CPU)
    for _ in range(2):  # one context for each forward pass
        with make():
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
