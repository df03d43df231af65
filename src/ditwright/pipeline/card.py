"""What a checkpoint says of itself: to the library as card.yaml, to people as README.md. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version

from .. import __version__
from ..codec.config import CodecConfig
from ..diffusion.config import ProcessConfig, SampleConfig
from ..model.baseline import NetConfig
from ..text.config import TextConfig

CARD, WEIGHTS, CODEC, TEXT, README = "card.yaml", "model.safetensors", "codec", "text", "README.md"


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself: enough to sample without a single flag."""

    model: NetConfig
    process: ProcessConfig
    codec: CodecConfig
    sample: SampleConfig
    class_names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None  # height, width in pixels; None: not known, so it must be given
    text: TextConfig = field(default_factory=TextConfig)  # the encoder of prompts, where the network hears text


def readme(card: Card, name: str, parameters: int) -> str:
    """A model card as the hub reads it: front matter, how the network was made, the lines that sample it."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts(card, parameters).items())
    labels = "[0, 1]" if card.model.num_classes else "num_images_per_prompt=2"
    labels = '"..."' if card.text.kind != "none" else labels
    task = "unconditional-image-generation" if card.text.kind == "none" else "text-to-image"
    return f"""---
library_name: ditwright
pipeline_tag: {task}
tags:
- diffusion
- diffusion-transformer
- image-generation
---

# {name}

A diffusion transformer, saved by ditwright {__version__}. `{CARD}` holds all of its settings.

| | |
|---|---|
{rows}

```python
from ditwright import Pipeline

images = Pipeline.from_pretrained("{name}")({labels}).images  # the path or hub name of this folder
```
"""


def facts(card: Card, parameters: int) -> dict[str, str]:
    """How the network was made, for people."""
    model, process, codec, sample = card.model, card.process, card.codec, card.sample
    names = f", such as {', '.join(card.class_names[:5])}" if card.class_names else ", without names"
    table = f" of {process.steps} steps" if process.path.startswith("ddpm") else ""
    weights = f", from `{codec.source or CODEC}`" + f" (weights {codec.fingerprint[:12]})" * bool(codec.fingerprint)
    weights *= codec.kind not in ("auto", "pixels")
    guidance = f", guidance {sample.guidance_scale:g}" if sample.guidance_scale != 1 else ""
    return {
        "network": str(model),
        "parameters": f"{parameters:,}",
        "classes": f"{model.num_classes:,}{names}" if model.num_classes else "none: unconditional",
        "pictures": f"{by(card.image_size)} pixels" if card.image_size else "size not known",
        "process": f"path {process.path}{table}, target {process.target}" + ", learned variance" * process.learned_var,
        "codec": f"{codec.kind}, {codec.channels} channels, {codec.factor} pixels per latent along a side{weights}",
        "sampling": f"{sample.sampler}, {sample.num_inference_steps} steps{guidance}",
        "versions": f"ditwright {__version__}, torch {version('torch')}",
    }


def by(sizes: tuple[int, ...]) -> str:
    """(256, 256) as "256 x 256"."""
    return " x ".join(map(str, sizes))
