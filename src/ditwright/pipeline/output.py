"""Latents on their way out: final ones in the form that was asked for (as diffusers' VaeImageProcessor gives them)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..codec.base import Codec
from ..diffusion.sampler import Step
from ..errors import UserError
from ..pictures import to_pil


class Frame(NamedTuple):
    """One step of sampling, for previews and film strips."""

    t: float  # the time of `images`, 0 at the end
    images: np.ndarray  # (B, H, W, C) uint8: the noisy sample
    clean: np.ndarray  # (B, H, W, C) uint8: the present estimate of the clean sample


class ImagePipelineOutput(NamedTuple):
    """What a call returns, under diffusers' name."""

    images: Any  # as `output_type` says


def as_latent(codec: Codec, latents: Tensor) -> Tensor:
    """(B, C, h, w) as they are."""
    return latents


def as_pt(codec: Codec, latents: Tensor) -> Tensor:
    """(B, C, H, W) float32 in [0, 1]."""
    return (codec.pixels(latents) / 2 + 0.5).clamp(0, 1)


def as_np(codec: Codec, latents: Tensor) -> np.ndarray:
    """(B, H, W, C) float32 in [0, 1]."""
    return as_pt(codec, latents).permute(0, 2, 3, 1).cpu().numpy()


def as_pil(codec: Codec, latents: Tensor) -> list[Image.Image]:
    """B pictures."""
    return [to_pil(picture) for picture in codec.decode(latents)]


OUTPUTS: dict[str, Callable[[Codec, Tensor], Any]] = {
    "pil": as_pil,
    "np": as_np,
    "pt": as_pt,
    "latent": as_latent,
}


def go_on_with(latents: Tensor, step: Step) -> None:
    """Put latents in the place of a step's own, which is the tensor that its sampler goes on from."""
    if latents is not step.x:
        if latents.shape != step.x.shape:
            raise UserError(
                f"a callback's latents must keep the shape {tuple(step.x.shape)}; got {tuple(latents.shape)}"
            )
        step.x.copy_(latents)


def with_weights(codec: Codec) -> Codec:
    """The codec with its weights: a missing autoencoder is better known before the work than after it."""
    try:
        return codec.ready()
    except UserError as error:
        advice = "from_pretrained takes another place as codec=, and output_type 'latent' needs none"
        raise UserError(f"{error}; {advice}") from None
