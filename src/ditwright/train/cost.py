"""What training costs, worked out and not measured: operations, memory of one device, hours."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil
from typing import Any

import torch

from ..errors import UserError
from ..model.baseline import NetConfig, UNetConfig
from ..model.build import empty
from ..model.config import DiTConfig
from ..model.flops import macs, tokens
from ..model.unet import unet_saved
from ..nn.branch import FEEDS

BACKWARD = 2  # times the forward pass: a product for the gradient of the input, one for that of the weight
STREAM = 4  # bytes per token and channel of what goes from block to block
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
    bf16: bool = True,
    recomputed: int = 0,
) -> dict[str, int]:
    """Bytes on one device in fp32 with bf16 products or without, AdamW and an average of the weights, by part.

    `shard`: as in ParallelConfig; `sequence`, `tensor`: devices that share the tokens of the same samples, the
    matrices of blocks; `batch`: of those samples, how many. Copies cost each device what one does: gradients lie in the
    buckets in which they are averaged (DDP). Where weights are sharded or matrices shared, so is all that is like them
    (FSDP2): those of two blocks are whole at once, in bf16, those of no block in fp32 and bf16, and gradients of one
    block are whole in bf16 and, to be summed, in fp32; without bf16 all of that is fp32.

    Activations are what blocks keep for the backward pass; of a U-Net, what torch keeps in fp32. `recomputed`: so many
    of the first blocks keep only what comes into them, and each is whole when the way back comes to it.
    """
    if isinstance(config, UNetConfig):
        saved = unet_saved(config, tuple(space))
    else:
        image, read = ceil(tokens(config, space) / sequence), ceil(text / sequence)
        blocks = kept(config, image, read, tensor, bf16=bf16)
        stream = STREAM * config.width * (image + read * (config.context == "stream"))
        back = (n * stream + blocks[n] for n in range(recomputed))  # its own input among what it keeps
        saved = max(recomputed * stream + sum(blocks[recomputed:]), *back, 0)
    if tensor > 1:
        blocks, rest = blocks_and_rest(config, tensor)
        parameters = sum(blocks) + rest
    mine = ceil(parameters / shard)
    parts = {"weights": 4 * mine, "gradients": 4 * mine, "optimizer": 8 * mine, "average": 4 * mine}
    if shard == tensor == 1:
        parts |= {"bf16 copies": 2 * parameters} if bf16 else {}
    else:
        block, rest = largest_block(config, tensor)
        number, copy = (2, 2) if bf16 else (4, 0)
        parts |= {"whole weights": number * AHEAD * block + (4 + copy) * rest, "whole gradients": (number + 4) * block}
    return parts | {"activations": saved * batch}


def kept(config: DiTConfig, image: int, text: int, tensor: int, *, bf16: bool) -> list[int]:
    """Bytes that each block keeps for the backward pass, of a sample of so many tokens of image and text.

    For DiT's block, per token and channel: the stream and its norm in fp32 twice (16), their modulated copies (4),
    queries, keys, values and the sum over values (8), what each gate multiplies (4), the hidden layer of the MLP before
    and after its nonlinearity (16, for an MLP four times as wide): 48 bytes, of which heads and hidden layer, a half,
    are shared with the matrices; in fp32 all but the first are twice as many: 80. Scores are not kept by fused kernels.
    What other blocks keep is counted likewise, as torch keeps it on a CPU, whose RMS norms keep their input twice.
    """
    found, number, length = [], 2 if bf16 else 4, image + text * (config.context == "stream")
    for stage in config.stages:
        norm = STREAM * (1 + (stage.mod != "plain") + (config.norm == "rms"))
        around = norm + number * (1 + (stage.mod in ("adaln_zero", "adaln_single")))
        heads = 4 * number + 16 * config.qk_norm
        hidden = 2 * number * config.mlp_ratio * (FEEDS[config.mlp].products - 1)
        branches = [(length, around, heads), (length, around, hidden)]  # tokens, bytes, bytes to share
        if stage.parallel:  # queries and keys once more: they lie in one matrix with all else, and are turned
            branches = [(length, around, heads + 3 * number + 2 * number * config.mlp_ratio)]
        if stage.dual:
            branches.append((image, around, heads))
        if stage.cross:
            branches += [(image, around if stage.cross_norm else number, 2 * number), (text, 0, 2 * number)]
        each = sum(count * (whole + parted / tensor) for count, whole, parted in branches)
        found += [round(each * config.width)] * stage.depth
    return found


def recomputed_within(most: float, config: NetConfig, *sizes: Any, **how: Any) -> tuple[int, dict[str, int]]:
    """How few of the first blocks to compute again for a device to need at most so many bytes, and its parts then.

    `sizes`, `how`: as `memory` takes them. The last block is never of them: the way back begins there, so it would be
    whole again at once. UserError where all others are not enough, and for a U-Net.
    """
    if isinstance(config, UNetConfig):
        raise UserError("a budget of memory is for the blocks of a transformer; leave memory_gb out for a U-Net")

    def parts(count: int) -> dict[str, int]:
        return memory(config, *sizes, **how, recomputed=count)

    count = bisect_left(range(config.depth), True, key=lambda count: sum(parts(count).values()) <= most)
    if count == config.depth:
        needed = gigabytes(sum(parts(count).values()))
        raise UserError(
            f"each device needs {needed} GB even with all blocks recomputed, and memory_gb is {gigabytes(most)}: take "
            "a smaller batch and more optim.accumulate, or --parallel.shard, .sequence or .tensor; or give more"
        )
    return count, parts(count)


def gigabytes(count: float) -> str:
    """Bytes for people, in units of 10^9, of small networks too."""
    return f"{count / 1e9:.3g}" if count < 1e11 else f"{count / 1e9:,.0f}"


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
