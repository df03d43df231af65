"""Blocks as a CUDA graph: the same numbers, one graph for every shape, and what is asked for in vain is told.

Where there is no GPU a stand-in keeps what would be captured and does it again into the same memory.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from ditwright.accel import ready as laying_out
from ditwright.accel.graphs import MOST, WARM, Graphed, captured
from ditwright.accel.ready import along, ready
from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.errors import UserError
from ditwright.nn.runners import Without
from small_networks import NETWORKS, given, off

TIMES = torch.linspace(1, 0, 5, dtype=torch.float64)
ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="captures on a GPU"))


class StandIn:
    """Captures nothing: does the work again. It counts."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, work):
        out, self.captured = work(), self.captured + 1

        def replay():
            self.replayed += 1
            for place, x in zip(out, work(), strict=True):
                place.copy_(x)

        return replay, out


def made(name, masked, device, precision="fp32"):
    """A denoiser, the same with graphs, what captures them, and an input."""
    config, space = NETWORKS[name]
    net, x, _, cond = given(config, space, masked)
    heard = {key: cond[key].to(device) for key in [*net.wants, *(["text_mask"] if masked else [])]}
    denoiser = Denoiser(net, process_from(ProcessConfig())).eval().to(device)
    capture = StandIn() if device == "cpu" else None
    fast = ready(denoiser, precision, graphs=device == "cuda")
    if device == "cpu":
        fast.run = Graphed(capture)
    return ready(denoiser, precision), fast, capture, x.to(device), heard


HEARD = [(name, masked) for name in NETWORKS for masked in (False, True)[: 1 + (NETWORKS[name][0].text_width > 0)]]


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize(("name", "masked"), HEARD)
@torch.no_grad()
def test_every_step_and_every_input_is_the_same(name, masked, device):
    plain, fast, capture, x, cond = made(name, masked, device)
    plain, fast = along(plain, TIMES), along(fast, TIMES)
    for factor in (1, 2):
        for t in TIMES[:-1]:
            want, found = plain(factor * x, t, cond), fast(factor * x, t, cond)
            limit = 0 if device == "cpu" else 1e-5  # libraries of products may choose others while they are captured
            assert off(found.x0, want.x0) <= limit
            assert off(found.eps, want.eps) <= limit
    assert len(fast.run.graphs) == 1
    if capture is not None:
        assert (capture.captured, capture.replayed) == (1, 8)


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@torch.no_grad()
def test_what_came_before_stays_as_it_was(device):
    plain, fast, _, x, cond = made("adaln-zero", False, device)
    first = fast(x, TIMES[1], cond).eps
    kept = first.clone()
    fast(3 * x, TIMES[2], cond)
    assert torch.equal(first, kept)
    with torch.inference_mode():
        assert off(fast(x, TIMES[1], cond).eps, plain(x, TIMES[1], cond).eps) < 1e-5
    assert torch.equal(fast(x, TIMES[1], cond).eps, kept)


@torch.no_grad()
def test_batches_have_graphs_of_their_own_and_past_the_last_run_as_they_are():
    plain, fast, capture, x, cond = made("adaln-zero", False, "cpu")
    for count in range(1, MOST + 3):
        many, told = x[:1].expand(count, *x.shape[1:]), {"label": cond["label"][:1].expand(count)}
        assert torch.equal(fast(many, TIMES[1], told).eps, plain(many, TIMES[1], told).eps)
    assert capture.captured == len(fast.run.graphs) == MOST


@torch.no_grad()
def test_another_runner_runs_by_itself():
    plain, fast, capture, x, cond = made("adaln-zero", False, "cpu")
    run = Without((0,))
    assert off(fast(x, TIMES[1], cond, run=run).eps, plain(x, TIMES[1], cond, run=run).eps) == 0
    assert not capture.captured


def test_what_is_captured_has_run_before_on_a_stream_beside(monkeypatch):
    """With stand-ins for CUDA's streams and graphs, which write down what happens."""
    log = []

    class Stream:
        wait_stream = staticmethod(lambda other: log.append("waits"))

    class CUDAGraph:
        replay = staticmethod(lambda: log.append("replay"))

    @contextmanager
    def noted(what):
        log.append(f"in {type(what).__name__}")
        yield
        log.append("out")

    for name, stand_in in {
        "Stream": Stream, "current_stream": Stream, "CUDAGraph": CUDAGraph, "stream": noted, "graph": noted
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    replay, out = captured(lambda: log.append("work") or "what it gives")
    replay()
    before = ["waits", "in Stream", *["work"] * WARM, "out", "waits"]
    assert (log, out) == ([*before, "in CUDAGraph", "work", "out", "replay"], "what it gives")


def test_no_graph_on_a_cpu():
    net, *_ = given(*NETWORKS["adaln-zero"], False)
    denoiser = Denoiser(net, process_from(ProcessConfig())).eval()
    with pytest.raises(UserError, match="graphs are of a GPU with CUDA, and this network is on the CPU"):
        ready(denoiser, graphs=True)
    assert laying_out.ready(denoiser).run is laying_out.run_all
