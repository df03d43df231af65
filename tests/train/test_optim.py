"""AdamW's groups, learning-rate schedules, and the choice of precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ditwright.model.build import build
from ditwright.model.config import CONDITIONINGS, DiTConfig, Stage, conditioned
from ditwright.train import precision
from ditwright.train.config import OptimConfig
from ditwright.train.optim import Constant, Cosine, adamw, schedule_from

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


def test_frozen_weights_are_left_out():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in adamw(net, OptimConfig()).param_groups) == 2


@pytest.mark.parametrize(("bf16_seconds", "choice"), [(0.1, "bf16"), (0.7, "bf16"), (0.9, "fp32"), (5.0, "fp32")])
def test_auto_takes_bf16_where_it_is_clearly_faster(bf16_seconds, choice, monkeypatch):
    monkeypatch.setattr(precision, "product_seconds", lambda fp32, bf16: [1.0, bf16_seconds])
    assert precision.resolve("auto", CPU) == choice


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
