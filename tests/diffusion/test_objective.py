"""What is minimised."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig
from ditwright.diffusion.grid import full
from ditwright.diffusion.objective import (
    TIMES,
    WEIGHTS,
    EDMWeight,
    MinSNR,
    Objective,
    SecondMoment,
    VelocityWeight,
    objective_from,
    uniform,
)
from ditwright.diffusion.path import DDPM, PATHS, coeffs_like, karras
from ditwright.diffusion.posterior import VariationalBound
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.diffusion.target import EDM, TARGETS, Prediction, determinant
from ditwright.diffusion.times import Discrete, LogitNormal, Shifted, Uniform
from ditwright.errors import UserError
from ditwright.rng import Draws


class Affine(nn.Module):
    """A network that is easy to write down, with a gradient; `times` says how many outputs per channel."""

    def __init__(self, times=1):
        super().__init__()
        self.times, self.scale, self.shift = times, nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(-0.2))

    def forward(self, x, t, cond=None):
        return (self.scale * x + self.shift * t.cos().reshape(-1, 1, 1)).repeat(1, self.times, 1)


def made(path="linear", target="velocity", **rest):
    span = (0.002, 80.0) if path == "karras" else (0.0, 0.99)
    return process_from(ProcessConfig(path, target, span=span, **rest))


def batch(path="linear", size=5):
    """Data, noise and times inside the span, float64."""
    x0, eps = torch.randn(2, size, 3, 4, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, size, dtype=torch.float64) * (80 if path == "karras" else 1)
    return x0, eps, t


@pytest.mark.parametrize(("path", "target"), list(itertools.product(PATHS, TARGETS)))
def test_the_loss_is_the_squared_error_of_the_raw_output(path, target):
    process, (x0, eps, t) = made(path, target), batch(path)
    net = Affine().double()
    loss = Objective(process, Uniform()).at(Denoiser(net, process), x0, {}, t, eps)
    c = coeffs_like(process.path, t, x0)
    x_t, (a, b) = c.alpha * x0 + c.sigma * eps, process.target(c)
    seen = x_t if process.scale_in is None else process.scale_in(c) * x_t
    want = (net(seen, process.label(t)) - (a * x0 + b * eps)).square().mean((1, 2))
    torch.testing.assert_close(loss, want, rtol=1e-8, atol=1e-10)


def test_a_weight_multiplies_the_squared_error_of_each_sample():
    process, (x0, eps, t) = made(), batch()
    denoiser, half = Denoiser(Affine().double(), process), lambda c, det: torch.where(c.sigma > 0.5, 0.5, 2.0)
    plain = Objective(process, Uniform()).at(denoiser, x0, {}, t, eps)
    weighted = Objective(process, Uniform(), half).at(denoiser, x0, {}, t, eps)
    torch.testing.assert_close(weighted, plain * torch.where(t > 0.5, 0.5, 2.0))


def test_the_loss_of_a_sample_does_not_depend_on_its_batch():
    process, x0 = made(), torch.randn(3, 3, 4)
    objective, denoiser = Objective(process, LogitNormal()), Denoiser(Affine(), process)
    together = objective(denoiser, x0, {}, Draws(0, [4, 9, 2], "train"))
    alone = objective(denoiser, x0[1:2], {}, Draws(0, [9], "train"))
    torch.testing.assert_close(together[1:2], alone)
    assert together.unique().numel() == 3


def test_the_loss_asks_at_the_times_it_was_given():
    asked = []

    def denoiser(x_t, t, cond):
        asked.append(t)
        return Prediction(x_t, x_t)

    Objective(made(), Discrete(4))(denoiser, torch.zeros(64, 3, 4), {}, Draws(0, range(64), "train"))
    assert asked[0].unique().tolist() == [0.25, 0.5, 0.75, 1.0]


def test_added_terms_add():
    process, (x0, eps, t) = made(), batch()
    denoiser = Denoiser(Affine().double(), process)
    plain = Objective(process, Uniform())
    more = replace(plain, terms=(lambda pred, x0, x_t, t: t, lambda pred, x0, x_t, t: 2 * t))
    torch.testing.assert_close(more.at(denoiser, x0, {}, t, eps), plain.at(denoiser, x0, {}, t, eps) + 3 * t)


def test_the_hybrid_loss_trains_the_mean_by_the_squared_error_alone():
    process, (x0, eps, _) = made("ddpm", "noise", learned_var=True), batch()
    t = torch.tensor([1, 5, 300, 999, 1000]).double() / 1000
    net = Affine(times=2).double()

    def ask(x_t, t, cond):  # the same network, its variance held
        pred = Denoiser(net, process)(x_t, t)
        return pred._replace(var=pred.var.detach())

    plain = Objective(process, Discrete())
    hybrid = replace(plain, terms=(VariationalBound(DDPM(), full(1000)),))
    grads = [torch.autograd.grad(o.at(ask, x0, {}, t, eps).sum(), list(net.parameters())) for o in (plain, hybrid)]
    assert grads[0] == grads[1]
    assert (hybrid.at(ask, x0, {}, t, eps) > plain.at(ask, x0, {}, t, eps)).all()


VP_PATHS = ["cosine", "vp", "ddpm", "ddpm-cosine"]
PUBLISHED = {  # Hang et al. 2023, Sec. 3.4, on variance-preserving paths
    "data": lambda snr, gamma: snr.clamp(max=gamma),
    "noise": lambda snr, gamma: snr.clamp(max=gamma) / snr,
    "v": lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1),
}


@pytest.mark.parametrize(("path", "target", "gamma"), list(itertools.product(VP_PATHS, PUBLISHED, [1.0, 5.0])))
def test_min_snr_is_its_published_factor(path, target, gamma):
    c = PATHS[path](batch()[2])
    snr = (c.alpha / c.sigma) ** 2
    assert snr.min() < gamma < snr.max()
    weight = MinSNR(gamma)(c, determinant(c, TARGETS[target]))
    torch.testing.assert_close(weight, PUBLISHED[target](snr, gamma))


@pytest.mark.parametrize("weight", [MinSNR(), EDMWeight()])
@pytest.mark.parametrize("path", ["vp", "karras"])
def test_a_weight_on_the_data_means_the_same_for_every_target(path, weight):
    c = PATHS[path](batch(path)[2])
    on_x0 = {name: weight(c, det) * (det / c.sigma) ** 2 for name in TARGETS for det in [determinant(c, TARGETS[name])]}
    for name in TARGETS:
        torch.testing.assert_close(on_x0[name], on_x0["data"])


@pytest.mark.parametrize("path", ["linear", "cosine", "vp"])
def test_the_velocity_weight_makes_every_target_s_error_the_velocity_s(path):
    c = PATHS[path](batch()[2])
    velocity = determinant(c, TARGETS["velocity"])
    for name in TARGETS:
        det = determinant(c, TARGETS[name])
        torch.testing.assert_close(VelocityWeight(float("inf"))(c, det), (velocity / det) ** 2)
    torch.testing.assert_close(VelocityWeight()(c, velocity), torch.ones_like(velocity))


def test_the_velocity_weight_keeps_times_from_below_a_twentieth():
    """Li & He 2025: (x0 - x0')^2 / max(t, 0.05)^2."""
    c = PATHS["linear"](t := torch.tensor([0.001, 0.04, 0.05, 0.3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(VelocityWeight()(c, determinant(c, TARGETS["data"])), t.clamp(min=0.05) ** -2)


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_the_edm_weight_is_1_for_the_edm_output_and_as_published_for_the_data(sigma_data):
    c = karras(torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=torch.float64))
    weight = EDMWeight(sigma_data)
    torch.testing.assert_close(weight(c, determinant(c, EDM(sigma_data))), torch.ones_like(c.sigma))
    published = (c.sigma**2 + sigma_data**2) / (c.sigma * sigma_data) ** 2
    torch.testing.assert_close(weight(c, determinant(c, TARGETS["data"])), published)


class Known:
    """An objective whose loss is known at each step, whatever the network says."""

    def __init__(self, values):
        self.values, self.asked = values, []

    def at(self, denoiser, x0, cond, t, eps):
        step = (t * len(self.values)).round().long() - 1
        self.asked += step.tolist()
        return self.values[step]


class Strata:
    """Evenly spread numbers in the place of random ones."""

    def __init__(self, n):
        self.n = n

    def uniform(self):
        return (torch.arange(self.n, dtype=torch.float64) + 0.5) / self.n

    def normal(self, like):
        return torch.zeros_like(like)


LOSSES = torch.tensor([0.1, 4.0, 1.0, 0.5, 2.0], dtype=torch.float64)
ALL_STEPS = torch.arange(5)


def warm(history=2, uniform_share=0.001):
    loss = SecondMoment(Known(LOSSES), 5, history=history, uniform_share=uniform_share)
    for _ in range(history):
        loss.observe(ALL_STEPS, LOSSES)
    return loss


def ask(loss, n):
    return loss(None, torch.zeros(n, 1, 1), {}, Strata(n))


def test_steps_are_drawn_alike_until_each_has_its_history():
    loss = SecondMoment(Known(LOSSES), 5, history=2)
    loss.observe(ALL_STEPS.repeat(2)[:-1], LOSSES.repeat(2)[:-1])  # all but the last loss of the last step
    assert torch.equal(loss.probabilities(), torch.full((5,), 0.2, dtype=torch.float64))
    raw = ask(loss, 10)
    assert torch.equal(raw, LOSSES.repeat_interleave(2).to(raw))  # unweighted
    assert loss.objective.asked == ALL_STEPS.repeat_interleave(2).tolist()
    assert loss.probabilities().unique().numel() == 5  # that completed the history


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
def test_then_in_proportion_to_the_root_of_the_second_moment(share):
    p = warm(uniform_share=share).probabilities()
    torch.testing.assert_close(p, (1 - share) * LOSSES / LOSSES.sum() + share / 5)
    loss = warm(uniform_share=share)
    ask(loss, 20_000)
    drawn = torch.tensor(loss.objective.asked).bincount(minlength=5) / 20_000
    torch.testing.assert_close(drawn.double(), p, atol=1e-4, rtol=0)


def test_the_second_moment_is_of_the_losses_seen():
    loss = SecondMoment(Known(LOSSES), 2, history=2, uniform_share=0.0)
    loss.observe(torch.tensor([0, 0, 1, 1]), torch.tensor([3.0, 4.0, 0.0, 1.0]).double())
    moments = torch.tensor([12.5, 0.5], dtype=torch.float64).sqrt()
    torch.testing.assert_close(loss.probabilities(), moments / moments.sum())


def test_importance_sampling_leaves_the_expected_loss_as_it_is():
    weighted = ask(warm(), 20_000)
    assert weighted.mean().item() == pytest.approx(LOSSES.mean().item(), rel=1e-3)
    assert weighted.std() < 0.2 * LOSSES.std()  # and that is the point of it


def test_the_history_keeps_the_newest_losses():
    loss = SecondMoment(Known(LOSSES), 2, history=3)
    loss.observe(torch.tensor([1, 1, 0, 1, 1, 1]), torch.tensor([1.0, 2.0, 9.0, 3.0, 4.0, 5.0]).double())
    assert loss.losses.tolist() == [[0, 0, 9], [3, 4, 5]]
    assert loss.counts.tolist() == [1, 5]


def test_the_history_is_saved_and_resumed():
    trained, fresh = warm(), SecondMoment(Known(LOSSES), 5, history=2)
    assert not torch.equal(fresh.probabilities(), trained.probabilities())
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.probabilities(), trained.probabilities())
    assert torch.equal(ask(fresh, 50), ask(trained, 50))
    assert fresh.state_dict().keys() == trained.state_dict().keys() == {"losses", "counts"}


def test_importance_sampling_does_not_hold_on_to_the_graph():
    process, x0 = made("ddpm", "v"), torch.randn(4, 3, 4)
    loss = SecondMoment(Objective(process, Discrete()), 1000)
    loss(Denoiser(Affine(), process), x0, {}, Draws(0, range(4), "train")).sum().backward()
    assert not loss.losses.requires_grad
    assert (loss.losses > 0).sum() == loss.counts.sum() == 4


@pytest.mark.parametrize(("times", "weight"), list(itertools.product(TIMES, WEIGHTS)))
def test_every_named_choice_is_a_finite_loss(times, weight):
    fitting = {"log-normal": ProcessConfig("karras", "edm"), "discrete": ProcessConfig("ddpm", "noise")}
    process = process_from(fitting.get(times, ProcessConfig()))
    loss = objective_from(ObjectiveConfig(times=times, weight=weight), process)
    values = loss(Denoiser(Affine(), process), torch.randn(4, 3, 4), {}, Draws(0, range(4), "train"))
    assert values.shape == (4,)
    assert (values.isfinite() & (values > 0)).all()


def test_a_configuration_carries_its_knobs_to_the_loss():
    config = ObjectiveConfig(times="logit-normal", mean=0.3, std=0.8, shift=3.0, weight="min-snr", gamma=2.0)
    loss = objective_from(config, process_from(ProcessConfig()))
    assert loss.times == Shifted(LogitNormal(0.3, 0.8), 3.0)
    assert loss.weight == MinSNR(2.0)
    assert objective_from(ObjectiveConfig(), made()) == Objective(made(), Uniform((0.0, 0.99)), uniform)
    assert objective_from(ObjectiveConfig(weight="edm"), made("karras", "edm", sigma_data=0.3)).weight == EDMWeight(0.3)
    assert objective_from(ObjectiveConfig(times="discrete"), made("ddpm", steps=50)).times == Discrete(50)


def test_learned_variance_brings_the_bound_and_importance_the_history():
    config = ObjectiveConfig(times="discrete", importance=True)
    loss = objective_from(config, made("ddpm", "noise", steps=50, learned_var=True))
    assert isinstance(loss, SecondMoment)
    assert loss.steps == 50
    (term,) = loss.objective.terms
    assert isinstance(term, VariationalBound)
    assert torch.equal(term.times, full(50))


@pytest.mark.parametrize(
    ("process", "config"),
    [({"learned_var": True}, {}), ({}, {"importance": True}), ({"path": "vp"}, {"importance": True})],
)
def test_what_needs_the_steps_of_a_table_is_refused_without_one(process, config):
    with pytest.raises(UserError, match="need a DDPM path"):
        objective_from(ObjectiveConfig(**config), made(**process))


@pytest.mark.parametrize(
    "bad", [{"std": 0.0}, {"shift": -1.0}, {"shift_base": -1}, {"gamma": 0.0}, {"times": "log"}, {"weight": "snr"}]
)
def test_impossible_objectives_are_refused_by_name(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        objective_from(ObjectiveConfig(**bad), made())


@pytest.mark.parametrize(
    ("process", "config", "said"),
    [
        ({"path": "ddpm", "target": "noise"}, {"importance": True}, "times discrete"),
        ({"path": "ddpm", "target": "noise"}, {"importance": True, "times": "discrete", "shift": 3.0}, "shift 1"),
        ({"path": "ddpm", "target": "noise", "learned_var": True}, {"times": "uniform"}, "times discrete"),
        ({}, {"times": "log-normal"}, "karras"),
        ({"path": "karras", "target": "edm"}, {"times": "logit-normal"}, "karras"),
        ({}, {"times": "discrete"}, "DDPM"),
        ({"path": "karras", "target": "edm"}, {"times": "log-normal", "shift": 3.0}, "end at 80 take no shift"),
        ({"path": "karras", "target": "edm"}, {"shift": 0.5}, "end at 80 take no shift"),
        ({"path": "karras", "target": "edm"}, {"shift_base": 64}, "end at 80 take no shift"),
        (
            {"path": "ddpm", "target": "noise"},
            {"importance": True, "times": "discrete", "shift_base": 64},
            "shift_base 0",
        ),
        ({"span": (0.0, 0.99)}, {"shift": 3.0}, "end at 0.99 take no shift"),
    ],
)
def test_times_that_do_not_fit_the_path_are_refused(process, config, said):
    with pytest.raises(UserError, match=said):
        objective_from(ObjectiveConfig(**config), process_from(ProcessConfig(**process)))
