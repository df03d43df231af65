"""Latents on their way out: final ones in the form that was asked for (as diffusers' VaeImageProcessor gives them)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..codec.base import Codec
from ..codec.pixels import to_uint8
from ..diffusion.sampler import Step
from ..errors import UserError
from ..pictures import to_pil

TENSORS = ("latents", "x0")  # what a callback may ask for


class Frame(NamedTuple):
    """One step of sampling, for previews and film strips."""

    t: float  # the time of `images`, 0 at the end
    images: np.ndarray  # (B, H, W, C) uint8: the noisy sample
    clean: np.ndarray  # (B, H, W, C) uint8: the present estimate of the clean sample


class ImagePipelineOutput(NamedTuple):
    """What a call returns, under diffusers' name."""

    images: Any  # as `output_type` says


class Decoder(Protocol):
    """That of a codec which makes pictures of latents."""

    def pixels(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, H, W) float32, black -1 and white 1, not clipped."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, h, w) -> (B, H, W, C) uint8: the pixels, clipped and rounded."""


@dataclass(frozen=True)
class Sized:
    """What decodes latents, and brings pictures that were drawn at another size to the one that was asked for."""

    codec: Decoder
    size: tuple[int, ...]  # height, width

    def pixels(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, height, width) float32, black -1 and white 1, not clipped."""
        return fitted(self.codec.pixels(latents), self.size)

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, h, w) -> (B, height, width, C) uint8."""
        return to_uint8(self.pixels(latents))


def sized(codec: Decoder, size: Sequence[int] | None) -> Decoder:
    """A codec whose pictures are of a size, height and width; None: as the latents are."""
    return codec if size is None else Sized(codec, tuple(size))


def fitted(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) resized until both sides cover `size`, and its middle: diffusers' resize_and_crop_tensor."""
    sides = tuple(pixels.shape[2:])
    if sides == size:
        return pixels
    ratio = max(want / side for want, side in zip(size, sides, strict=True))
    resized = [max(want, int(side * ratio)) for want, side in zip(size, sides, strict=True)]  # theirs may lose a row
    top, left = ((side - want) // 2 for side, want in zip(resized, size, strict=True))
    found = F.interpolate(pixels, resized, mode="bilinear", align_corners=False)
    return found[:, :, top : top + size[0], left : left + size[1]]


def as_latent(codec: Decoder, latents: Tensor) -> Tensor:
    """(B, C, h, w) as they are."""
    return latents


def as_pt(codec: Decoder, latents: Tensor) -> Tensor:
    """(B, C, H, W) float32 in [0, 1]."""
    return (codec.pixels(latents) / 2 + 0.5).clamp(0, 1)


def as_np(codec: Decoder, latents: Tensor) -> np.ndarray:
    """(B, H, W, C) float32 in [0, 1]."""
    return as_pt(codec, latents).permute(0, 2, 3, 1).cpu().numpy()


def as_pil(codec: Decoder, latents: Tensor) -> list[Image.Image]:
    """B pictures."""
    return [to_pil(picture) for picture in codec.decode(latents)]


OUTPUTS: dict[str, Callable[[Decoder, Tensor], Any]] = {
    "pil": as_pil,
    "np": as_np,
    "pt": as_pt,
    "latent": as_latent,
}


def shown(step: Step, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a step that a callback asks for."""
    tensors = dict(zip(TENSORS, (step.x, step.x0), strict=True))
    return {name: tensors[name] for name in names}


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
        advice = "from_pretrained takes another place as codec=, `ditwright sample` as --codec; "
        advice += "output_type 'latent' needs none"
        raise UserError(f"{error}; {advice}") from None
