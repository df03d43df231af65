"""The times of FLUX.1 and SD3: diffusers' FlowMatchEulerDiscreteScheduler and pipelines, against us."""

import numpy as np
import pytest
import torch

from ditwright.codec.config import CodecConfig
from ditwright.convert.scheduler import read_flow, write_flow
from ditwright.diffusion.config import ProcessConfig, SampleConfig
from ditwright.diffusion.process import process_from
from ditwright.errors import UserError
from ditwright.model.config import DiTConfig, Stage
from ditwright.pipeline import Card
from ditwright.pipeline.plan import plan_for

diffusers = pytest.importorskip("diffusers")
flux = pytest.importorskip("diffusers.pipelines.flux.pipeline_flux")

Scheduler = diffusers.FlowMatchEulerDiscreteScheduler
NETWORK = DiTConfig(width=8, heads=2, stages=(Stage(1),), patch=(2, 2), channels=4, out_channels=4, num_classes=0)
FLUX = {"use_dynamic_shifting": True}
OTHER = FLUX | {"base_shift": 0.3, "max_shift": 2.0, "base_image_seq_len": 100, "max_image_seq_len": 900}


def times(size, config, process=("linear", "velocity")):
    process = ProcessConfig(*process)
    card = Card(NETWORK, process, CodecConfig("kl", 4, 8, (1.0,), (0.0,)), config, image_size=size)
    return plan_for(card, process_from(process), config, guided=False).times


@pytest.mark.parametrize("steps", [1, 4, 28, 50])
@pytest.mark.parametrize("size", [(256, 256), (512, 768), (1024, 1024), (2048, 1024), (16, 16)])
@pytest.mark.parametrize("settings", [FLUX, OTHER], ids=["flux", "other"])
def test_a_shift_by_size_is_theirs(settings, size, steps):
    scheduler = Scheduler(**settings)
    config, tokens = scheduler.config, size[0] * size[1] // 256
    line = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=flux.calculate_shift(tokens, *line))
    ours = times(size, SampleConfig("euler", steps, **read_flow(config, {})))
    torch.testing.assert_close(ours, scheduler.sigmas.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_sd3_takes_the_times_of_its_pipeline(shift, steps):
    """Which names no sigmas: the scheduler's own end is shifted twice, in the release and here."""
    scheduler = Scheduler(shift=shift)
    scheduler.set_timesteps(steps)
    ours = times((1024, 1024), SampleConfig("euler", steps, timestep_spacing="linspace", shift=shift))
    torch.testing.assert_close(ours, scheduler.sigmas.double(), rtol=0, atol=1e-6)


def test_sd3_with_a_shift_by_size_takes_them_too():
    scheduler = Scheduler(**FLUX)
    scheduler.set_timesteps(28, mu=flux.calculate_shift(1024))
    ours = times((512, 512), SampleConfig("euler", 28, timestep_spacing="linspace", **read_flow(scheduler.config, {})))
    torch.testing.assert_close(ours, scheduler.sigmas.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, FLUX, OTHER], ids=str)
def test_a_scheduler_is_read_and_written(settings, tmp_path):
    read = read_flow(Scheduler(**settings).config, {})
    again = Scheduler.from_config(write_flow(SampleConfig(**read)))
    assert read_flow(again.config, {}) == read
    left, right = (s.config for s in (Scheduler(**settings), again))
    assert {key for key in left if not key.startswith("_") and left[key] != right[key]} == set()


def test_without_a_scheduler_it_is_as_released():
    assert read_flow({}, {"shift": 3.0}) == {"shift": 3.0}


@pytest.mark.parametrize(
    "settings",
    [
        {"shift_terminal": 0.02},
        {"invert_sigmas": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"stochastic_sampling": True},
        FLUX | {"time_shift_type": "linear"},
    ],
    ids=str,
)
def test_times_that_nobody_follows_are_refused(settings):
    (key,) = settings.keys() - FLUX.keys()
    with pytest.raises(UserError, match=f"the scheduler (sets|has) {key} "):
        read_flow(Scheduler(**settings).config, {})


def test_a_shift_where_no_time_is_1_is_refused():
    moving = SampleConfig("euler", 4, dynamic_shift=(0.5, 1.15, 256, 4096))
    with pytest.raises(UserError, match=r"is for paths without a table .* no dynamic_shift here"):
        times((64, 64), moving, ("ddpm", "noise"))
    with pytest.raises(UserError, match="timestep_spacing 'linspace' is for"):
        times((64, 64), SampleConfig("euler", 4, timestep_spacing="linspace"), ("karras", "edm"))


def test_two_shifts_are_refused():
    with pytest.raises(UserError, match="shift 3 and dynamic_shift exclude each other: give dynamic_shift none"):
        SampleConfig(shift=3.0, dynamic_shift=(0.5, 1.15, 256, 4096))
    with pytest.raises(UserError, match=r"third below the fourth, .*; got 0.5,1.15,256,256"):
        SampleConfig(dynamic_shift=(0.5, 1.15, 256, 256))
