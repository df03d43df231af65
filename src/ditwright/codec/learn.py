"""Training an AutoencoderKL: the network as the loop sees it, its loss, and what is measured of it.

B batch, H height, W width, C channels of latents; h, w the latents' height and width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..diffusion.objective import Ask
from ..diffusion.process import Cond
from ..extras import need
from ..rng import Draws
from .config import AutoencoderConfig

LOGVAR = (-30.0, 20.0)  # diffusers clamps log-variances so


def build(config: AutoencoderConfig, crop: int, seed: int) -> nn.Module:
    """diffusers' own AutoencoderKL, freshly initialised; the global random state is left as it was.

    `crop`: the side in pixels that it is trained on, which becomes that of its tiles.
    """
    blocks = len(config.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return need("diffusers", extra="hf").AutoencoderKL(
            in_channels=config.image_channels,
            out_channels=config.image_channels,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            latent_channels=config.channels,
            norm_num_groups=config.groups,
            sample_size=crop,
            force_upcast=False,
            mid_block_add_attention=config.attention,
        )


class Reconstruct(nn.Module):
    """An AutoencoderKL as the training loop calls it; its weights keep the names that diffusers gives them."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.encoder, self.quant_conv = net.encoder, net.quant_conv
        self.decoder, self.post_quant_conv = net.decoder, net.post_quant_conv

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and log-variance, (B, C, h, w) float32 each."""
        mean, logvar = self.quant_conv(self.encoder(x)).float().chunk(2, 1)
        return mean, logvar.clamp(*LOGVAR)

    def forward(self, x: Tensor, noise: Tensor, run: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction (B, 3, H, W), mean and log-variance; `noise` (B, C, h, w). `run` is for transformers."""
        mean, logvar = self.moments(x)
        z = mean + (0.5 * logvar).exp() * noise
        return self.decoder(self.post_quant_conv(z)).float(), mean, logvar


@dataclass(frozen=True)
class Reconstruction:
    """l1 |e| + mse e^2 + kl KL, the means over a picture's values: a Loss, without a perceptual network.

    KL is the divergence of the drawn latents from a unit normal, in nats per value of the picture, so that its weight
    means what it does in latent diffusion's own autoencoders (Rombach et al. 2022, Sec. G: about 1e-6).
    """

    config: AutoencoderConfig
    l1: float
    mse: float
    kl: float

    def __call__(self, net: Ask, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """Loss per sample (B,); x0 (B, 3, H, W) in [-1, 1]."""
        sides = [side // self.config.factor for side in x0.shape[2:]]
        y, mean, logvar = net(x0, draws.normal(x0.new_empty(len(x0), self.config.channels, *sides)))
        error = (y - x0).flatten(1)
        kl = divergence(mean, logvar) / error.shape[1]
        return self.l1 * error.abs().mean(1) + self.mse * error.square().mean(1) + self.kl * kl


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of a diagonal normal distribution from the unit one, in nats: (B, ...) -> (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


@dataclass(frozen=True)
class Spread:
    """Where drawn latents lie: mean and standard deviation of each channel (C,), float64."""

    mean: np.ndarray
    std: np.ndarray

    @property
    def shift(self) -> float:
        """The mean over all channels."""
        return float(self.mean.mean())

    @property
    def scale(self) -> float:
        """One over the standard deviation over all channels."""
        return float((self.std**2 + (self.mean - self.shift) ** 2).mean() ** -0.5)


def spread(moments: Iterable[tuple[Tensor, Tensor]]) -> Spread:
    """Statistics of latents as they are drawn, posterior noise included, from batches of (mean, log-variance)."""
    count, total, squares = 0, 0.0, 0.0
    for mean, logvar in moments:
        mean, var = mean.double(), logvar.double().exp()
        count += mean[:, 0].numel()
        total += mean.sum((0, 2, 3)).cpu().numpy()
        squares += (mean.square() + var).sum((0, 2, 3)).cpu().numpy()
    centre = total / count
    return Spread(centre, np.sqrt(squares / count - centre**2))


def psnr(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Peak signal to noise ratio of each pair of 8-bit pictures, (B, H, W, C) -> (B,) in dB.

    10 log10(255^2 / mean squared error over a picture); the error counts as at least that of rounding, 1/12.
    """
    error = np.square(images.astype(np.float64) - others).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1 / 12))
