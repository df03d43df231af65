"""diffusers' schedulers: their settings as a process and a way to sample, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..diffusion.config import ProcessConfig, SampleConfig
from ..diffusion.path import betas
from ..errors import UserError

TARGETS = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}  # prediction_type
TABLES = {"ddpm": "linear", "ddpm-cosine": "cosine"}  # our path -> its betas
SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
SOLVER = {  # of a DPMSolverMultistepScheduler whose steps are those of our dpmpp_2m, which are its defaults
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "timestep_spacing": "linspace",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": float("-inf"),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False),
    **dict.fromkeys(("use_lu_lambdas", "use_flow_sigmas"), False),
}
REFUSED = ("thresholding", "rescale_betas_zero_snr")
REFUSED_OF_FLOWS = (
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
)
DYNAMIC = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}  # FLUX.1-dev's


def read_scheduler(config: Mapping[str, Any], where: str) -> tuple[ProcessConfig, SampleConfig, list[str]]:
    """Process, sampling and notes of a scheduler's settings; {} stands for the scheduler of the published models."""
    name = config.get("_class_name", "DDIMScheduler")
    for key in REFUSED:
        if config.get(key):
            raise UserError(f"{where} sets {key}, which no sampler here follows")
    predicted = config.get("prediction_type", "epsilon")
    if predicted not in TARGETS:
        raise UserError(f"{where} has prediction_type {predicted!r}; known: {', '.join(TARGETS)}")
    steps = config.get("num_train_timesteps", 1000)
    process = ProcessConfig(path_of(config, steps, where), TARGETS[predicted], steps=steps)
    clips = config.get("clip_sample", bool(config) and name in ("DDIMScheduler", "DDPMScheduler"))  # their default
    clip = config.get("clip_sample_range", 1.0) if clips else None
    spacing = config.get("timestep_spacing", "leading")
    followed: dict[str, Any] = {
        "timestep_spacing": spacing,
        "steps_offset": config.get("steps_offset", 0) if spacing == "leading" else 0,
        "set_alpha_to_one": config.get("set_alpha_to_one", True),
        "use_clipped_model_output": clip is None,
    }
    notes = []
    if name != "DDIMScheduler":
        sampler = SAMPLERS.get(name, "ddim")
        notes = [f"{name} is followed in its betas, prediction_type and clipping; the steps are those of our {sampler}"]
        followed = {}
        if name == "DPMSolverMultistepScheduler" and all(config.get(key, want) == want for key, want in SOLVER.items()):
            notes, followed = [], {"timestep_spacing": "linspace"}
    sample = SampleConfig(SAMPLERS.get(name, "ddim"), 50, guidance_scale=4.0, clip=clip, **followed)
    return process, sample, notes


def path_of(config: Mapping[str, Any], steps: int, where: str) -> str:
    """Which of our paths has a scheduler's table. UserError where none has."""
    table = table_of(config, steps)
    for path, schedule in TABLES.items():
        if table is not None and torch.allclose(table, betas(schedule, steps), rtol=1e-4, atol=0):
            return path
    told = {key: config.get(key) for key in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")}
    raise UserError(
        f"{where} has a table of noise that no path here has ({told}); known: linear from {0.1 / steps:g} to "
        f"{20 / steps:g} at {steps} steps, and squaredcos_cap_v2"
    )


def read_flow(config: Mapping[str, Any], released: Mapping[str, Any]) -> dict[str, Any]:
    """The shift of a FlowMatchEulerDiscreteScheduler's times, as a SampleConfig's fields; `released`: where none tells.

    UserError for times that no grid here follows.
    """
    for key in REFUSED_OF_FLOWS:
        if config.get(key):
            raise UserError(f"the scheduler sets {key} = {config[key]!r}, which no sampler here follows")
    if config.get("use_dynamic_shifting"):
        if (kind := config.get("time_shift_type", "exponential")) != "exponential":
            raise UserError(f"the scheduler has time_shift_type {kind!r}; only 'exponential' is known here")
        return {"dynamic_shift": tuple(config.get(key, value) for key, value in DYNAMIC.items())}
    return {"shift": config["shift"]} if "shift" in config else dict(released)


def write_flow(sample: SampleConfig) -> dict[str, Any]:
    """The settings of a FlowMatchEulerDiscreteScheduler that steps as `euler` does here."""
    moving = sample.dynamic_shift is not None
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": sample.shift,
        "use_dynamic_shifting": moving,
        **dict(zip(DYNAMIC, sample.dynamic_shift or DYNAMIC.values(), strict=True)),
    }


def table_of(config: Mapping[str, Any], steps: int) -> Tensor | None:
    """The betas of a scheduler's settings, (steps,) float64; None for a schedule not known."""
    if (trained := config.get("trained_betas")) is not None:
        table = torch.tensor(trained, dtype=torch.float64)
        return table if table.shape == (steps,) else None
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        return torch.linspace(config.get("beta_start", 1e-4), config.get("beta_end", 0.02), steps, dtype=torch.float64)
    return betas("cosine", steps) if name == "squaredcos_cap_v2" else None


def write_scheduler(process: ProcessConfig, sample: SampleConfig) -> dict[str, Any]:
    """The settings of a DDIMScheduler that steps as `ddim` does here."""
    steps, auto = process.steps, sample.timestep_spacing == "auto"
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": steps,
        "beta_schedule": "linear" if process.path == "ddpm" else "squaredcos_cap_v2",
        "beta_start": 0.1 / steps,
        "beta_end": 20 / steps,
        "trained_betas": None,
        "prediction_type": next(name for name, target in TARGETS.items() if target == process.target),
        "clip_sample": sample.clip is not None,
        "clip_sample_range": 1.0 if sample.clip is None else sample.clip,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "leading" if auto else sample.timestep_spacing,
        "steps_offset": sample.steps_offset,
        "set_alpha_to_one": sample.set_alpha_to_one,
    }
