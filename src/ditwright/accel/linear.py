"""Matrix products of a network that only samples: weights cast once, laid out once as the kernels read them.

R rows, I and O widths in and out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 8  # below about 6 rows matrix libraries switch kernels, and with them last bits
LIKELY = 512  # rows for which a layout is chosen; others run too


def can_lay_out(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's products of laid-out weights here, and they are the fastest.

    In bf16 wherever it has instructions for it: they are what torch.compile uses on a CPU. In fp32 on a CPU with AVX2
    and no more, where XL/2 is 1.1 times as fast with them; with AVX-512 that was not measured.
    """
    ops, wanted = torch.ops.mkldnn, ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not all(hasattr(ops, w) for w in wanted):
        return False
    if dtype == torch.float32:
        return torch.backends.cpu.get_cpu_capability() == "AVX2"
    return dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported()


def product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """x (..., I) by a laid-out weight: (..., O)."""
    after = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)


LIBRARY = torch.library.Library("ditwright", "FRAGMENT")
LIBRARY.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
for place in ("CPU", "MkldnnCPU"):
    LIBRARY.impl("product", product, place)


@torch.library.register_fake("ditwright::product", lib=LIBRARY)
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class LaidOut(nn.Module):
    """A linear layer that will not change again: (..., I) of any type -> (..., O) of `dtype`.

    `gelu`: followed by the GELU's tanh form: in the same pass over memory, unless torch.compile makes a sooner one.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, gelu: bool = False):
        super().__init__()
        weight, bias = linear.weight.detach().to(dtype), linear.bias
        self.packs, self.gelu, self.dtype = can_lay_out(weight.device, dtype), gelu, dtype
        # No buffers: a layout belongs to its device, and is no tensor that could be saved.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, LIKELY) if self.packs else weight
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packs and not torch.compiler.is_compiling():
            return product(x, self.weight, self.bias, self.gelu)
        # torch.compile lowers oneDNN's operator only where it has laid the weight out itself
        work = torch.ops.ditwright.product if self.packs else F.linear
        y = work(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if self.gelu else y


class Filled(nn.Linear):
    """A linear layer for which what comes of one row does not depend on how few others there are: (R, I) -> (R, O)."""

    def forward(self, x: Tensor) -> Tensor:
        return filled(super().forward, x) if x.ndim == 2 else super().forward(x)

    @classmethod
    def of(cls, linear: nn.Linear) -> Filled:
        """With the weights of another."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        return made


def filled(work: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`work` on rows (R, I), given ROWS of them at least."""
    count, missing = len(rows), ROWS - len(rows)
    if missing <= 0:
        return work(rows)
    return work(torch.cat((rows, rows[-1:].expand(missing, -1))))[:count]
