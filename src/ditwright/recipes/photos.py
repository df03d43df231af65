"""A latent diffusion transformer for small photographs, on two CPU cores."""

from __future__ import annotations

from ..diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from ..experiment import DataConfig, TrainConfig
from ..model.config import DiTConfig, Stage
from ..train.config import LogConfig, OptimConfig


def photos() -> TrainConfig:
    """A DiT with adaLN-Zero (4.2M parameters) on the 16 x 16 x 4 latents of 64-pixel crops of eight photographs.

    Commands: `ditwright train-codec photos`, `ditwright prepare photos --codec runs/photos-codec --output
    shards/photos`, `ditwright train photos`.
    It shows the latent route from end to end without a download; eight photographs are no data set.
    """
    return TrainConfig(
        steps=600,
        model=DiTConfig(width=192, heads=3, stages=(Stage(depth=6),), num_classes=8),
        process=ProcessConfig(path="linear", target="velocity"),
        objective=ObjectiveConfig(times="logit-normal"),
        data=DataConfig(source="shards/photos", batch_size=64, flip=0.5),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup=50, ema=0.99),
        sample=SampleConfig(sampler="heun", num_inference_steps=25, guidance_scale=1.5),
        log=LogConfig(every=10, preview_every=300, checkpoint_every=300),
    )
