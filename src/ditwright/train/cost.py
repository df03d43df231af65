"""What training costs, worked out and not measured: operations, memory of one device, hours."""

from __future__ import annotations

from collections.abc import Sequence

from ..model.baseline import NetConfig, UNetConfig
from ..model.flops import macs, tokens
from ..model.unet import unet_saved

BACKWARD = 2  # times the forward pass: a product for the gradient of the input, one for that of the weight
SAVED = 48  # bytes per token, channel of the width and block that the backward pass needs, bf16 products


def training_flops(config: NetConfig, space: Sequence[int], samples: int, text: int = 0) -> int:
    """Floating-point operations of training on so many samples, 2 to a multiply-add; `text`: tokens of each."""
    return 2 * (1 + BACKWARD) * sum(macs(config, space, text).values()) * samples


def memory(config: NetConfig, space: Sequence[int], batch: int, parameters: int, text: int = 0) -> dict[str, int]:
    """Bytes on one device in fp32 with bf16 products, AdamW and an average of the weights, by part.

    Activations: per block, token and channel the stream and its norm in fp32 twice (16), their modulated copies (4),
    queries, keys, values and the sum over values (8), what each gate multiplies (4), the hidden layer of the MLP before
    and after its nonlinearity (16, for an MLP four times as wide): 48 bytes. Scores are not kept by fused kernels.
    Of a U-Net they are what torch keeps in fp32.
    """
    if isinstance(config, UNetConfig):
        saved = unet_saved(config, tuple(space))
    else:
        wide = SAVED + 4 * (config.mlp_ratio - 4)
        length = tokens(config, space) + text * (config.context == "stream")
        saved = round(wide * length * config.width * config.depth)
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "average": 4 * parameters,
        "bf16 copies": 2 * parameters,
        "activations": saved * batch,
    }
