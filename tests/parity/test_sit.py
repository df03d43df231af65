"""SiT's checkpoints: the same network, its time and its velocity the other way round (Ma et al. 2024)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ditwright import SAMPLERS, convert
from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.grid import uniform
from ditwright.diffusion.process import process_from
from ditwright.diffusion.sampler import last
from ditwright.errors import UserError

GOLDEN = load_file(Path(__file__).parent / "golden" / "dit_official_tiny.safetensors")
STATE = {key.removeprefix("state."): value for key, value in GOLDEN.items() if key.startswith("state.")}
LABEL = torch.tensor([1, 4, 10])


@pytest.fixture(scope="module")
def sit():
    return convert.load(STATE, family="sit", heads=3)


@torch.no_grad()
def their_velocity(x, tau):
    """Of the network in its own convention, tau = 1 at the data: the kept half of the doubled output."""
    net = convert.load(STATE, family="dit", heads=3).net
    return net(x, torch.full((len(x),), tau), {"label": LABEL})[:, :4]


def test_the_kept_half_is_the_whole_output(sit):
    x, t = GOLDEN["x"], torch.rand(6)
    with torch.no_grad():
        doubled = convert.load(STATE, family="dit", heads=3).net(x, t, {"label": GOLDEN["y"]})
        kept = sit.net(x, t, {"label": GOLDEN["y"]})
    assert kept.shape == x.shape
    torch.testing.assert_close(kept, doubled[:, :4])


def test_euler_walks_as_their_ode_does(sit):
    x = theirs = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(10):
        theirs = theirs + 0.1 * their_velocity(theirs, step / 10)

    def denoise(x_t, t):
        return sit(x_t, t, {"label": LABEL})

    with torch.no_grad():
        ours = last(SAMPLERS["euler"](denoise, x, uniform(10), sit.process.path))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_a_network_without_doubled_output_loads_as_it_is():
    rows = STATE["final_layer.linear.bias"].unflatten(0, (4, 2, 4))[:, 0].flatten()
    weight = STATE["final_layer.linear.weight"].unflatten(0, (4, 2, 4))[:, 0].flatten(0, 1)
    plain = STATE | {"final_layer.linear.weight": weight, "final_layer.linear.bias": rows}
    x, t = GOLDEN["x"], torch.rand(6)
    with torch.no_grad():
        a = convert.load(plain, family="sit", heads=3).net(x, t, {"label": GOLDEN["y"]})
        b = convert.load(STATE, family="sit", heads=3).net(x, t, {"label": GOLDEN["y"]})
    assert torch.equal(a, b)


def test_a_misshapen_last_layer_is_named():
    bad = STATE | {"final_layer.linear.weight": torch.zeros(30, 48)}
    with pytest.raises(UserError, match=r"'final_layer\.linear\.weight' has shape \(30, 48\)"):
        convert.load(bad, family="sit", heads=3)


@pytest.mark.parametrize("target", ["velocity", "noise"])
def test_reversed_time_says_the_same_of_the_sample(target):
    span = (0.0, 0.99)
    plain = process_from(ProcessConfig("linear", target, span=span))
    turned = process_from(ProcessConfig("linear", target, span=span, reversed_time=True))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    sign = -1 if target == "velocity" else 1
    for ours, theirs in zip(plain.target(plain.path(t)), turned.target(turned.path(t)), strict=True):
        torch.testing.assert_close(theirs, sign * ours)
    torch.testing.assert_close(turned.label(t), 1 - t)


def test_time_is_reversed_only_where_it_has_an_end():
    with pytest.raises(UserError, match="reversed_time fits"):
        ProcessConfig("karras", "edm", reversed_time=True)
