"""Sampling times."""

import pytest
import torch

from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.grid import (
    between,
    full,
    grid_for,
    karras_rho,
    respaced,
    shifted,
    spaced,
    strided,
    uniform,
    with_last,
)
from ditwright.diffusion.path import PATHS
from ditwright.diffusion.process import process_from
from ditwright.errors import UserError

GRIDS = {
    "uniform": uniform(10),
    "uniform below 1": uniform(10, 0.9),
    "shifted": shifted(uniform(10), 3.0),
    "karras": karras_rho(10),
    "with last": with_last(uniform(9)),
    "full": full(10),
    "respaced": respaced(1000, range(0, 1000, 100)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_fall_to_0_in_float64_and_have_one_time_more_than_steps(name):
    times = GRIDS[name]
    assert (times.diff() < 0).all()
    assert times[-1] == 0
    assert times.dtype == torch.float64
    assert times.shape == (11,)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_grid_that_suits_a_process_starts_at_its_noise_end_and_has_the_steps_asked_for(path, steps):
    process = process_from(ProcessConfig(path, "velocity"))
    times = grid_for(process, steps)
    assert times.shape == (steps + 1,)
    assert (times.diff() < 0).all()
    assert times[-1] == 0
    if steps > 1 or "ddpm" not in path:
        assert times[0].item() == pytest.approx(process.span[1])


def test_the_grid_of_a_shortened_span_starts_at_its_end():
    process = process_from(ProcessConfig("linear", "noise", span=(0.0, 0.95)))
    assert grid_for(process, 5)[0] == 0.95


def test_karras_levels_are_even_in_their_seventh_root():
    levels = karras_rho(9, 0.002, 80.0)[:-1]
    assert levels[[0, -1]].tolist() == pytest.approx([80, 0.002])
    roots = levels ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(8))


def test_a_closing_step_has_its_length_and_the_rest_are_even():
    times = with_last(uniform(24), 0.04)
    assert times[0] == 1
    assert times[-2].item() == pytest.approx(0.04)
    torch.testing.assert_close(times[:-1].diff(), torch.full((24,), -0.04, dtype=torch.float64))


def test_a_shifted_grid_spends_more_steps_at_noise():
    assert (shifted(uniform(10), 3.0)[1:-1] > uniform(10)[1:-1]).all()


def test_steps_of_a_table_are_index_plus_one_over_their_number():
    assert respaced(1000, [0, 999, 499]).tolist() == [1.0, 0.5, 0.001, 0.0]
    assert torch.equal(full(1000), respaced(1000, spaced(1000, "1000")))


@pytest.mark.parametrize(
    ("spacing", "kept"),
    [
        ("1", [0]),
        (2, [0, 99]),
        ("5", [0, 25, 50, 74, 99]),
        ("ddim5", [0, 20, 40, 60, 80]),
        ("ddim100", list(range(100))),
        ("2,1,3", [0, 33, 34, 67, 83, 99]),
    ],
)
def test_respacings_keep_the_steps_that_their_notation_says(spacing, kept):
    assert spaced(100, spacing) == kept


@pytest.mark.parametrize("spacing", ["0", "101", "ddim37", "ddim0", "50,51", "ten", "", "10,", "ddim", "-5", "2.5"])
def test_respacings_that_do_not_fit_are_refused(spacing):
    with pytest.raises(UserError):
        spaced(100, spacing)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("count", [1, 2, 7, 50, 333, 1000])
def test_strides_are_those_of_the_published_schedulers(spacing, count):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(count)
    assert sorted(strided(1000, count, spacing)) == sorted(scheduler.timesteps.tolist())


def test_an_offset_moves_leading_steps():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(50)
    assert strided(1000, 50, "leading", 1) == sorted(scheduler.timesteps.tolist())
    with pytest.raises(UserError, match="do not fit"):
        strided(1000, 1000, "leading", 1)


def test_spacing_is_for_tables():
    with pytest.raises(UserError, match="timestep_spacing 'leading' is for the tables"):
        grid_for(process_from(ProcessConfig("linear", "velocity")), 10, "leading")


@pytest.mark.parametrize("times", [uniform(28), shifted(uniform(28), 3.0), full(28), karras_rho(28)])
def test_a_share_of_the_steps_is_the_same_steps_on_every_grid(times):
    assert between(times, 0.01, 0.2) == (times[5], times[1])  # 0.28 < i < 5.6
    assert between(times, 0.25, 0.5) == (times[13], times[8])  # neither end: 7 and 14
    assert between(times, 0.0, 1.0) == (times[27], times[1])
    assert between(times, 0.5, 0.51) is None
