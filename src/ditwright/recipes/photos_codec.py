"""An autoencoder for small photographs, from scratch on two CPU cores."""

from __future__ import annotations

from ..codec.config import AutoencoderConfig
from ..experiment import CodecTrainConfig, CropsConfig, ReconstructionConfig
from ..train.config import LogConfig, OptimConfig


def photos_codec() -> CodecTrainConfig:
    """An AutoencoderKL with 4 channels at a quarter of the sides, on photographs that libraries bundle.

    Command: `ditwright train-codec photos`.
    """
    return CodecTrainConfig(
        steps=500,
        model=AutoencoderConfig(channels=4, widths=(32, 64, 64)),
        loss=ReconstructionConfig(kl=1e-6),
        data=CropsConfig(source="photos", held_out="photos-held-out", image_size=96, crop=64, batch_size=32),
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.99), schedule="cosine", warmup=20, ema=0.99),
        log=LogConfig(every=10, preview_every=250, checkpoint_every=250),
    )
