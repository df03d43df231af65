"""Blocks compiled one by one: as many graphs as there are kinds of them, and no more for further sizes."""

from __future__ import annotations

import sys
from dataclasses import replace

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


@torch.no_grad()
def test_many_kinds_batches_and_sizes_never_leave_a_block_to_python(counter):
    """Of SD3.5's kinds of block: torch's own limit of graphs ends at the second size."""
    kinds = (Stage(2, lanes="own", dual=True), Stage(2, lanes="own"), Stage(1, lanes="own", read_only=True))
    model = replace(MODEL, stages=kinds, context="stream", text_width=16, num_classes=0)
    denoiser = Denoiser(build(model), process_from(ProcessConfig())).eval()
    t, tokens = torch.tensor(0.5), torch.randn(2, 5, 16)
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        compile_blocks(denoiser.net.blocks, backend=counter)
        for size in SIZES:
            for batch in (2, 1):
                denoiser(torch.randn(batch, 2, *size), t, {"text": tokens[:batch]})
    assert counter.frame_count > 8


def test_a_torch_without_what_rewrites_are_built_on_compiles_and_says_so(counter, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.custom_graph_pass", None)
    monkeypatch.delitem(sys.modules, "ditwright.accel.rewrite", raising=False)
    block, options = torch.nn.Linear(2, 2), []
    monkeypatch.setattr(block, "compile", lambda **how: options.append(how))
    with pytest.warns(UserWarning, match=r"torch .* has not what accel/rewrite.py is built on .*custom_graph_pass"):
        compile_blocks([block])
    assert options == [{"options": {}}]
