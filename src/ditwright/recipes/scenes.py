"""Text to image without a download: captioned scenes, whose pictures can be checked word for word."""

from __future__ import annotations

from ..codec.config import CodecConfig
from ..diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from ..errors import lookup
from ..experiment import DataConfig, TrainConfig
from ..model.config import DiTConfig, Stage
from ..text.config import TextConfig
from ..train.config import LogConfig, OptimConfig

ROUTES = {  # by depth: the stages of a network
    "cross": lambda depth: (Stage(depth, cross=True),),
    "joint": lambda depth: (Stage(depth - 1, lanes="own"), Stage(1, lanes="own", read_only=True)),
    "parallel": lambda depth: (Stage(depth // 3, lanes="own"), Stage(depth - depth // 3, parallel=True)),
}


def scenes(route: str = "joint") -> TrainConfig:
    """An MM-DiT that hears captions through a text tower trained with it, on 32 x 32 pixels.

    Command: `ditwright train scenes`, then `ditwright sample runs/scenes --prompt "a large red circle"`.
    Not measured as a whole yet: it shows the route from captions to pictures, and no figure is promised.
    """
    return TrainConfig(
        steps=4000,
        model=network(route),
        process=ProcessConfig(path="linear", target="velocity"),
        objective=ObjectiveConfig(times="logit-normal"),
        codec=CodecConfig(kind="pixels", channels=3),
        text=TextConfig(kind="bytes", length=28),
        data=DataConfig(source="scenes", batch_size=64, label_drop=0.1),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.99), warmup=100, ema=0.995, schedule="cosine"),
        sample=SampleConfig(sampler="heun", num_inference_steps=16, guidance_scale=2.5, batch_size=128),
        log=LogConfig(every=20, preview_every=1000, checkpoint_every=500),
    )


def network(route: str, *, width: int = 192, depth: int = 6) -> DiTConfig:
    """A network of one of the ways in which text enters (ROUTES), on patches of 4 x 4 pixels."""
    stages = lookup("text route", route, ROUTES)(depth)
    return DiTConfig(
        width=width,
        heads=width // 32,
        stages=stages,
        patch=(4, 4),
        channels=3,
        out_channels=3,
        num_classes=0,
        context="cross" if route == "cross" else "stream",
        text_width=128,
        text_vocab=400,
        text_depth=2,
        text_heads=4,
        qk_norm=True,
    )
