"""Where the steps of diffusers' DDIM lead, and what it clips."""

import pytest
import torch

from ditwright.diffusion.config import SampleConfig
from ditwright.diffusion.grid import landings, respaced, strided
from ditwright.diffusion.guidance import clipped
from ditwright.diffusion.path import DDPM
from ditwright.diffusion.sampler import ddim
from ditwright.diffusion.target import Prediction
from ditwright.errors import UserError


def test_even_strides_lead_to_the_next_time_of_the_grid():
    for spacing in ("leading", "trailing"):
        times = respaced(1000, strided(1000, 50, spacing))
        assert torch.equal(landings(times, 1000), times[1:])


def test_uneven_strides_lead_beside_it():
    times = respaced(1000, strided(1000, 7, "trailing"))
    assert (times * 1000 - 1).round().tolist() == [999, 856, 713, 570, 428, 285, 142, -1]
    assert (landings(times, 1000) * 1000 - 1).round().tolist() == [857, 714, 571, 428, 286, 143, 0]


def test_below_the_table_is_the_clean_sample_or_the_first_step():
    times = respaced(1000, strided(1000, 10, "leading", 1))
    assert landings(times, 1000)[-1] == 0
    assert landings(times, 1000, clean=False)[-1] == 1 / 1000
    assert torch.equal(landings(times, 1000)[:-1], landings(times, 1000, clean=False)[:-1])


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_walks_and_leads_where_diffusers_does(spacing):
    diffusers = pytest.importorskip("diffusers")
    scheduler, compared = diffusers.DDIMScheduler(timestep_spacing=spacing), 0
    for count in range(1, 1001):
        scheduler.set_timesteps(count)
        theirs = scheduler.timesteps
        if theirs[-1] < 0:
            continue  # at some counts NumPy's arange gives `trailing` a step too many, of the index -1
        times, compared = respaced(1000, strided(1000, count, spacing)), compared + 1
        assert torch.equal((times[:-1] * 1000 - 1).round().long(), theirs)
        previous = theirs - scheduler.config.num_train_timesteps // count
        assert torch.equal((landings(times, 1000) * 1000 - 1).round().long(), previous.clamp(min=-1))
    assert compared > 900


def test_ddim_goes_where_it_is_led():
    path, times = DDPM(), respaced(1000, [749, 499, 249])
    to = torch.tensor([0.6, 0.3, 0.001], dtype=torch.float64)
    x0, eps = torch.full((2, 1), 0.5, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    steps = list(ddim(lambda x, t: Prediction(x0, eps), eps, times, path, to=to))
    assert torch.equal(torch.stack([step.t for step in steps]), to)
    for step in steps:
        torch.testing.assert_close(step.x, path(step.t).alpha * x0 + path(step.t).sigma * eps)


def test_noise_may_stay_as_it_was_predicted_beside_a_clipped_sample():
    eps, t = torch.ones(2, 1), torch.tensor(0.9)
    pred = clipped(lambda x, t: Prediction(3 * eps, eps), DDPM(), 1.0, agreed=False)(eps, t)
    assert torch.equal(pred.eps, eps)
    assert torch.equal(pred.x0, eps)


@pytest.mark.parametrize("settings", [{}, {"timestep_spacing": "leading", "sampler": "heun"}])
def test_a_last_step_that_nothing_would_read_is_refused(settings):
    with pytest.raises(UserError, match="set_alpha_to_one"):
        SampleConfig(set_alpha_to_one=False, **settings)
    assert not SampleConfig(set_alpha_to_one=False, timestep_spacing="leading").set_alpha_to_one
