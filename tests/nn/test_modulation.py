"""How blocks hear the condition."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ditwright.nn.modulation import MODULATIONS, AdaLN, AdaLNZero, Plain
from ditwright.nn.norm import RMSNorm, rms_norm
from ditwright.nn.single import AdaLNSingle, Bare, SharedVectors, Table

WIDTH = 6


def inputs(name=""):
    """x, and the condition as a modulation hears it: one vector, or adaLN-single's for two norms."""
    return torch.randn(2, 5, WIDTH), torch.randn(2, 2, 3, WIDTH) if name == "adaln_single" else torch.randn(2, WIDTH)


def silent(mod):
    """The modulation with its regression at zero."""
    for weights in [mod.table] if isinstance(mod, AdaLNSingle) else mod.lin.parameters():
        nn.init.zeros_(weights)
    return mod


@pytest.mark.parametrize("name", MODULATIONS)
def test_the_shapes_of_every_modulation_are_those_of_its_input(name):
    x, vec = inputs(name)
    h, gate = MODULATIONS[name](WIDTH)(x, vec)
    assert h.shape == x.shape
    assert (gate * h).shape == x.shape


@pytest.mark.parametrize("name", MODULATIONS)
def test_the_norm_is_the_one_that_was_given(name):
    """Without weights of its own under a modulation, unless it is of a kind that always has them."""
    x, vec = inputs(name)
    vec = vec * (name != "adaln_single")
    plain, rms = MODULATIONS[name](WIDTH), MODULATIONS[name](WIDTH, partial(rms_norm, eps=0.5))
    assert isinstance(rms.norm, RMSNorm)
    assert {p for p, _ in plain.norm.named_parameters()} == ({"weight", "bias"} if name == "plain" else set())
    assert {p for p, _ in rms.norm.named_parameters()} == {"weight"}
    if name != "plain":
        silent(rms)
    torch.testing.assert_close(rms(x, vec)[0], x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt())


@pytest.mark.parametrize("mod", [Plain(WIDTH), silent(AdaLN(WIDTH)), silent(AdaLNZero(WIDTH))])
def test_at_the_start_every_modulation_is_a_layer_norm(mod):
    x, vec = inputs()
    torch.testing.assert_close(mod(x, vec)[0], F.layer_norm(x, (WIDTH,), eps=1e-6))


def test_plain_norms_do_not_hear_the_condition_and_the_others_do():
    for name, mod in ((name, make(WIDTH)) for name, make in MODULATIONS.items()):
        x, vec = inputs(name)
        assert torch.equal(mod(x, vec)[0], mod(x, -vec)[0]) == (name == "plain")


def test_the_gate_of_adaln_zero_starts_shut_and_the_others_have_none():
    x, vec = inputs()
    assert (silent(AdaLNZero(WIDTH))(x, vec)[1] == 0).all()
    assert Plain(WIDTH)(x, vec)[1] == AdaLN(WIDTH)(x, vec)[1] == 1.0


@pytest.mark.parametrize(("make", "parts"), [(AdaLN, 2), (AdaLNZero, 3)])
def test_the_regression_gives_shift_then_scale_then_gate(make, parts):
    mod, (x, vec) = silent(make(WIDTH)), inputs()
    numbers = [5.0, 7.0, 11.0][:parts]  # shift, scale, gate
    with torch.no_grad():
        mod.lin.bias.copy_(torch.tensor(numbers).repeat_interleave(WIDTH))
    h, gate = mod(x, vec)
    torch.testing.assert_close(h, F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + 7) + 5)
    assert torch.as_tensor(gate).eq(numbers[2] if parts == 3 else 1).all()


def test_each_sample_is_modulated_by_its_own_condition():
    mod, (x, vec) = AdaLNZero(WIDTH), inputs()
    h, gate = mod(x, vec)
    for n in range(2):
        alone_h, alone_gate = mod(x[n : n + 1], vec[n : n + 1])
        torch.testing.assert_close(h[n : n + 1], alone_h)
        torch.testing.assert_close(gate[n : n + 1], alone_gate)


def test_adaln_single_is_adaln_zero_whose_regression_is_shared():
    """Chen et al. 2023, Sec. 2.3: E in a block is what the shared regression gives, plus the block's own table."""
    x, vec = inputs()
    shared, own = SharedVectors(WIDTH), AdaLNZero(WIDTH)
    for slot in (0, 1):
        single = MODULATIONS["adaln_single"](WIDTH, slot=slot)
        nn.init.normal_(single.table)
        rows = slice(3 * WIDTH * slot, 3 * WIDTH * (slot + 1))
        own.lin.weight.data = shared.lin.weight[rows]
        own.lin.bias.data = shared.lin.bias[rows] + single.table.flatten()
        for ours, theirs in zip(single(x, shared(vec)), own(x, vec), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_table_is_the_condition_and_two_rows():
    x, vec = inputs()
    mod = Table(WIDTH)
    nn.init.normal_(mod.table)
    shift, scale = mod.table[0] + vec, mod.table[1] + vec
    h = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(mod(x, vec)[0], h)
    assert Bare()(x, vec) == (x, 1.0)
