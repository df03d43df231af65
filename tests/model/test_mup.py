"""muP: which weights it slows, the first weights it asks for, and that features move alike at every width."""

from dataclasses import replace

import pytest
import torch

from ditwright.errors import UserError
from ditwright.model.baseline import UNetConfig
from ditwright.model.build import build
from ditwright.model.config import CONDITIONINGS, DiTConfig, Stage, conditioned
from ditwright.model.mup import growth, rescale
from ditwright.train.config import OptimConfig
from ditwright.train.optim import adamw

BASE = DiTConfig(width=32, heads=2, stages=(Stage(2),), channels=1, out_channels=1, num_classes=4)


def wide(width):
    return replace(BASE, width=width, heads=width // 16)


def made(width, *, mup, seed=0):
    net = build(wide(width), seed)
    if mup:
        rescale(net, 32)
    return net, adamw(net, OptimConfig(lr=0.01), growth(wide(width), 32) if mup else {})


@pytest.mark.parametrize("kind", CONDITIONINGS)
def test_only_matrices_whose_inputs_grow_are_slowed(kind):
    found = growth(conditioned(wide(128), kind), 32)
    same = {name for name, times in found.items() if times == 1}
    assert same == {"patchify.proj.weight", "time.mlp.0.weight"}
    assert {found[name] for name in found.keys() - same} == {4.0}
    assert not any(name.endswith("bias") or "table" in name for name in found)


def test_rates_are_divided_by_the_growth_and_the_logged_one_is_not():
    net, optim = made(128, mup=True)
    names = {id(p): name for name, p in net.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optim.param_groups for p in group["params"]}
    assert rates.keys() == dict(net.named_parameters()).keys()
    assert optim.param_groups[0]["lr"] == 0.01
    assert rates["blocks.0.attn.x.qkv.weight"] == rates["head.proj.weight"] == 0.0025
    assert rates["blocks.0.attn.x.qkv.bias"] == rates["vectors.label.table.weight"] == 0.01
    assert rates["patchify.proj.weight"] == 0.01


def test_at_the_base_width_nothing_changes():
    plain, same = build(BASE), build(BASE)
    rescale(same, 32)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))
    assert set(growth(BASE, 32).values()) == {1.0}


def test_first_weights_shrink_with_their_inputs_and_with_nothing_else():
    base, net = build(BASE, 3), build(wide(512), 3)
    rescale(net, 32)
    theirs, times = dict(base.named_parameters()), growth(wide(512), 32)
    for name, p in net.named_parameters():
        if p.ndim == 2 and theirs[name].std() > 0:
            assert (p.std() / theirs[name].std()).item() == pytest.approx(times.get(name, 1.0) ** -0.5, rel=0.12), name


def moved(width, *, mup):
    """How far a few steps move the features before the head, as a root mean square."""
    net, optim = made(width, mup=mup)
    draws = torch.Generator().manual_seed(0)
    x, t = torch.randn(16, 1, 8, 8, generator=draws), 1000 * torch.rand(16, generator=draws)
    label, wanted, seen = {"label": torch.arange(16) % 4}, torch.randn(16, 1, 8, 8, generator=draws), []
    net.head.register_forward_hook(lambda module, args, out: seen.append(args[0].detach()))
    for _ in range(4):
        net(x, t, label).sub(wanted).square().mean().backward()
        optim.step()
        optim.zero_grad()
    net(x, t, label)
    return (seen[-1] - seen[0]).square().mean().sqrt().item()


def test_features_move_alike_at_every_width():
    """The coordinate check of Yang et al. 2022, App. D.1: bounded with muP, growing without."""
    with_mup = [moved(width, mup=True) for width in (64, 256, 1024)]
    without = [moved(width, mup=False) for width in (64, 256, 1024)]
    assert max(with_mup) / min(with_mup) < 2
    assert without[2] / without[0] > 4


def test_what_has_no_base_is_refused():
    with pytest.raises(UserError, match="multiple of the 16 channels of a head; got 40"):
        growth(BASE, 40)
    with pytest.raises(UserError, match="muP is for transformers"):
        growth(UNetConfig(32), 32)
    with pytest.raises(UserError, match=r"optim.mup_width is a width, or 0"):
        OptimConfig(mup_width=-1)
