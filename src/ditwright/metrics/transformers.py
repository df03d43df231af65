"""Features of DINOv2 and CLIP through the transformers package, prepared as the papers that measure with them do.

B batch, H height, W width, C channels, D features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..extras import at_revision, first_line, need, quiet
from .features import ModuleExtractor, Seen, channels_first, from_hub

DINO_SIDE = 224  # pixels; Stein et al. 2023
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of red, green, blue in 0 ... 1
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = {384: "s", 768: "b", 1024: "l", 1280: "h", 1536: "g"}  # widths, by the letter of their ViT


class Output(nn.Module):
    """One output of a network of transformers."""

    def __init__(self, net: nn.Module, output: str):
        super().__init__()
        self.net, self.output = net, output

    def forward(self, pixels: Tensor) -> Seen:
        """(B, 3, H, H) -> (B, D)."""
        return Seen(self.net(pixel_values=pixels)[self.output])


def dinov2(name: str | Path, device: torch.device | str = "cpu") -> ModuleExtractor:
    """The CLS token after the last norm, as FD-DINOv2 takes it (Stein et al. 2023), which means ViT-L/14.

    `name`: a folder with config.json and model.safetensors, or a name on the hub: facebook/dinov2-large.
    """
    net = _load(str(name), "AutoModel", ("dinov2", "dinov2_with_registers"), "facebook/dinov2-large")
    if net.config.model_type == "dinov2":
        _resample_positions(net.embeddings, DINO_SIDE // net.config.patch_size)
    registers = "reg" if net.config.model_type == "dinov2_with_registers" else ""
    return _extractor(net, "pooler_output", f"dinov2-{_size(net.config)}{registers}", DINO_SIDE, IMAGENET, device)


def clip(name: str | Path, device: torch.device | str = "cpu") -> ModuleExtractor:
    """The picture's embedding, projected, not normalised, as CLIP-FID takes it (Kynkaanniemi et al. 2022): ViT-B/32.

    `name`: a folder with config.json and model.safetensors, or a name on the hub: openai/clip-vit-base-patch32.
    """
    net = _load(
        str(name), "CLIPVisionModelWithProjection", ("clip", "clip_vision_model"), "openai/clip-vit-base-patch32"
    )
    return _extractor(net, "image_embeds", f"clip-{_size(net.config)}", net.config.image_size, CLIP, device)


def bicubic(images: np.ndarray, *, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, H, W, C) uint8 -> (B, 3, side, side) float32: the whole picture by Pillow's bicubic in 8 bits, normalised."""
    colour = channels_first(images).permute(0, 2, 3, 1).numpy()
    if colour.shape[1:3] != (side, side):
        resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in colour]
        colour = np.stack([np.asarray(image) for image in resized])
    x = torch.from_numpy(np.ascontiguousarray(colour)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _extractor(net: nn.Module, output: str, name: str, side: int, colours: Any, device: Any) -> ModuleExtractor:
    mean, std = colours
    prepare = partial(bicubic, side=side, mean=mean, std=std)
    return ModuleExtractor(Output(net, output), name, side, prepare=prepare, device=device)


def _size(config: Any) -> str:
    """ "vitl14"; the width itself where no ViT is so wide."""
    return f"vit{SIZES.get(config.hidden_size, f'-{config.hidden_size}-')}{config.patch_size}"


def _resample_positions(embeddings: nn.Module, side: int) -> None:
    """The table of positions at the size that is used, exactly as DINOv2's own code makes it.

    That code adds 0.1 to the sides before it divides, which transformers leaves out. The published numbers have it.
    """
    table = embeddings.position_embeddings.detach()  # (1, 1 + n * n, D)
    old = round((table.shape[1] - 1) ** 0.5)
    if old == side:
        return
    grid = table[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((side + 0.1) / old,) * 2, mode="bicubic")
    embeddings.position_embeddings = nn.Parameter(torch.cat([table[:, :1], grid.flatten(2).mT], 1))


def _load(name: str, class_name: str, types: tuple[str, ...], example: str) -> Any:
    """A network with its weights in float32. UserError where it is not there, of another kind, or lacks a weight."""
    kind, library = types[0], need("transformers", extra="eval")
    folder = _folder(name, kind, example)
    try:
        with quiet(library):
            config = library.AutoConfig.from_pretrained(folder)
            if config.model_type not in types:
                allowed = " or ".join(types)
                raise UserError(f"{name!r} holds a network of type {config.model_type!r}; {kind}: takes {allowed}")
            if config.model_type == "clip":  # both towers
                config.vision_config.projection_dim, config = config.projection_dim, config.vision_config
            net, info = getattr(library, class_name).from_pretrained(
                folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds for a damaged or foreign folder; all are its fault
        raise UserError(f"{name!r} cannot be loaded as {kind}: {first_line(error)}") from error
    for flaw in ("missing_keys", "mismatched_keys"):
        if info[flaw]:
            key = min(str(key) for key in info[flaw])
            raise UserError(f"the weights in {name!r} do not fit its config.json: {flaw.replace('_keys', '')} {key}")
    return net.float()


def _folder(name: str, kind: str, example: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    name, revision = at_revision(name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"there is no folder {name!r}; {kind}: takes a folder, or a name on the hub like {example}")
    remedy = f"where there is a connection run: hf download {name} --local-dir DIR, copy DIR here, name it {kind}:DIR"
    folder = from_hub(name, ["config.json", "*.safetensors*"], remedy, revision)
    if any(folder.glob("*.safetensors")):
        return folder
    return from_hub(name, ["config.json", "pytorch_model*"], remedy, revision)
