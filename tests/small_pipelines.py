"""Pipelines of a size that draws in a blink, for several test files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ditwright.codec.base import find_codec
from ditwright.codec.config import CodecConfig
from ditwright.diffusion.config import ProcessConfig, SampleConfig
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from ditwright.pipeline import Card, Pipeline
from ditwright.text.bytes import Bytes
from ditwright.text.config import TextConfig
from ditwright.text.tokenizer import learn

NETWORK = DiTConfig(width=16, heads=2, stages=(Stage(2),), channels=1, out_channels=1, num_classes=3)
NAMES = ("zero", "one", "two")
PROCESSES = {
    "ddpm": ProcessConfig("ddpm", "data", learned_var=True),
    "karras": ProcessConfig("karras", "edm"),
    "flow": ProcessConfig("linear", "velocity"),
}


def pipeline(
    process: str = "flow", *, patch: tuple[int, int] = (2, 2), classes: int = 3, names: tuple[str, ...] = NAMES
) -> Pipeline:
    """A network with weights that all matter; nothing it draws is grey."""
    outputs = 2 if PROCESSES[process].learned_var else 1
    config = replace(NETWORK, patch=patch, num_classes=classes, out_channels=outputs)
    denoiser, noise = Denoiser(build(config), process_from(PROCESSES[process])), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(torch.randn(p.shape, generator=noise), alpha=0.1)
    sample = SampleConfig(num_inference_steps=4, guidance_scale=2.0 if classes else 1.0, batch_size=4)
    card = Card(config, PROCESSES[process], CodecConfig("pixels", channels=1), sample, names[:classes], (8, 8))
    return Pipeline(denoiser, card)


def prompted_pipeline(texts: Sequence[str], *, channels: int = 1, size: int = 8, length: int = 16) -> Pipeline:
    """A network that hears text, by a tokenizer of these texts."""
    heard = {"context": "cross", "text_width": 16, "text_vocab": 270, "text_depth": 1, "text_heads": 2}
    seen = {"patch": (4, 4), "channels": channels, "out_channels": channels, "num_classes": 0}
    config = replace(NETWORK, stages=(Stage(2, cross=True),), **seen, **heard)
    learnt = learn(texts, config.text_vocab, length=length)
    encoder = Bytes(TextConfig("bytes", length=length, fingerprint=learnt.fingerprint), learnt)
    denoiser, noise = Denoiser(build(config), process_from(PROCESSES["flow"])), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(torch.randn(p.shape, generator=noise), alpha=0.2)
    sample = SampleConfig("euler", num_inference_steps=2, guidance_scale=2.0, batch_size=4)
    codec = CodecConfig("pixels", channels=channels)
    card = Card(config, PROCESSES["flow"], codec, sample, (), (size, size), encoder.config)
    return Pipeline(denoiser, card, encoder=encoder)


def autoencoder(folder: Path, *, channels: int = 4, scale: float = 0.5, seed: int = 0) -> Path:
    """A KL autoencoder of diffusers, two pixels per latent along a side, saved."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=channels,
            scaling_factor=scale,
        )
    net.save_pretrained(folder)
    return folder


def latent_pipeline(folder: Path) -> Pipeline:
    """A pipeline on the latents of the autoencoder in a folder."""
    config = replace(NETWORK, channels=4, out_channels=4)
    denoiser = Denoiser(build(config, seed=1), process_from(PROCESSES["flow"]))
    with torch.no_grad():
        denoiser.net.head.proj.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    sample = SampleConfig("euler", num_inference_steps=3)
    return Pipeline(denoiser, Card(config, PROCESSES["flow"], find_codec(str(folder)), sample, NAMES, (16, 16)))
