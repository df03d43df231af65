"""Norms."""

import pytest
import torch

from ditwright.nn.norm import NORMS, RMSNorm


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_takes_what_a_modulation_gives(name):
    norm, x = NORMS[name](6, affine=True, eps=0.1), torch.randn(2, 3, 6)
    assert norm.eps == 0.1
    assert norm(x).shape == x.shape
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
    assert (norm(x)[..., 0] == (norm.bias[0] if name == "layer" else 0)).all()


def test_the_root_mean_square_norm_is_its_formula():
    norm, x = RMSNorm(6, eps=1e-6), 5 * torch.randn(4, 6) + 3
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(4))
    torch.testing.assert_close(norm(7 * x), norm(x))  # blind to scale
    assert not torch.allclose(norm(x + 1), norm(x), atol=1e-2)  # but not to the mean


def test_the_root_mean_square_norm_computes_in_the_precision_of_its_weight():
    norm, x = RMSNorm(64, eps=1e-6), torch.randn(3, 64)
    low = x.bfloat16()
    assert norm(low).dtype == torch.bfloat16
    assert torch.equal(norm(low), norm(low.float()).bfloat16())
