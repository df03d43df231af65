"""What torch.compile's graphs for a CPU compute in another way than they would by themselves, no less exactly.

R rows, I and O widths in and out. docs/performance_notes.md has what each gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.pattern_matcher import (
    MULTIPLE,
    CallFunction,
    KeywordArg,
    Match,
    PatternMatcherPass,
    register_graph_pattern,
)

from . import turned as turning
from .linear import can_lay_out
from .turned import turned

aten = torch.ops.aten
ROWS, SIDE, RATIO = 2048, 384, 3  # of gradients of weights that are worth a copy, at least

PASSES = PatternMatcherPass()
X, TANH = KeywordArg("x"), CallFunction(aten.tanh.default, KeywordArg("u"), _users=MULTIPLE)
OPENED = CallFunction(aten.add.Tensor, TANH, 1, _users=MULTIPLE)


def on_cpu(match: Match) -> bool:
    """Whether what is matched is computed there."""
    return match.output_node().meta["val"].device.type == "cpu"


def amx() -> bool:
    """Whether this CPU multiplies bfloat16 by tiles."""
    return torch.cpu._is_amx_tile_supported()


def short_on_cpu(match: Match) -> bool:
    """And in bfloat16."""
    return on_cpu(match) and match.output_node().meta["val"].dtype == torch.bfloat16


# The kernel of tanh takes several times as long as that of exp, and a GELU's tanh form, forward and backward, spends
# most of its time on it. With s = sigmoid(2 u), tanh(u) = 2 s - 1; off by 2e-7 at most in fp32.


@register_graph_pattern(
    CallFunction(aten.mul.Tensor, CallFunction(aten.mul.Tensor, X, 0.5, _users=MULTIPLE), OPENED),
    extra_check=on_cpu,
    pass_dict=PASSES,
)
def gelu(match: Match, x: fx.Node, u: fx.Node) -> None:
    """0.5 x (1 + tanh u) = x s."""
    match.replace_by_example(lambda x, u: x * torch.sigmoid(2 * u), [x, u])


@register_graph_pattern(CallFunction(aten.mul.Tensor, OPENED, 0.5), extra_check=on_cpu, pass_dict=PASSES)
def half_opened(match: Match, u: fx.Node) -> None:
    """0.5 (1 + tanh u) = s."""
    match.replace_by_example(lambda u: torch.sigmoid(2 * u), [u])


@register_graph_pattern(
    CallFunction(aten.sub.Tensor, 1, CallFunction(aten.mul.Tensor, TANH, TANH)), extra_check=on_cpu, pass_dict=PASSES
)
def slope(match: Match, u: fx.Node) -> None:
    """1 - tanh(u)^2 = 4 s (1 - s)."""
    match.replace_by_example(lambda u: 4 * torch.sigmoid(2 * u) * (1 - torch.sigmoid(2 * u)), [u])


@register_graph_pattern(CallFunction(aten.tanh.default, KeywordArg("u")), extra_check=on_cpu, pass_dict=PASSES)
def tanh(match: Match, u: fx.Node) -> None:
    """Any other."""
    match.replace_by_example(lambda u: 2 * torch.sigmoid(2 * u) - 1, [u])


def fused_on_cpu(match: Match) -> bool:
    """Whether oneDNN has the product and its bias in one here."""
    return short_on_cpu(match) and can_lay_out(match.output_node().meta["val"].device, torch.bfloat16)


@register_graph_pattern(
    CallFunction(
        aten.addmm.default,
        KeywordArg("bias"),
        KeywordArg("x"),
        CallFunction(aten.permute.default, KeywordArg("weight"), [1, 0], _users=MULTIPLE),
    ),
    extra_check=fused_on_cpu,
    pass_dict=PASSES,
)
def bias_within(match: Match, bias: fx.Node, x: fx.Node, weight: fx.Node) -> None:
    """x (R, I) by a weight (O, I), and a bias: one product of oneDNN's, which adds it before it rounds.

    torch's product of both fills its output with the bias first, and then reads it again.
    """
    match.replace_by_example(lambda bias, x, weight: torch.ops.ditwright.product(x, weight, bias), [bias, x, weight])


def worth_a_copy(match: Match) -> bool:
    """Whether a gradient gains more than the copy takes: of large operands, one of them wider, where there is AMX."""
    left, right = (match.kwargs[name].meta["val"] for name in ("left", "right"))
    if not short_on_cpu(match) or not all(isinstance(n, int) for n in (*left.shape, *right.shape)):
        return False
    narrow, wide = sorted((left.shape[1], right.shape[1]))
    enough = len(left) >= ROWS and narrow >= SIDE and wide >= RATIO * narrow
    return enough and amx()


@register_graph_pattern(
    CallFunction(
        aten.mm.default,
        CallFunction(aten.permute.default, KeywordArg("left"), [1, 0], _users=MULTIPLE),
        KeywordArg("right"),
    ),
    extra_check=worth_a_copy,
    pass_dict=PASSES,
)
def gradient_along(match: Match, left: fx.Node, right: fx.Node) -> None:
    """The gradient of a weight (O, I), (R, O) turned by (R, I), from a turned copy of the narrower of the two.

    Both lie across, the sum over R against the order of memory. With one that lies along, oneDNN's products in bf16
    take two thirds of the time where there is AMX.
    """

    def product(left: Tensor, right: Tensor) -> Tensor:
        if left.shape[1] < right.shape[1]:
            return turned(left) @ right
        return (turned(right) @ left).t()

    match.replace_by_example(product, [left, right])


class Rewrites(CustomGraphPass):
    """All of them, on each graph of its own, forward or backward, after torch's own rewrites."""

    def __call__(self, graph: fx.Graph) -> None:
        PASSES.apply(graph)
        graph.eliminate_dead_code()

    def uuid(self) -> tuple[bytes, bool, bool]:
        """By which compiled graphs are found again: a cache of them may be another machine's too."""
        cpu = torch.device("cpu")
        return get_hash_for_files((__file__, turning.__file__)), amx(), can_lay_out(cpu, torch.bfloat16)


OPTIONS = {"post_grad_custom_post_pass": Rewrites()}  # of torch.compile
