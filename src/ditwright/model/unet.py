"""The baseline that diffusion transformers are measured against: ADM's U-Net, as diffusers builds it.

B batch, C channels, H height, W width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..diffusion.process import Cond
from ..errors import UserError
from ..extras import need
from ..nn.branch import Runner, run_all
from .baseline import UNetConfig

PARTS = {"convolution": "convolution", "addmm": "linear", "mm": "linear", "bmm": "attention", "baddbmm": "attention"}


class UNet(nn.Module):
    """Residual blocks with scale-shift conditioning, attention at coarse levels (Dhariwal & Nichol 2021, Sec. 3)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config, levels = config, len(config.levels)
        plain = levels - config.attention
        self.net = need("diffusers", extra="hf").UNet2DModel(
            in_channels=config.channels,
            out_channels=config.out_channels,
            block_out_channels=tuple(config.width * level for level in config.levels),
            down_block_types=("ResnetDownsampleBlock2D",) * plain + ("AttnDownBlock2D",) * config.attention,
            up_block_types=("AttnUpBlock2D",) * config.attention + ("ResnetUpsampleBlock2D",) * plain,
            layers_per_block=config.depth,
            attention_head_dim=config.head_width,
            norm_num_groups=config.groups,
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
            num_class_embeds=config.num_classes + 1 if config.num_classes else None,
            freq_shift=0,
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """What `torch.compile` is given, one at a time."""
        return [*self.net.down_blocks, self.net.mid_block, *self.net.up_blocks]

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, run: Runner = run_all) -> Tensor:
        """x (B, C, H, W), t (B,) the time as the network counts it, cond {"label": (B,)} -> (B, C_out, H, W)."""
        if run is not run_all:
            raise UserError("a U-Net has no blocks of a transformer, so nothing decides how they run; leave that out")
        if self.config.num_classes and (not cond or "label" not in cond):
            raise UserError("the network is conditioned on ['label']; pass cond={'label': tensor}")
        return self.net(x, t, cond["label"] if cond and self.config.num_classes else None).sample


def initialise_unet(net: UNet) -> None:
    """ADM's start: the last convolution of each residual block, of attention and of the network are zero."""
    for name, weights in net.named_parameters():
        if name.rpartition(".")[0].endswith(("conv2", "to_out.0", "conv_out")):
            nn.init.zeros_(weights)


@lru_cache(maxsize=64)
def unet_macs(config: UNetConfig, space: tuple[int, ...]) -> dict[str, int]:
    """Multiply-adds of one forward pass of one sample, by part: what torch's counter sees on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        _pass(UNet(config), space)
    parts = dict.fromkeys(PARTS.values(), 0)
    for operation, flops in counter.get_flop_counts()["Global"].items():
        parts[PARTS[str(operation).removeprefix("aten.")]] += flops // 2
    return parts


@lru_cache(maxsize=64)
def unet_saved(config: UNetConfig, space: tuple[int, ...]) -> int:
    """Bytes of fp32 activations that one sample keeps for the backward pass."""
    with torch.device("meta"):
        net = UNet(config)
    found = {p.untyped_storage()._cdata: 0 for p in net.parameters()}
    kept: list[Tensor] = []  # so that no other one gets its place

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        found.setdefault(storage._cdata, storage.nbytes())
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _pass(net, space)
    return sum(found.values())


def _pass(net: UNet, space: tuple[int, ...]) -> None:
    label = {"label": torch.zeros(1, dtype=torch.long)} if net.config.num_classes else None
    net(torch.zeros(1, net.config.channels, *space), torch.zeros(1), label)
