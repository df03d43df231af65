"""Handwritten digits on two CPU cores."""

from __future__ import annotations

from ..codec.config import CodecConfig
from ..diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from ..experiment import DataConfig, TrainConfig
from ..model.config import DiTConfig, Stage
from ..train.config import LogConfig, OptimConfig


def digits() -> TrainConfig:
    """A DiT with adaLN-Zero on 8 x 8 pixels, rectified flow."""
    return TrainConfig(
        steps=1800,
        model=DiTConfig(
            width=192,
            heads=6,
            stages=(Stage(depth=6),),
            patch=(4, 4),
            channels=1,
            out_channels=1,
            num_classes=10,
        ),
        process=ProcessConfig(path="linear", target="velocity"),
        objective=ObjectiveConfig(times="logit-normal"),
        codec=CodecConfig(kind="pixels", channels=1),
        data=DataConfig(source="digits", batch_size=128, label_drop=0.1),
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.99), schedule="cosine", warmup=50, ema=0.99),
        sample=SampleConfig(sampler="heun", num_inference_steps=25, batch_size=256),
        log=LogConfig(every=10, preview_every=600, checkpoint_every=300),
    )
