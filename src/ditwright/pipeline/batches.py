"""Many samples through a network that sees a few at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..diffusion.config import SampleConfig
from ..diffusion.guidance import Denoise, clipped, guided
from ..diffusion.process import Cond, Denoiser
from ..diffusion.target import Prediction

ROWS = 8  # below about 6 rows matrix libraries switch kernels, and with them last bits: batches are filled up to this


def in_batches(denoiser: Denoiser, labels: Sequence[int], null: int, config: SampleConfig) -> Denoise:
    """The guided, clipped network for samples of these labels, asked for `config.batch_size` of them at a time.

    `null` is the class of nothing in particular, 0 where the network has no classes. A sampler above it sees all of
    them as one batch; what is predicted of one does not depend on the others.
    """
    size = config.batch_size
    parts = [_guided(denoiser, labels[i : i + size], null, config) for i in range(0, len(labels), size)]

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        found = [part(x, t) for part, x in zip(parts, x_t.split(size), strict=True)]
        return found[0] if len(found) == 1 else Prediction(*(_joined(values) for values in zip(*found, strict=True)))

    return denoise


def _guided(denoiser: Denoiser, labels: Sequence[int], null: int, config: SampleConfig) -> Denoise:
    """One batch, filled up to whole ROWS by copies of its last sample."""
    count, fill = len(labels), -len(labels) % ROWS
    filled = torch.tensor([*labels, *[labels[-1]] * fill], device=next(denoiser.parameters()).device)
    cond: Cond = {"label": filled} if null else {}
    free: Cond = {"label": torch.full_like(filled, null)} if null else {}
    denoise = guided(
        denoiser,
        cond,
        free,
        config.guidance_scale,
        interval=config.guidance_interval,
        rescale=config.guidance_rescale,
        channels=config.guidance_channels,
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
