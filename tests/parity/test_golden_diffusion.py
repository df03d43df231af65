"""The calculus against numbers of the original diffusion code (golden/gaussian_diffusion_official.safetensors)."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ditwright import convert
from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.grid import respaced, spaced
from ditwright.diffusion.objective import Objective
from ditwright.diffusion.path import coeffs_like
from ditwright.diffusion.posterior import VariationalBound, log_variance, mean, posterior
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.diffusion.sampler import SAMPLERS, last
from ditwright.diffusion.times import Discrete

FOLDER = Path(__file__).parent / "golden"
GOLDEN = load_file(FOLDER / "gaussian_diffusion_official.safetensors")
NETWORK = load_file(FOLDER / "dit_official_tiny.safetensors")
PATHS = {"linear": "ddpm", "squaredcos_cap_v2": "ddpm-cosine"}  # their names, ours
RESPACINGS = ["full", "250", "10", "ddim25"]
SHORT = ["10", "ddim25"]  # whose trajectories are stored


@lru_cache
def network():
    state = {name.removeprefix("state."): v for name, v in NETWORK.items() if name.startswith("state.")}
    return convert.load(state, family="dit", heads=3).requires_grad_(False).net


@dataclass(frozen=True)
class Case:
    """One schedule and respacing: what the original computed, and the objects that should compute the same."""

    schedule: str
    respacing: str

    def __getitem__(self, name):
        return GOLDEN[f"{self.schedule}.{self.respacing}.{name}"]

    @cached_property
    def process(self):
        return process_from(ProcessConfig(PATHS[self.schedule], "noise", learned_var=True))

    @cached_property
    def denoiser(self):
        return Denoiser(network(), self.process)

    @cached_property
    def times(self):
        return respaced(1000, range(1000) if self.respacing == "full" else spaced(1000, self.respacing))

    @cached_property
    def posterior(self):
        return posterior(self.process.path, self.times)

    @property
    def steps(self):
        """Places of the stored samples in our grid, which runs the other way."""
        return len(self.times) - 2 - self["t"]

    @cached_property
    def noisy(self):
        c = coeffs_like(self.process.path, self.times[self.steps], GOLDEN["x0"])
        return c.alpha * GOLDEN["x0"] + c.sigma * GOLDEN["noise"]

    @cached_property
    def prediction(self):
        return self.denoiser(self.noisy, self.times[self.steps], {"label": GOLDEN["y"]})

    def ask(self, x, t):
        return self.denoiser(x, t, {"label": GOLDEN["y"]})


every_case = pytest.mark.parametrize("case", [Case(s, r) for s in PATHS for r in RESPACINGS], ids=str)
every_walk = pytest.mark.parametrize("case", [Case(s, r) for s in PATHS for r in SHORT], ids=str)


def off(ours, theirs):
    """The largest difference, as a share of the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def same_table(ours, theirs):
    assert theirs.dtype == ours.dtype == torch.float64
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-12
    large = theirs.abs() > 1e-12
    assert ((ours - theirs)[large] / theirs[large]).abs().max() < 1e-8


@every_case
def test_the_tables_of_a_schedule(case):
    q, alpha = case.posterior, case.process.path(case.times).alpha[:-1]
    same_table(q.log_beta.exp().flip(0), case["betas"])
    same_table(alpha.square().flip(0), case["alphas_cumprod"])
    same_table(q.log_var.flip(0), case["posterior_log_variance_clipped"])
    same_table(q.x0.flip(0), case["posterior_mean_coef1"])
    same_table(q.x_t.flip(0), case["posterior_mean_coef2"])
    assert case["posterior_variance"][0] == 0  # ours holds the logarithm, clipped there
    same_table(q.log_var.exp().flip(0)[1:], case["posterior_variance"][1:])


@every_case
def test_what_the_network_is_told_of_the_time(case):
    same_table(case.process.label(case.times[:-1]).flip(0), case["timestep_map"].double())


@pytest.mark.parametrize("spacing", ["250", "ddim50", "ddim25", "10", "10,20,30", "ddim250"])
def test_respacings_keep_the_steps_of_the_original(spacing):
    assert spaced(1000, spacing) == GOLDEN[f"space.{spacing}"].tolist()


@every_case
def test_one_step_forth_and_back(case):
    q, steps, pred = case.posterior, case.steps, case.prediction
    assert off(case.noisy, case["q_sample"]) < 1e-5
    assert off(pred.x0, case["p_pred_xstart"]) < 1e-5
    assert off(mean(q, steps, pred.x0, case.noisy), case["p_mean"]) < 1e-5
    assert off(log_variance(q, steps, pred), case["p_log_variance"]) < 1e-5
    assert off(log_variance(q, steps, pred).exp(), case["p_variance"]) < 1e-5


@every_case
def test_the_loss_and_its_parts(case):
    cond, t = {"label": GOLDEN["y"]}, case.times[case.steps]
    bound = VariationalBound(case.process.path, case.times)
    mse, hybrid = (
        Objective(case.process, Discrete(), terms=terms).at(case.denoiser, GOLDEN["x0"], cond, t, GOLDEN["noise"])
        for terms in ((), (bound,))
    )
    vb = bound(case.prediction, GOLDEN["x0"], case.noisy, t)
    for ours, theirs in ((mse, case["loss_mse"]), (vb, case["loss_vb"]), (hybrid, case["loss_loss"])):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)  # each sample: they differ by up to 10^7


@every_walk
def test_ancestral_trajectories(case):
    drawn = iter(case["ddpm_noise"])
    x = last(SAMPLERS["ddpm"](case.ask, case["x_T"], case.times, case.process.path, noise=lambda x: next(drawn)))
    assert off(x, case["ddpm_sample"]) < 1e-4
    assert len(list(drawn)) == 1  # the original draws for its last step too, and multiplies by zero


@every_walk
def test_deterministic_trajectories(case):
    x = last(SAMPLERS["ddim"](case.ask, case["x_T"], case.times, case.process.path))
    assert off(x, case["ddim_sample"]) < 1e-4
