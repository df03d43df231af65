"""The attention seam: the formula, its two ways to be computed, and masks."""

import pytest
import torch

from ditwright.nn import attention
from ditwright.nn.attention import SHORT, attend, by_products

LENGTHS = [(5, 7), (6, SHORT), (3, SHORT + 1)]  # queries, keys: on both sides of the choice between the ways


def inputs(queries, keys, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, n, 8, generator=g) for n in (queries, keys, keys))


def formula(q, k, v, mask=None):
    """Attention, one query at a time."""
    out = torch.zeros_like(q)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        keep = slice(None) if mask is None else mask[b]
        weights = ((k[b, h][keep] @ q[b, h, i]) / q.shape[-1] ** 0.5).softmax(0)
        out[b, h, i] = weights @ v[b, h][keep]
    return out


def both_ways(q, k, v, mask=None):
    """By plain products and by the fused kernel."""
    return by_products(q, k, v, None if mask is None else mask[:, None, None]), attend(q, k, v, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_both_ways_are_the_formula(queries, keys, masked):
    q, k, v = inputs(queries, keys)
    mask = torch.rand(2, keys, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    want = formula(q, k, v, mask)
    for out in both_ways(q, k, v, mask):
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_padding_keys_do_not_change_the_result(queries, keys):
    q, k, v = inputs(queries, keys)
    junk_k, junk_v = 100 * torch.randn(2, 3, 4, 8), 100 * torch.randn(2, 3, 4, 8)
    mask = torch.arange(keys + 4).expand(2, -1) < keys
    short = both_ways(q, k, v)
    padded = both_ways(q, torch.cat((k, junk_k), 2), torch.cat((v, junk_v), 2), mask)
    for a, b in zip(short, padded, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_plain_products_are_those_of_the_fused_kernel(masked):
    q, k, v = (x.requires_grad_() for x in inputs(5, 7))
    mask = torch.arange(7).expand(2, -1) < 4 if masked else None
    keys = None if mask is None else mask[:, None, None]
    ours = torch.autograd.grad(by_products(q, k, v, keys).square().sum(), (q, k, v))
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    for a, b in zip(ours, torch.autograd.grad(fused.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)
    if masked:
        assert ours[2][:, :, 4:].abs().max() == 0  # what is masked learns nothing


def test_a_query_without_any_key_reads_nothing_either_way():
    mask = torch.tensor([[True] * 7, [False] * 7])
    for out in both_ways(*inputs(5, 7), mask):
        assert (out[1] == 0).all()


@pytest.mark.parametrize(
    ("dtype", "keys", "trains"),
    [
        (torch.bfloat16, SHORT, True),
        (torch.bfloat16, SHORT + 1, True),
        (torch.bfloat16, 7, False),
        (torch.float32, 7, True),
    ],
)
def test_plain_products_are_for_training_short_bf16_sequences(dtype, keys, trains, monkeypatch):
    asked = []
    monkeypatch.setattr(attention, "by_products", lambda q, k, v, keys: asked.append(1) or q)
    q, k, v = (x.to(dtype) for x in inputs(5, keys))
    attend(q.requires_grad_(trains), k, v)
    assert bool(asked) == (dtype == torch.bfloat16 and keys <= SHORT and trains)


def test_the_result_keeps_the_number_format_while_training():
    q, k, v = (x.bfloat16() for x in inputs(5, 7))
    trained, sampled = attend(q.requires_grad_(), k, v).detach(), attend(q.detach(), k, v)
    assert trained.dtype == sampled.dtype == torch.bfloat16
    torch.testing.assert_close(trained.float(), formula(q.float(), k.float(), v.float()), atol=0.03, rtol=0)
