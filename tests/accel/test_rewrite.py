"""What compiled graphs compute in another way: the same numbers, and nothing left of the old way."""

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from ditwright.accel.compiling import can_compile, compile_blocks
from ditwright.accel.rewrite import TanhByExp


def gelu(x):
    return F.gelu(x, approximate="tanh")


class Gelu(torch.nn.Module):
    """torch's own layers are not compiled by themselves."""

    def forward(self, x):
        return gelu(x)


def graph_of(work, x):
    return make_fx(work, decomposition_table=select_decomp_table(), tracing_mode="fake")(x)


@pytest.mark.parametrize("work", [gelu, torch.tanh])
def test_tanh_goes_and_the_numbers_stay(work):
    x = torch.cat((torch.linspace(-12, 12, 4801), torch.tensor([-1e30, -0.0, 0.0, 1e-6, 1e30])))
    made = graph_of(work, x)
    assert "tanh" in made.code
    TanhByExp()(made.graph)
    made.recompile()
    assert "tanh" not in made.code
    limit = 2e-7 * x.abs().clamp(min=1)  # a GELU multiplies it by x
    assert ((made(x) - work(x)).abs() <= limit).all()


def test_a_graph_of_another_device_stays_as_it_is():
    made = graph_of(torch.tanh, torch.zeros(3, device="meta"))
    before = made.code
    TanhByExp()(made.graph)
    made.recompile()
    assert made.code == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_compiled_blocks_have_it_forward_and_backward():
    block, x = Gelu(), torch.linspace(-6, 6, 64, requires_grad=True)
    compile_blocks([block])

    def both():
        y = block(x)
        return y, torch.autograd.grad(y.sum(), x)[0]

    with fresh_cache():  # what was compiled before has no code to show
        (y, slope), codes = run_and_get_code(both)
    want = gelu(x)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, torch.autograd.grad(want.sum(), x)[0], rtol=1e-5, atol=1e-6)
    assert len(codes) == 2
    assert not any("tanh()" in code for code in codes)
