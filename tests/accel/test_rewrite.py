"""What compiled graphs compute in another way: the same numbers, and nothing left of the old way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from ditwright.accel.compiling import can_compile, compile_blocks
from ditwright.accel.linear import can_lay_out
from ditwright.accel.rewrite import Rewrites
from ditwright.accel.turned import turned
from small_networks import off

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler


def gelu(x):
    return F.gelu(x, approximate="tanh")


def slope(x):
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="tanh")


class Mlp(torch.nn.Module):
    """torch's own layers are not compiled by themselves."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(gelu(self.fc1(x)))


def graph_of(work, *xs):
    return make_fx(work, decomposition_table=select_decomp_table(), tracing_mode="fake")(*xs)


def rewritten(how, work, *xs):
    made = graph_of(work, *xs)
    made.graph.eliminate_dead_code()
    made.recompile()
    before = made.code
    how(made.graph)
    made.recompile()
    return made, before


def gradients(net, x):
    """Of all weights, and the result, in bf16 as training has it."""
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    return {"y": y.detach()} | dict(
        zip(dict(net.named_parameters()), torch.autograd.grad(y.float().sum(), net.parameters()), strict=True)
    )


@pytest.mark.parametrize("work", [gelu, slope, torch.tanh, lambda x: 0.5 * (1 + x.tanh()), lambda x: 1 - x.tanh() ** 2])
def test_tanh_goes_and_the_numbers_stay(work):
    x = torch.cat((torch.linspace(-12, 12, 4801), torch.tensor([-1e3, -0.0, 0.0, 1e-6, 1e3])))
    made, before = rewritten(Rewrites(), work, x)
    assert "tanh" in before
    assert "tanh" not in made.code
    limit = 2e-7 * x.abs().clamp(min=10)  # a GELU multiplies it by x, its slope by more
    assert ((made(x) - work(x.double())).abs() <= limit).all()


def test_a_gelu_is_one_product_with_one_sigmoid():
    made, _ = rewritten(Rewrites(), gelu, torch.linspace(-3, 3, 7))
    assert made.code.count("sigmoid.default") == 1
    assert "add.Tensor(sigmoid" not in made.code
    assert "sub.Tensor" not in made.code


short = pytest.mark.skipif(not can_lay_out(torch.device("cpu"), torch.bfloat16), reason="needs oneDNN in bf16")


@short
@pytest.mark.parametrize("away", [0.0, 1.0], ids=["any bias", "a bias that takes the mean away"])
def test_a_bias_is_added_within_its_product_in_bf16_and_loses_nothing(away):
    torch.manual_seed(0)
    x, weight = (torch.randn(64, 48) + 3).bfloat16(), (torch.randn(40, 48) + 1).bfloat16()
    bias = (torch.randn(40) - away * (x.float() @ weight.float().t()).mean(0)).bfloat16()

    def linear(bias, x, weight):
        return torch.addmm(bias, x, weight.t())

    made, before = rewritten(Rewrites(), linear, bias, x, weight)
    assert "addmm" in before
    assert "addmm" not in made.code
    want = linear(*(a.double() for a in (bias, x, weight)))
    assert off(made(bias, x, weight), want) <= 1.01 * off(linear(bias, x, weight), want)
    kept, before = rewritten(Rewrites(), linear, bias.float(), x.float(), weight.float())
    assert kept.code == before


@pytest.mark.parametrize(("left", "right"), [(384, 1152), (1152, 384)], ids=["output narrower", "input narrower"])
def test_the_gradient_of_a_weight_takes_a_turned_copy_of_the_narrower_operand(left, right, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    a, b = torch.randn(2048, left).bfloat16(), torch.randn(2048, right).bfloat16()
    made, _ = rewritten(Rewrites(), lambda a, b: a.t() @ b, a, b)
    copied = next(node for node in made.graph.nodes if node.target is torch.ops.ditwright.turned.default)
    assert copied.args[0].meta["val"].shape == (2048, 384)
    torch.testing.assert_close(made(a, b), a.t() @ b, rtol=2e-2, atol=0.5)  # of sums of 2,048


@pytest.mark.parametrize(
    ("rows", "left", "right", "amx"),
    [(2047, 384, 1152, True), (2048, 383, 1152, True), (2048, 384, 1151, True), (2048, 384, 1152, False)],
    ids=["few rows", "narrow", "not wide", "no AMX"],
)
def test_where_a_copy_does_not_pay_there_is_none(rows, left, right, amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    a, b = torch.randn(rows, left).bfloat16(), torch.randn(rows, right).bfloat16()
    made, before = rewritten(Rewrites(), lambda a, b: a.t() @ b, a, b)
    assert made.code == before


def test_a_graph_of_another_device_stays_as_it_is():
    bias, x, weight = (torch.zeros(*shape, dtype=torch.bfloat16, device="meta") for shape in ((4,), (2, 3), (4, 3)))
    made, before = rewritten(Rewrites(), lambda b, x, w: torch.addmm(b, x, w.t()).tanh(), bias, x, weight)
    assert made.code == before


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
class TestCompiled:
    """By torch.compile, forward and backward."""

    @pytest.fixture
    def fresh(self):
        torch._dynamo.reset()
        with fresh_cache():  # what was compiled before has no code to show
            yield
        torch._dynamo.reset()

    def test_blocks_have_it_all(self, monkeypatch):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        torch.manual_seed(0)
        x, plain = torch.randn(2, 1024, 384), Mlp(384, 1152)
        block = copy.deepcopy(plain)
        compile_blocks([block])
        got, codes = run_and_get_code(gradients, block, x)
        want = gradients(plain, x)
        for name, one in want.items():
            assert (got[name] - one).abs().max() < 2e-2 * one.abs().max(), name
        forward, backward = codes[:2]
        fused = can_lay_out(torch.device("cpu"), torch.bfloat16)
        assert not any("tanh()" in code for code in codes)
        assert any("extern_kernels.addmm(" in code for code in codes) != fused
        assert forward.count("ditwright.product.default(") == 2 * fused
        assert backward.count("ditwright.turned.default(") == 2

    def test_a_turned_copy(self):
        x = torch.randn(70, 33).bfloat16()
        assert torch.equal(turned(x), x.t())
        assert turned(x).stride(1) == 1
        opcheck(torch.ops.ditwright.turned.default, (x,))
