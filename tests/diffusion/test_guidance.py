"""Classifier-free guidance."""

import pytest
import torch
from torch import nn

from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.guidance import Skip, guided
from ditwright.diffusion.path import coeffs_like, cosine, karras, linear
from ditwright.diffusion.process import Denoiser, Process, process_from
from ditwright.diffusion.target import TARGETS

X, COND, NULL = (4, 4, 3, 3), {"label": torch.tensor([0, 1, 2, 3])}, {"label": torch.tensor([9, 9, 9, 9])}


class Opinion(nn.Module):
    """The same view of the clean sample, put into the words of any target; counts how often it is asked."""

    def __init__(self, path, target):
        super().__init__()
        self.path, self.target, self.batches = path, target, []

    def forward(self, x, t, cond, bias=0.0):
        self.batches.append(len(x))
        label = cond["label"].double().reshape(-1, 1, 1, 1)
        x0 = (0.5 + 0.1 * label) * torch.tanh(x + label) + bias
        c = coeffs_like(self.path, t, x)
        a, b = self.target(c)
        return a * x0 + b * (x - c.alpha * x0) / c.sigma


def denoiser(path=cosine, target="v", span=(0.0, 0.99)):
    target = TARGETS[target]
    return Denoiser(Opinion(path, target), Process(path, target, label=lambda t: t, span=span))


def inputs(time=0.6):
    return torch.randn(X, dtype=torch.float64), torch.tensor(time, dtype=torch.float64)


def std(x):
    return x.std((1, 2, 3))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_guidance_goes_from_the_null_through_the_condition(scale):
    den, (x, t) = denoiser(), inputs()
    found, cond, null = guided(den, COND, NULL, scale)(x, t), den(x, t, COND), den(x, t, NULL)
    torch.testing.assert_close(found.x0, null.x0 + scale * (cond.x0 - null.x0))
    torch.testing.assert_close(found.eps, null.eps + scale * (cond.eps - null.eps))
    assert den.net.batches == [8, 4, 4]  # both at once


def test_scale_1_asks_the_condition_once_and_alone():
    den, (x, t) = denoiser(), inputs()
    found = guided(den, COND, NULL, 1.0)(x, t)
    assert den.net.batches == [4]
    assert torch.equal(found.x0, den(x, t, COND).x0)


@pytest.mark.parametrize(("time", "inside"), [(0.1, False), (0.3, True), (0.5, True), (0.7, True), (0.9, False)])
def test_outside_its_interval_guidance_asks_the_condition_alone(time, inside):
    den, (x, t) = denoiser(span=(0.0, 1.0)), inputs(time)
    found = guided(den, COND, NULL, 4.0, interval=(0.3, 0.7))(x, t)
    assert den.net.batches == [8 if inside else 4]
    assert torch.equal(found.x0, den(x, t, COND).x0) != inside


@pytest.mark.parametrize(("time", "inside"), [(7.0, False), (9.0, True), (39.0, True), (41.0, False)])
def test_an_interval_is_a_share_of_the_span(time, inside):
    den, (x, t) = denoiser(karras, span=(0.002, 80.0)), inputs(time)
    guided(den, COND, NULL, 4.0, interval=(0.1, 0.5))(x, t)
    assert den.net.batches == [8 if inside else 4]


@pytest.mark.parametrize("channels", [1, 3])
def test_guidance_of_the_first_channels_leaves_the_rest_to_the_condition(channels):
    den, (x, t) = denoiser(), inputs()
    found, whole, cond = guided(den, COND, NULL, 4.0, channels=channels)(x, t), guided(den, COND, NULL, 4.0)(x, t), None
    cond = den(x, t, COND)
    for name in ("x0", "eps"):
        assert torch.equal(getattr(found, name)[:, :channels], getattr(whole, name)[:, :channels])
        torch.testing.assert_close(getattr(found, name)[:, channels:], getattr(cond, name)[:, channels:])


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_brings_the_spread_back_to_the_conditions(rescale):
    den, (x, t) = denoiser(), inputs()
    found, plain = guided(den, COND, NULL, 4.0, rescale=rescale)(x, t), guided(den, COND, NULL, 4.0)(x, t)
    cond = den(x, t, COND)
    assert (std(plain.x0) - std(cond.x0)).abs().min() > 0.01  # there is something to bring back
    torch.testing.assert_close(std(found.x0), rescale * std(cond.x0) + (1 - rescale) * std(plain.x0))


@pytest.mark.parametrize("options", [{}, {"rescale": 0.7}, {"channels": 3}, {"channels": 3, "rescale": 1.0}])
@pytest.mark.parametrize("path", [linear, cosine])
def test_guided_data_and_noise_still_make_the_noisy_sample(path, options):
    (x, t) = inputs()
    found, c = guided(denoiser(path), COND, NULL, 4.0, **options)(x, t), path(t)
    torch.testing.assert_close(c.alpha * found.x0 + c.sigma * found.eps, x)


@pytest.mark.parametrize("options", [{}, {"rescale": 0.7}, {"channels": 3}, {"interval": (0.2, 0.9)}])
@pytest.mark.parametrize("target", ["noise", "data", "score", "velocity", "edm"])
def test_guidance_is_the_same_whatever_the_target(target, options):
    (x, t) = inputs()
    found, in_v = (guided(denoiser(target=name), COND, NULL, 4.0, **options)(x, t) for name in (target, "v"))
    torch.testing.assert_close(found.x0, in_v.x0)
    torch.testing.assert_close(found.eps, in_v.eps)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_variance_is_the_conditions(rescale):
    class Twice(nn.Module):
        def forward(self, x, t, cond):
            label = cond["label"].double().reshape(-1, 1, 1, 1)
            return torch.cat((x * label, label.expand_as(x)), 1)

    den, (x, t) = Denoiser(Twice(), process_from(ProcessConfig("ddpm", "noise", learned_var=True))), inputs()
    found = guided(den, COND, NULL, 4.0, rescale=rescale)(x, t)
    assert torch.equal(found.var, den(x, t, COND).var)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_what_else_is_given_goes_to_the_network(scale):
    den, (x, t) = denoiser(), inputs()
    plain, biased = guided(den, COND, NULL, scale)(x, t), guided(den, COND, NULL, scale, bias=0.25)(x, t)
    torch.testing.assert_close(biased.x0, plain.x0 + 0.25)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("options", [{}, {"channels": 3}, {"interval": (0.0, 0.1)}])
def test_skipping_leads_away_from_the_network_without_its_layers(scale, options):
    den, (x, t) = denoiser(), inputs()
    skip = Skip({"bias": -0.25}, (0.3, 0.6), 2.0)  # a worse opinion; the end of the span is in it
    plain = guided(den, COND, NULL, scale, **options)(x, t)
    den.net.batches.clear()
    found = guided(den, COND, NULL, scale, skip=skip, **options)(x, t)
    assert den.net.batches == [8 if scale != 1 and "interval" not in options else 4, 4]
    first = options.get("channels", 4)
    torch.testing.assert_close(found.x0[:, :first], plain.x0[:, :first] + 2 * 0.25)
    assert torch.equal(found.x0[:, first:], plain.x0[:, first:])
    c = cosine(t)
    torch.testing.assert_close(c.alpha * found.x0 + c.sigma * found.eps, x)


@pytest.mark.parametrize("time", [0.29, 0.61])
def test_outside_its_span_skipping_asks_nothing(time):
    den, (x, t) = denoiser(), inputs(time)
    found = guided(den, COND, NULL, 1.0, skip=Skip({"bias": -0.25}, (0.3, 0.6)))(x, t)
    assert den.net.batches == [4]
    assert torch.equal(found.x0, den(x, t, COND).x0)


def test_rescaling_looks_at_the_skipped_too():
    den, (x, t) = denoiser(), inputs()
    found = guided(den, COND, NULL, 4.0, rescale=1.0, skip=Skip({"bias": -0.25}, (0.0, 1.0)))(x, t)
    torch.testing.assert_close(std(found.x0), std(den(x, t, COND).x0))
