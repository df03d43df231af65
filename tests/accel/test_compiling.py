"""Blocks compiled one by one: as many graphs as there are kinds of them, and no more for further sizes."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ditwright.accel import compiling, ready
from ditwright.accel.compiling import compile_blocks
from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from small_networks import off

MODEL = DiTConfig(width=16, heads=2, stages=(Stage(4),), channels=2, out_channels=2, num_classes=3)
SIZES = ((4, 6), (8, 8), (6, 4), (10, 12), (4, 16))


@pytest.fixture
def counter(monkeypatch):
    """Counts graphs, which run as they stand: no C++ compiler is needed."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "can_compile", lambda: True)
    yield CompileCounter()
    torch._dynamo.reset()


@torch.no_grad()
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "laid out"])
def test_blocks_of_a_kind_are_one_graph_and_the_second_size_makes_one_for_all(fast, counter, monkeypatch):
    net = build(MODEL)
    for p in net.parameters():
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    want = Denoiser(net, process_from(ProcessConfig())).eval()
    if fast:
        monkeypatch.setattr(ready, "compile_blocks", lambda blocks: compile_blocks(blocks, backend=counter))
        denoiser = ready.ready(want, "fp32", compiled=True)
    else:
        denoiser = Denoiser(build(MODEL), want.process).eval()
        denoiser.load_state_dict(want.state_dict())
        compile_blocks(denoiser.net.blocks, backend=counter)
    graphs, t, cond = [], torch.tensor(0.5), {"label": torch.tensor([0, 1])}
    for size in SIZES:
        x = torch.randn(2, 2, *size)
        assert off(denoiser(x, t, cond).eps, want(x, t, cond).eps) < 1e-5
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2, 2, 2]
