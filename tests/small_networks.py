"""Networks of every kind of branch, of a size that runs in a blink, for tests of processes that share one."""

from __future__ import annotations

from dataclasses import replace

import torch

from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage, conditioned

DIT = DiTConfig(width=16, heads=2, stages=(Stage(2),), channels=2, out_channels=2, num_classes=3)
TEXT = {"num_classes": 0, "text_width": 12, "context": "stream"}
OWN = Stage(2, lanes="own")
NETWORKS = {  # tokens alone, streams of shared and own weights, rotations, what is read, masks; and an input's sides
    "adaln-zero": (DIT, (4, 6)),
    "odd tokens": (DIT, (6, 6)),
    "in-context": (conditioned(DIT, "in-context"), (4, 6)),
    "cross": (conditioned(DIT, "cross"), (4, 6)),
    "lightning": (replace(DIT, rope=(4, 4), norm="rms", mlp="swiglu", qk_norm=True), (4, 4)),
    "video": (replace(DIT, patch=(1, 2, 2), sincos=(), rope=(2, 2, 4)), (3, 4, 2)),
    "sd3": (replace(DIT, stages=(OWN, Stage(1, lanes="own", read_only=True)), pooled_width=5, **TEXT), (4, 6)),
    "sd3.5": (replace(DIT, stages=(replace(OWN, dual=True),), qk_norm=True, **TEXT), (6, 6)),
    "flux": (replace(DIT, stages=(OWN, Stage(2, parallel=True)), sincos=(), rope=(2, 4, 2), **TEXT), (4, 4)),
    "pixart": (
        replace(DIT, stages=(Stage(2, "adaln_single", cross=True, cross_norm=False),), **(TEXT | {"context": "cross"})),
        (4, 6),
    ),
    "tower": (replace(DIT, text_vocab=9, text_depth=1, text_heads=2, stages=(OWN,), **TEXT), (4, 6)),
}


def given(config, space, masked):
    """Two samples with all that a network is told, and its weights made to matter."""
    g = torch.Generator().manual_seed(0)
    net = build(config)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=g), alpha=0.2)
    x, t = torch.randn(2, config.channels, *space, generator=g), torch.tensor([0.3, 0.8])
    cond = {"label": torch.tensor([0, 2]), "pooled": torch.randn(2, 5, generator=g)}
    cond["text"] = torch.randn(2, 5, 12, generator=g)
    if config.text_vocab:
        cond["text"] = torch.randint(9, (2, 5), generator=g)
    if masked:
        cond["text_mask"] = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    return net, x, t, cond


def results(net, x, t, cond, run):
    """What comes out, and the gradients of a loss that weighs every number of it differently."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    out = net(x, t, cond, **({} if run is None else {"run": run}))
    (out * torch.linspace(0.5, 1.5, out.numel()).view_as(out)).square().mean().backward()
    return out.detach(), {"x": x.grad, **{name: p.grad for name, p in net.named_parameters() if p.grad is not None}}


def off(found, want):
    """The largest difference, as a share of the largest number."""
    return ((found - want).abs().max() / want.abs().max().clamp_min(1e-12)).item()
