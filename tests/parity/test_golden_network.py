"""The network against numbers of the original DiT (golden/dit_official_tiny.safetensors)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ditwright import convert
from ditwright.diffusion.guidance import guided

GOLDEN = load_file(Path(__file__).parent / "golden" / "dit_official_tiny.safetensors")
STATE = {name.removeprefix("state."): v for name, v in GOLDEN.items() if name.startswith("state.")}


@pytest.fixture(scope="module")
def denoiser():
    return convert.load(STATE, family="dit", heads=3).requires_grad_(False)


def off(ours, theirs):
    """The largest difference, as a share of the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def raw(pred):
    """What the network itself would have said: the noise, then the variance in -1 ... 1."""
    return torch.cat((pred.eps, 2 * pred.var - 1), 1)


def test_the_network_gives_the_numbers_of_the_original(denoiser):
    out = denoiser.net(GOLDEN["x"], GOLDEN["t"].float(), {"label": GOLDEN["y"]})
    assert off(out, GOLDEN["out"]) < 2e-5


def test_decoding_the_network_keeps_its_numbers(denoiser):
    pred = denoiser(GOLDEN["x"], (GOLDEN["t"] + 1) / 1000, {"label": GOLDEN["y"]})
    assert off(raw(pred), GOLDEN["out"]) < 2e-5


@pytest.mark.parametrize("n", range(3))
def test_guidance_of_three_channels_gives_the_numbers_of_the_original(denoiser, n):
    x, y, index, theirs = (GOLDEN[f"cfg_{name}"] for name in ("x", "y", "t", "out_scale4"))
    assert torch.equal(y[3:], torch.full((3,), 10))  # the second half of the batch is the null class
    cond, null, t = {"label": y[n : n + 1]}, {"label": y[n + 3 : n + 4]}, (index[n] + 1) / 1000
    ours = raw(guided(denoiser, cond, null, 4.0, channels=3)(x[n : n + 1], t))
    assert off(ours, theirs[n : n + 1]) < 2e-5
    # The original's second half: the same guided channels, the rest as the null class has it.
    unguided = raw(denoiser(x[n : n + 1], t, null))
    assert off(torch.cat((ours[:, :3], unguided[:, 3:]), 1), theirs[n + 3 : n + 4]) < 2e-5
