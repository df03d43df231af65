"""ImageNet as in the DiT paper."""

from __future__ import annotations

from ..diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from ..experiment import DataConfig, TrainConfig
from ..model.presets import PRESETS
from ..train.config import LogConfig, OptimConfig


def imagenet() -> TrainConfig:
    """DiT-XL/2 on latents of 256-pixel ImageNet, class-conditional (Peebles & Xie 2022, Sec. 4).

    Command: `torchrun --nproc-per-node 8 -m ditwright train imagenet --data.source SHARDS`, the shards from
    `ditwright prepare IMAGENET/train --codec stabilityai/sd-vae-ft-ema --size 256 --output SHARDS`.
    Cost, computed and not measured: 3 x 118.6 G multiply-adds per sample and step (forward and backward), 7.3e19 FLOPs
    for the paper's 400,000 steps of 256.
    As in the paper but for gradients clipped to the norm 1, bf16 products, and a new latent drawn in every epoch.
    Result: none yet; nobody has run this recipe here. Quoted from the paper: FID-50K 19.47 without guidance.
    """
    return TrainConfig(
        steps=400_000,
        model=PRESETS["DiT-XL/2"],
        process=ProcessConfig(path="ddpm", target="noise", learned_var=True),
        objective=ObjectiveConfig(times="discrete"),
        data=DataConfig(source="", batch_size=256, label_drop=0.1, flip=0.5),
        optim=OptimConfig(lr=1e-4, weight_decay=0.0, ema=0.9999),
        sample=SampleConfig(sampler="ddpm", num_inference_steps=250, guidance_scale=4.0, guidance_channels=3),
        log=LogConfig(every=100, preview_every=10_000, checkpoint_every=10_000),
    )
