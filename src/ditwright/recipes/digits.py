"""Handwritten digits on two CPU cores."""

from __future__ import annotations

from ..codec.config import CodecConfig
from ..diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from ..experiment import DataConfig, TrainConfig
from ..model.config import DiTConfig, Stage
from ..train.config import LogConfig, OptimConfig


def digits() -> TrainConfig:
    """A DiT with adaLN-Zero (4.2M parameters) on 8 x 8 pixels, rectified flow.

    Command: `ditwright train digits`; with the judgement below, `ditwright demo`.
    Cost: 134 s on two Zen 4 cores without AMX, bf16 (measured 2026-11-21, torch 2.13.0); 96 s on
    two Xeon cores with AMX (2026-11-26).
    Result (measured): 99.2% of 1,000 samples at guidance 1.0 recognised by a classifier that is right on 98.9% of real
    digits; within-class spread at least 92% and 91% of the real one; 0.98 times as far from the nearest real digit as
    real ones are. Patches of 4 give 4 tokens, so that a wide network sees each digit a hundred times in that time.
    """
    return TrainConfig(
        steps=1600,
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
        data=DataConfig(source="digits", batch_size=128, label_drop=0.05, prefetch=0),
        optim=OptimConfig(lr=3e-3, betas=(0.9, 0.99), schedule="cosine", warmup=50, ema=0.99),
        sample=SampleConfig(sampler="heun", num_inference_steps=25, batch_size=256),
        log=LogConfig(every=10, preview_every=400, checkpoint_every=400),
    )
