"""What training costs, worked out and not measured: operations, memory of one device, hours."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch

from ..model.baseline import NetConfig, UNetConfig
from ..model.build import empty
from ..model.flops import macs, tokens
from ..model.unet import unet_saved

BACKWARD = 2  # times the forward pass: a product for the gradient of the input, one for that of the weight
SAVED = 48  # bytes per token, channel of the width and block that the backward pass needs, bf16 products
AHEAD = 2  # blocks whose weights are whole at once where they are sharded: the one at work and the next


def training_flops(config: NetConfig, space: Sequence[int], samples: int, text: int = 0) -> int:
    """Floating-point operations of training on so many samples, 2 to a multiply-add; `text`: tokens of each."""
    return 2 * (1 + BACKWARD) * sum(macs(config, space, text).values()) * samples


def memory(
    config: NetConfig,
    space: Sequence[int],
    batch: int,
    parameters: int,
    text: int = 0,
    *,
    data: int = 1,
    shard: int = 1,
    sequence: int = 1,
) -> dict[str, int]:
    """Bytes on one device in fp32 with bf16 products, AdamW and an average of the weights, by part.

    `data`, `shard`: as in ParallelConfig; `sequence`: devices that share the tokens of the same samples; `batch`: of
    those, how many. Copies average their gradients in buckets as large (DDP). Where weights are sharded, so is all that
    is like them (FSDP2): those of two blocks are whole at once, in bf16, those of no block in fp32 and bf16, and
    gradients of one block are whole in bf16 and, to be summed, in fp32.

    Activations: per block, token and channel the stream and its norm in fp32 twice (16), their modulated copies (4),
    queries, keys, values and the sum over values (8), what each gate multiplies (4), the hidden layer of the MLP before
    and after its nonlinearity (16, for an MLP four times as wide): 48 bytes. Scores are not kept by fused kernels.
    Of a U-Net they are what torch keeps in fp32.
    """
    if isinstance(config, UNetConfig):
        saved = unet_saved(config, tuple(space))
    else:
        wide = SAVED + 4 * (config.mlp_ratio - 4)
        streams = [tokens(config, space), *([text] if config.context == "stream" else [])]
        length = sum(ceil(stream / sequence) for stream in streams)
        saved = round(wide * length * config.width * config.depth)
    mine = ceil(parameters / shard)
    parts = {"weights": 4 * mine, "gradients": 4 * mine, "optimizer": 8 * mine, "average": 4 * mine}
    if shard == 1:
        parts["bf16 copies"] = 2 * parameters
        parts |= {"buckets": 4 * parameters} if data > 1 else {}
    else:
        block, rest = largest_block(config)
        parts |= {"whole weights": 2 * AHEAD * block + 6 * rest, "whole gradients": 6 * block}
    return parts | {"activations": saved * batch}


def largest_block(config: NetConfig) -> tuple[int, int]:
    """Parameters of the largest block of a network, 0 where it has none, and of all that is in no block."""
    with torch.device("meta"):
        net = empty(config)
    blocks = [sum(p.numel() for p in block.parameters()) for block in getattr(net, "blocks", ())]
    return max(blocks, default=0), sum(p.numel() for p in net.parameters()) - sum(blocks)
