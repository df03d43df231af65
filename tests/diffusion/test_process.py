"""Processes: what can be decoded, and how a network is asked."""

import itertools
import re

import pytest
import torch
from torch import nn

from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig
from ditwright.diffusion.path import DDPM, PATHS, coeffs_like, linear
from ditwright.diffusion.process import Denoiser, Index, Process, process_from, quarter_log, thousand
from ditwright.diffusion.target import EDM, TARGETS, decode, velocity
from ditwright.errors import UserError

UNDECIDABLE = set(itertools.product(("linear", "cosine"), ("noise", "score")))  # alpha is 0 at t = 1


class Recorder(nn.Module):
    """A network that remembers what it was asked."""

    def forward(self, x, t, cond=None, **rest):
        self.asked = (x, t, cond, rest)
        return torch.cat((x, -3 * torch.ones_like(x)), 1) if rest.get("twice") else 2 * x


@pytest.mark.parametrize(("path", "target"), list(itertools.product(PATHS, TARGETS)))
def test_pairs_are_refused_when_built_exactly_where_they_cannot_be_decoded(path, target):
    config = ProcessConfig(path, target)
    if (path, target) not in UNDECIDABLE:
        assert process_from(config).span == ((0.002, 80.0) if path == "karras" else (0.0, 1.0))
        return
    with pytest.raises(UserError) as caught:
        process_from(config)
    message = str(caught.value)
    assert f"target '{target}' cannot be decoded on path '{path}' at t = 1" in message
    low, high = map(float, re.search(r"span = \((\S+), (\S+)\)", message).groups())
    assert process_from(ProcessConfig(path, target, span=(low, high))).span == (low, high)  # the advice works


@pytest.mark.parametrize("where", [0.25, 0.5, 0.875])
def test_a_target_that_fails_inside_the_span_is_refused_too(where):
    def broken(c):
        return c.sigma - where, torch.zeros_like(c.alpha)

    with pytest.raises(UserError, match=f"target 'broken' cannot be decoded on path 'linear' at t = {where}"):
        Process(linear, broken)
    assert Process(linear, broken, span=(where + 0.01, 1.0)).target is broken


@pytest.mark.parametrize("span", [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0)])
def test_a_span_that_is_none_is_refused(span):
    with pytest.raises(UserError, match="span"):
        Process(linear, velocity, span=span)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"sigma_data": 0.0}, {"path": "liner"}, {"target": "epsilon"}])
def test_impossible_choices_are_refused_by_name(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        process_from(ProcessConfig(**bad))


def test_a_misspelt_name_is_answered_with_the_near_one():
    with pytest.raises(UserError, match="did you mean 'linear'"):
        process_from(ProcessConfig(path="liner"))


def test_networks_are_told_the_time_in_their_own_words():
    t = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    assert thousand(t).tolist() == pytest.approx([1, 500, 1000])
    assert Index(1000)(t).tolist() == pytest.approx([0, 499, 999])
    assert quarter_log(t).tolist() == pytest.approx((t.log() / 4).tolist())


def test_a_configuration_carries_its_knobs_to_the_objects():
    process = process_from(ProcessConfig("ddpm-cosine", "v", steps=50, learned_var=True))
    assert process.path == DDPM("cosine", 50)
    assert process.label == Index(50)
    assert process.learned_var
    edm = process_from(ProcessConfig("karras", "edm", sigma_data=0.3))
    assert edm.target == EDM(0.3)
    assert edm.scale_in.__self__ == EDM(0.3)
    assert edm.label is quarter_log


@pytest.mark.parametrize("name", ["linear", "ddpm", "karras"])
@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.3, 0.7]).double()], ids=["one", "each"])
def test_a_denoiser_asks_its_network_through_the_process(name, t):
    process, net, x = process_from(ProcessConfig(name, "v")), Recorder(), torch.randn(2, 3, 4)
    cond = {"label": torch.tensor([1, 2])}
    found = Denoiser(net, process)(x, t, cond, run="all")
    asked, label, told, rest = net.asked
    assert torch.equal(asked, x)
    assert (told, rest) == (cond, {"run": "all"})
    assert label.dtype == x.dtype
    torch.testing.assert_close(label, process.label(t.expand(2)).float())
    want = decode(2 * x, x, coeffs_like(process.path, t.expand(2), x), process.target)
    torch.testing.assert_close(found[:2], want[:2])
    assert found.var is None


def test_an_edm_network_sees_input_of_unit_variance():
    process, net = process_from(ProcessConfig("karras", "edm")), Recorder()
    t = torch.tensor([0.5, 80.0])
    x = torch.randn(2, 50_000) * (0.25 + t[:, None] ** 2).sqrt()
    Denoiser(net, process)(x, t)
    assert net.asked[0].std(1).tolist() == pytest.approx([1, 1], abs=0.02)


def test_the_second_half_of_the_channels_is_the_variance():
    x, t = torch.randn(2, 3, 4), torch.tensor(0.5)
    twice = Denoiser(Recorder(), process_from(ProcessConfig("ddpm", "noise", learned_var=True)))(x, t, twice=True)
    torch.testing.assert_close(twice.eps, x)
    assert (twice.var == (-3 + 1) / 2).all()
    assert twice.var.shape == x.shape


@pytest.mark.parametrize(
    ("config", "knobs"),
    [
        (ProcessConfig, {"steps": 500}),
        (ProcessConfig, {"sigma_data": 0.3}),
        (ObjectiveConfig, {"mean": 0.3}),
        (ObjectiveConfig, {"times": "discrete", "std": 0.8}),
        (ObjectiveConfig, {"gamma": 2.0}),
    ],
)
def test_a_knob_that_nothing_would_read_is_refused(config, knobs):
    with pytest.raises(UserError, match=list(knobs)[-1]):
        config(**knobs)
