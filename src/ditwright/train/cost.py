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
    shard: int = 1,
    sequence: int = 1,
    tensor: int = 1,
) -> dict[str, int]:
    """Bytes on one device in fp32 with bf16 products, AdamW and an average of the weights, by part.

    `shard`: as in ParallelConfig; `sequence`, `tensor`: devices that share the tokens of the same samples, the
    matrices of blocks; `batch`: of those samples, how many. Copies cost each device what one does: gradients lie in the
    buckets in which they are averaged (DDP). Where weights are sharded or matrices shared, so is all that is like them
    (FSDP2): those of two blocks are whole at once, in bf16, those of no block in fp32 and bf16, and gradients of one
    block are whole in bf16 and, to be summed, in fp32.

    Activations: per block, token and channel the stream and its norm in fp32 twice (16), their modulated copies (4),
    queries, keys, values and the sum over values (8), what each gate multiplies (4), the hidden layer of the MLP before
    and after its nonlinearity (16, for an MLP four times as wide): 48 bytes, of which heads and hidden
    layer, a half, are shared with the matrices. Scores are not kept by fused kernels. Of a U-Net they are what torch
    keeps in fp32.
    """
    if isinstance(config, UNetConfig):
        saved = unet_saved(config, tuple(space))
    else:
        wide = SAVED / 2 + (SAVED / 2 + 4 * (config.mlp_ratio - 4)) / tensor
        streams = [tokens(config, space), *([text] if config.context == "stream" else [])]
        length = sum(ceil(stream / sequence) for stream in streams)
        saved = round(wide * length * config.width * config.depth)
    if tensor > 1:
        blocks, rest = blocks_and_rest(config, tensor)
        parameters = sum(blocks) + rest
    mine = ceil(parameters / shard)
    parts = {"weights": 4 * mine, "gradients": 4 * mine, "optimizer": 8 * mine, "average": 4 * mine}
    if shard == tensor == 1:
        parts["bf16 copies"] = 2 * parameters
    else:
        block, rest = largest_block(config, tensor)
        parts |= {"whole weights": 2 * AHEAD * block + 6 * rest, "whole gradients": 6 * block}
    return parts | {"activations": saved * batch}


def largest_block(config: NetConfig, tensor: int = 1) -> tuple[int, int]:
    """Parameters of the largest block of a network, 0 where it has none, and of all that is in no block.

    `tensor`: devices that share the matrices of blocks; as many as one of them has.
    """
    blocks, rest = blocks_and_rest(config, tensor)
    return max(blocks, default=0), rest


def blocks_and_rest(config: NetConfig, tensor: int) -> tuple[list[int], int]:
    """Parameters of each block that one of `tensor` devices has, and of all that is in no block."""
    with torch.device("meta"):
        net = empty(config)
    blocks = [(sum(p.numel() for p in block.parameters()), block) for block in getattr(net, "blocks", ())]
    rest = sum(p.numel() for p in net.parameters()) - sum(count for count, _ in blocks)
    if tensor == 1:
        return [count for count, _ in blocks], rest
    from ..model.tensor_parallel import parted_parameters  # torch takes its time to import this

    parted = [parted_parameters(block) for _, block in blocks]
    return [count - found + found // tensor for (count, _), found in zip(blocks, parted, strict=True)], rest
