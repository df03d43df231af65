"""Choices of the diffusion calculus as plain data. No torch here, so that the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError

REVERSIBLE = [(path, target) for path in ("linear", "cosine", "vp") for target in ("velocity", "noise", "score")]


@dataclass(frozen=True)
class ProcessConfig:
    """Names of a path and a target, and their knobs; `process_from` makes the objects."""

    path: str = "linear"  # PATHS
    target: str = "velocity"  # TARGETS
    steps: int = 1000  # of a DDPM table
    sigma_data: float = 0.5  # of the edm target
    learned_var: bool = False
    reversed_time: bool = False  # the network counts time from noise to data, as SiT does: told 1 - t, velocity negated
    span: tuple[float, float] | None = None  # times at which the network is asked: (low, high]; None: the path's

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"process.steps must be at least 1; got {self.steps}")
        if self.reversed_time and (self.path, self.target) not in REVERSIBLE:
            known = ", ".join(f"{path} with {target}" for path, target in REVERSIBLE)
            raise UserError(f"process.reversed_time fits these paths with these targets: {known}")
        if self.sigma_data <= 0:
            raise UserError(f"process.sigma_data must be above 0; got {self.sigma_data:g}")
        if self.steps != 1000 and not self.path.startswith("ddpm"):
            raise UserError(f"process.steps is for the paths ddpm and ddpm-cosine; {self.path!r} has no table")
        if self.sigma_data != 0.5 and self.target != "edm":
            raise UserError(f"process.sigma_data is for the target edm; {self.target!r} does not use it")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised; `objective_from` makes the loss.

    With a `shift_base` the shift goes by the size of what comes, as SD3's does (Esser et al. 2024, Sec. 5.3.2): it is
    shift * sqrt(positions / shift_base), positions being height times width of the latents. So `shift` holds at
    `shift_base` positions, 4 times as many are trained at twice the shift (more noise), a quarter at half (less).
    Sampling has a shift of its own.
    """

    times: str = "uniform"  # TIMES
    mean: float = 0.0  # of logit-normal and log-normal times
    std: float = 1.0
    mode_scale: float = 1.29  # of mode times
    shift: float = 1.0  # above 1: more noise (Esser et al. 2024, resolution-dependent shift)
    shift_base: int = 0  # positions of the latents at which `shift` holds, as in 1024 for 32 x 32; 0: at any size
    weight: str = "uniform"  # WEIGHTS
    gamma: float = 5.0  # of min-snr
    importance: bool = False  # draw DDPM steps by the second moment of their loss (Nichol & Dhariwal 2021, Sec. 3.3)

    def __post_init__(self) -> None:
        for name in ("std", "shift", "gamma"):
            if getattr(self, name) <= 0:
                raise UserError(f"objective.{name} must be above 0; got {getattr(self, name):g}")
        if self.shift_base < 0:
            raise UserError(f"objective.shift_base must be 0 or more; got {self.shift_base}")
        if (self.mean, self.std) != (0, 1) and self.times not in ("logit-normal", "log-normal"):
            raise UserError(f"objective.mean and std are for logit-normal and log-normal times, not {self.times!r}")
        if self.mode_scale != 1.29 and self.times != "mode":
            raise UserError(f"objective.mode_scale is for mode times, not {self.times!r}")
        if self.gamma != 5 and self.weight != "min-snr":
            raise UserError(f"objective.gamma is for the weight min-snr, not {self.weight!r}")

    @property
    def shifts(self) -> bool:
        """Whether times of any size are moved."""
        return self.shift != 1 or self.shift_base > 0


@dataclass(frozen=True)
class SampleConfig:
    """How pictures are drawn from a denoiser. Names as in diffusers."""

    sampler: str = "ddim"  # SAMPLERS
    num_inference_steps: int = 50
    guidance_scale: float = 1.0  # 1: no guidance
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # times t at which guidance is on, as a share of the span
    guidance_rescale: float = 0.0
    guidance_channels: int | None = None  # guide only the first few channels (the original DiT: 3)
    true_cfg_scale: float = 1.0  # of a network that imitates guidance: guided besides, away from a negative prompt
    skip_guidance_layers: tuple[int, ...] = ()  # blocks, from 0: away from what is said without them (SD3.5: 7 8 9)
    skip_layer_guidance_scale: float = 2.8
    skip_layer_guidance_start: float = 0.01  # share of the steps after which it begins ...
    skip_layer_guidance_stop: float = 0.2  # ... and before which it has ended
    clip: float | None = None  # keep x0 within this of 0; 1 for pixels, nothing for latents
    use_clipped_model_output: bool = True  # noise made to agree with the clipped x0; diffusers' ddim leaves it
    timestep_spacing: Literal["auto", "leading", "trailing", "linspace"] = "auto"  # of a DDPM table; linspace: SD3 too
    steps_offset: int = 0  # added to leading steps
    shift: float = 1.0  # of the times, on paths without a table: above 1 more steps at high noise
    # In its place, by the picture's size: base_shift, max_shift, base_image_seq_len, max_image_seq_len
    dynamic_shift: tuple[float, float, int, int] | None = None
    set_alpha_to_one: bool = True  # ddim ends at the clean sample; if not, at the table's first step
    use_resolution_binning: bool = False  # draw at PixArt's size of the nearest ratio, resize and crop what comes out
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise UserError(f"num_inference_steps must be at least 1; got {self.num_inference_steps}")
        if not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"guidance_scale must be 0 or more (1: no guidance); got {self.guidance_scale:g}")
        if not 1 <= self.true_cfg_scale < float("inf"):
            raise UserError(f"true_cfg_scale must be 1 or more (1: none); got {self.true_cfg_scale:g}")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance_interval must be two times 0 <= low <= high <= 1; got {low:g} {high:g}")
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"guidance_rescale must be between 0 and 1; got {self.guidance_rescale:g}")
        if self.guidance_channels is not None and self.guidance_channels < 1:
            raise UserError(f"guidance_channels must be at least 1; got {self.guidance_channels}")
        self._check_skipping()
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"clip must be above 0; got {self.clip:g}")
        if self.steps_offset < 0 or (self.steps_offset and self.timestep_spacing != "leading"):
            raise UserError(f"steps_offset is 0, or 1 and more with timestep_spacing leading; got {self.steps_offset}")
        if self.shift <= 0:
            raise UserError(f"shift must be above 0 (1: equal steps); got {self.shift:g}")
        self._check_dynamic_shift()
        if not self.set_alpha_to_one and (self.timestep_spacing == "auto" or self.sampler != "ddim"):
            raise UserError(
                "set_alpha_to_one is true, or false with sampler ddim and a timestep_spacing other than auto"
            )
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1; got {self.batch_size}")

    def _check_dynamic_shift(self) -> None:
        if self.dynamic_shift is None:
            return
        if self.shift != 1:
            raise UserError(
                f"shift {self.shift:g} and dynamic_shift exclude each other: give dynamic_shift none, or shift 1"
            )
        base, most = self.dynamic_shift[2:]
        if not 0 < base < most:
            raise UserError(
                "dynamic_shift is base_shift and max_shift at base_image_seq_len and max_image_seq_len tokens, the "
                f"third below the fourth, as in 0.5,1.15,256,4096; got {','.join(map(str, self.dynamic_shift))}"
            )

    def _check_skipping(self) -> None:
        scale, start, stop = (getattr(self, f"skip_layer_guidance_{name}") for name in ("scale", "start", "stop"))
        if any(layer < 0 for layer in self.skip_guidance_layers):
            raise UserError(f"skip_guidance_layers are numbers of blocks from 0 on; got {self.skip_guidance_layers}")
        if not 0 <= scale < float("inf"):
            raise UserError(f"skip_layer_guidance_scale must be 0 or more; got {scale:g}")
        if not 0 <= start <= stop <= 1:
            raise UserError(
                "skip_layer_guidance_start and stop are shares of the steps, 0 <= start <= stop <= 1; "
                f"got {start:g} {stop:g}"
            )
        if (scale, start, stop) != (2.8, 0.01, 0.2) and not self.skip_guidance_layers:
            raise UserError("skip_layer_guidance_scale, start and stop go with skip_guidance_layers; name some")
