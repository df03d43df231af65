"""Tiny autoencoders with random weights, as stock diffusers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


def _kl(diffusers, **changes):
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    shape = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32}
    return diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, **shape | changes)


def _tiny(diffusers, **changes):
    widths, blocks = (8, 8, 8, 8), (1, 1, 1, 1)
    shape = {"encoder_block_out_channels": widths, "decoder_block_out_channels": widths}
    return diffusers.AutoencoderTiny(num_encoder_blocks=blocks, num_decoder_blocks=blocks, **shape | changes)


def _dc(diffusers, **changes):
    shape = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16), "latent_channels": 8}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1), "attention_head_dim": 4}
    scales = {"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))}
    kinds = {"encoder_block_types": ("ResBlock", "EfficientViTBlock"), "scaling_factor": 0.41407}
    return diffusers.AutoencoderDC(**shape | layers | scales | kinds | changes)


MAKERS = {
    "kl": _kl,
    "kl16": lambda d: _kl(
        d,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    "statistics": lambda d: _kl(d, latents_mean=[0.1, -1.6, 0.4, -2.0], latents_std=[8.4, 5.9, 5.1, 6.2]),
    "tiny": _tiny,
    "dc": _dc,
}
KINDS = {"kl": "kl", "kl16": "kl", "statistics": "kl", "tiny": "tiny", "dc": "dc"}


@pytest.fixture(scope="session")
def make() -> Callable[..., torch.nn.Module]:
    """make("kl16") is a network of diffusers."""
    diffusers = pytest.importorskip("diffusers")

    def made(name: str, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        return MAKERS[name](diffusers).eval()

    return made


@pytest.fixture(scope="session")
def folders(make, tmp_path_factory) -> dict[str, Path]:
    """A folder of each. Copy one before changing it."""
    root = tmp_path_factory.mktemp("autoencoders")
    for name in MAKERS:
        make(name).save_pretrained(root / name)
    return {name: root / name for name in MAKERS}


@pytest.fixture
def images() -> np.ndarray:
    """Three pictures (3, 32, 48, 3)."""
    return np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
