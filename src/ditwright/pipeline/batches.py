"""Many samples through a sampler, and through a network that sees a few of them at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..accel.ready import along
from ..diffusion.config import SampleConfig
from ..diffusion.grid import between
from ..diffusion.guidance import Denoise, Skip, clipped, guided
from ..diffusion.process import Denoiser
from ..diffusion.sampler import Step
from ..diffusion.target import Prediction
from ..errors import UserError
from ..nn.runners import Without
from .asks import Asks, told_beside
from .card import Card
from .noise import Noise
from .plan import Plan

ROWS = 8  # below about 6 rows matrix libraries switch kernels, and with them last bits: batches are filled up to this,
# unless the network sees to it itself, as one does that is laid out for sampling (`accel.ready`)


@torch.no_grad()
def walk(
    denoiser: Denoiser,
    asks: Asks,
    plan: Plan,
    *,
    card: Card,
    config: SampleConfig,
    noise: Noise,
    latents: Tensor | None = None,
) -> Iterator[Step]:
    """The steps of a sampler; the sample in each is the sampler's own, which a caller may change in place.

    `latents`: initial ones, unit noise, in place of drawn ones. UserError where they are not of the planned size.
    """
    path, shape = denoiser.process.path, (asks.count, card.model.channels, *plan.space)
    sigma = max(1.0, path(plan.times[:1]).sigma.item())  # unit noise, as in the originals; more on karras
    device = next(denoiser.parameters()).device
    if latents is None:
        latents = noise(torch.empty(shape, device=device))
    elif latents.shape != shape:
        raise UserError(f"latents must have the shape {shape}; got {tuple(latents.shape)}")
    x = latents.to(device, torch.float32) * sigma
    denoise = in_batches(along(denoiser, plan.times), *told_beside(asks, card, config, plan.space), times=plan.times)
    yield from plan.sampler(denoise, x, plan.times, path, noise=noise)


def in_batches(denoiser: Denoiser, asks: Asks, config: SampleConfig, *, times: Tensor) -> Denoise:
    """The guided, clipped network for samples of these conditions, asked for `config.batch_size` of them at a time.

    times (N + 1,): those of the sampler, by which the settings that count steps are understood.

    A sampler above it sees all of them as one batch; what is predicted of one does not depend on the others.
    """
    size, skip = config.batch_size, skipping(config, times)
    batches = [range(i, min(i + size, asks.count)) for i in range(0, asks.count, size)]
    parts = [_guided(denoiser, asks, places, config, skip) for places in batches]

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        found = [part(x, t) for part, x in zip(parts, x_t.split(size), strict=True)]
        return found[0] if len(found) == 1 else Prediction(*(_joined(values) for values in zip(*found, strict=True)))

    return denoise


def skipping(config: SampleConfig, times: Tensor) -> Skip | None:
    """Skip-layer guidance as the settings ask for it; None where they do not, or where no step is in its range.

    A sampler that asks between its steps, or twice at one, as heun does, is guided by the time it asks for.
    """
    span = between(times, config.skip_layer_guidance_start, config.skip_layer_guidance_stop)
    if not config.skip_guidance_layers or span is None:
        return None
    return Skip({"run": Without(config.skip_guidance_layers)}, span, config.skip_layer_guidance_scale)


def _guided(denoiser: Denoiser, asks: Asks, places: range, config: SampleConfig, skip: Skip | None) -> Denoise:
    """One batch, filled up to whole ROWS by copies of its last sample where the network asks for it."""
    count, fill = len(places), -len(places) % getattr(denoiser, "rows", ROWS)
    batch = asks.rows(places.start, places.stop, fill)
    denoise = guided(
        denoiser,
        batch.cond,
        batch.null,
        config.guidance_scale,
        interval=config.guidance_interval,
        rescale=config.guidance_rescale,
        channels=config.guidance_channels,
        skip=skip,
    )
    if config.clip is not None:
        denoise = clipped(denoise, denoiser.process.path, config.clip, agreed=config.use_clipped_model_output)

    def first(x_t: Tensor, t: Tensor) -> Prediction:
        if fill:
            x_t = torch.cat((x_t, x_t[-1:].expand(fill, *x_t.shape[1:])))
        return Prediction(*(None if value is None else value[:count] for value in denoise(x_t, t)))

    return first


def _joined(values: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if values[0] is None else torch.cat(values)
