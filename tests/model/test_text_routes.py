"""Every way in which the network reads text: what it hears, what it must not hear, and what that costs."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ditwright.errors import UserError
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Positions, Stage
from ditwright.model.dit import DiT
from ditwright.model.flops import macs
from ditwright.nn import attention
from ditwright.nn.branch import run_all

SMALL = DiTConfig(24, 2, (Stage(2),), channels=3, out_channels=3, num_classes=0, text_width=10, context="stream")
ROUTES = {
    "pixart": replace(
        SMALL,
        stages=(Stage(2, mod="adaln_single", cross=True, cross_norm=False),),
        context="cross",
        text_mlp=True,
        positions=Positions(scale=2.0, base=4),
    ),
    "sd3": replace(
        SMALL,
        stages=(Stage(1, lanes="own", dual=True), Stage(1, lanes="own"), Stage(1, lanes="own", read_only=True)),
        pooled_width=6,
        qk_norm=True,
        positions=Positions(largest=12),
    ),
    "flux": replace(
        SMALL,
        stages=(Stage(2, lanes="own"), Stage(2, parallel=True)),
        pooled_width=6,
        guidance=True,
        sincos=(),
        rope=(4, 4, 4),
        qk_norm=True,
    ),
    "cross": replace(SMALL, stages=(Stage(2, cross=True),), context="cross", num_classes=5),
    "bare-cross": replace(SMALL, stages=(Stage(2, cross=True, cross_norm=False),), context="cross"),
    "sizes": replace(
        SMALL,
        stages=(Stage(2, mod="adaln_single", cross=True, cross_norm=False),),
        context="cross",
        sizes=True,
        text_mlp=True,
    ),
    "shared": replace(SMALL, stages=(Stage(1), Stage(1, mod="plain"))),
    "dual-read-only": replace(SMALL, stages=(Stage(1, lanes="own", dual=True, read_only=True),), pooled_width=6),
}
SPACE = (4, 10)
every_route = pytest.mark.parametrize("route", ROUTES)


def lively(config):
    """A network all of whose weights do something, gates and head included."""
    net = DiT(config).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.2)
    return net


def inputs(config, tokens=5, batch=2):
    """x, t, and every condition that the network asks for."""
    known = {
        "label": torch.arange(batch),
        "pooled": torch.randn(batch, config.pooled_width),
        "guidance": torch.tensor([1.0, 4.0])[:batch],
        "size": torch.tensor([[64.0, 160.0, 0.4], [32.0, 32.0, 1.0]])[:batch],
    }
    asked = {"label": config.num_classes, "pooled": config.pooled_width}
    asked |= {"guidance": config.guidance, "size": config.sizes}
    cond = {"text": torch.randn(batch, tokens, config.text_width)}
    cond |= {name: known[name] for name, wanted in asked.items() if wanted}
    return torch.randn(batch, config.channels, *SPACE), 1000 * torch.rand(batch), cond


def differ(a, b):
    """Whether every sample is another one, clearly."""
    return bool(((a - b).abs().amax((1, 2, 3)) > 1e-3 * a.abs().amax((1, 2, 3))).all())


def near(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * b.abs().max().item())


@every_route
@pytest.mark.parametrize("tokens", [1, 5])
def test_cost_is_half_of_what_torch_counts(route, tokens):
    config = ROUTES[route]
    x, t, cond = inputs(config, tokens, batch=1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        DiT(config)(x, t, cond)
    assert 2 * sum(macs(config, SPACE, tokens).values()) == counter.get_total_flops()


@every_route
@torch.no_grad()
def test_padding_that_is_masked_changes_nothing_and_without_the_mask_it_does(route):
    net = lively(ROUTES[route])
    x, t, cond = inputs(net.config)
    alone = net(x, t, cond)
    mask = (torch.arange(8) < 5).expand(2, -1)
    for padding in (torch.zeros(2, 3, 10), 5 * torch.randn(2, 3, 10)):
        padded = cond | {"text": torch.cat((cond["text"], padding), 1)}
        near(net(x, t, padded | {"text_mask": mask}), alone)
        assert differ(net(x, t, padded), alone)


@every_route
@torch.no_grad()
def test_texts_of_different_length_in_one_batch_are_heard_as_alone(route):
    net = lively(ROUTES[route])
    x, t, cond = inputs(net.config)
    lengths = torch.tensor([2, 5])
    out = net(x, t, cond | {"text_mask": torch.arange(5) < lengths[:, None]})
    for n, length in enumerate(lengths):
        one = {name: value[n : n + 1] for name, value in cond.items()}
        near(out[n : n + 1], net(x[n : n + 1], t[n : n + 1], one | {"text": one["text"][:, :length]}))


@every_route
@torch.no_grad()
def test_padding_may_stand_anywhere(route):
    net = lively(ROUTES[route])
    x, t, cond = inputs(net.config)
    mask = torch.tensor([[False, True, True, False, True]]).expand(2, -1)
    short = net(x, t, cond | {"text": cond["text"][:, [1, 2, 4]]})
    near(net(x, t, cond | {"text_mask": mask}), short)
    near(net(x, t, cond | {"text_mask": mask.float()}), short)  # as tokenizers give it, in any number format


def kernels(monkeypatch):
    """What the kernel is given for a mask, call by call."""
    seen = []

    def spy(q, k, v, attn_mask=None):
        seen.append(attn_mask)
        return kernel(q, k, v, attn_mask=attn_mask)

    kernel = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    return seen


@every_route
@torch.no_grad()
def test_without_a_mask_no_mask_is_made(route, monkeypatch):
    """It would cost the fast kernel."""
    net, seen = lively(ROUTES[route]), kernels(monkeypatch)
    x, t, cond = inputs(net.config)
    net(x, t, cond)
    calls = len(seen)
    assert calls >= net.config.depth
    assert seen == [None] * calls
    net(x, t, cond | {"text_mask": torch.ones(2, 5, dtype=torch.bool)})
    assert any(mask is not None for mask in seen[calls:])
    assert all(mask.dtype == torch.bool for mask in seen[calls:] if mask is not None)


@every_route
@torch.no_grad()
def test_every_condition_is_heard(route):
    net = lively(ROUTES[route])
    x, t, cond = inputs(net.config)
    out = net(x, t, cond)
    for name, value in cond.items():
        other = (value + 1) % 5 if name == "label" else value + 1
        assert differ(net(x, t, cond | {name: other}), out), name
    one = cond["text"].clone()
    one[:, 3] += 1  # one word of five
    assert differ(net(x, t, cond | {"text": one}), out)
    assert differ(net(x, t + 100, cond), out)


@every_route
@torch.no_grad()
def test_the_order_of_the_text_is_the_encoders_affair(route):
    """All of its tokens stand at the origin: the order of states is not heard, what they say of it is."""
    net = lively(ROUTES[route])
    x, t, cond = inputs(net.config)
    near(net(x, t, cond | {"text": cond["text"].flip(1)}), net(x, t, cond))


@every_route
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(route):
    net = lively(ROUTES[route])
    x, t, cond = inputs(net.config)
    alone = net(x[1:], t[1:], {name: value[1:] for name, value in cond.items()})
    near(net(x, t, cond)[1:], alone)


@every_route
def test_every_parameter_is_trained(route):
    net = lively(ROUTES[route])
    net(*inputs(net.config)).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if not p.grad.any()]  # a gradient of zeros: DDP waits for all
    assert idle == ["blocks.2.attn.text.q_norm.weight"] * (route == "sd3")  # nobody asks for what the last text says


@every_route
@torch.no_grad()
def test_a_fresh_network_predicts_zero_and_its_gated_branches_are_silent(route):
    net, changed = build(ROUTES[route]), []
    x, t, cond = inputs(net.config)

    def watch(blocks, xs, ctx):
        for block in blocks:
            for name, branch in block.items():
                found = branch(xs, ctx)
                changed.extend(name for delta in found if isinstance(delta, torch.Tensor) and delta.any())
        return run_all(blocks, xs, ctx)

    assert (net(x, t, cond, run=watch) == 0).all()
    if route == "shared":
        assert set(changed) == {"attn", "mlp"}  # of its plain stage
    elif net.config.stages[0].mod == "adaln_zero":
        assert changed == []
    else:
        assert set(changed) <= {"attn", "mlp"}  # gates start small there, by a table, and cross-attention at zero


@every_route
@torch.no_grad()
def test_pictures_of_any_size_are_taken(route):
    net = lively(ROUTES[route])
    _, t, cond = inputs(net.config)
    for space in ((2, 2), (8, 4), (12, 12)):
        assert net(torch.randn(2, 3, *space), t, cond).shape == (2, 3, *space)


@every_route
def test_a_condition_that_is_missing_is_named(route):
    net = build(ROUTES[route])
    x, t, cond = inputs(net.config)
    for name in cond:
        without = {key: value for key, value in cond.items() if key != name}
        with pytest.raises(UserError, match=rf"conditioned on \[.*'{name}'.*\]; pass cond=\{{'{name}': tensor\}}"):
            net(x, t, without)
    with pytest.raises(UserError, match="conditioned on"):
        net(x, t)


@every_route
@torch.no_grad()
def test_all_weights_may_be_of_less_precision(route):
    net = lively(ROUTES[route])
    x, t, cond = inputs(net.config)
    mask = {"text_mask": torch.arange(5) < torch.tensor([[3], [5]])}
    out = net(x, t, cond | mask)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, t, cond | mask)
    assert (low - out).norm() < 0.05 * out.norm()
    lower = net.bfloat16()(x.bfloat16(), t, cond | mask)
    assert lower.dtype == torch.bfloat16
    assert (lower - out).norm() < 0.1 * out.norm()


@torch.no_grad()
def test_rotations_tell_the_places_of_patches_whatever_axis_is_empty():
    """Flux's first axis: channels of a head that every token leaves as they are."""
    net = lively(ROUTES["flux"])
    x, t, cond = inputs(net.config)
    swapped = x[..., [4, 5, 2, 3, 0, 1, 6, 7, 8, 9]]
    assert not torch.allclose(net(swapped, t, cond)[..., [4, 5, 2, 3, 0, 1, 6, 7, 8, 9]], net(x, t, cond), atol=1e-3)
    plain = lively(replace(net.config, rope=()))
    out = plain(swapped, t, cond)[..., [4, 5, 2, 3, 0, 1, 6, 7, 8, 9]]
    torch.testing.assert_close(out, plain(x, t, cond), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"parallel": True, "cross": True}, "takes no cross, dual or adaln_single"),
        ({"parallel": True, "dual": True}, "takes no cross, dual or adaln_single"),
        ({"parallel": True, "lanes": "own"}, "one branch with shared lanes"),
        ({"parallel": True, "mod": "adaln_single"}, "takes no cross, dual or adaln_single"),
        ({"read_only": True}, "read_only where its lanes are own"),
    ],
    ids=str,
)
def test_impossible_stages_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        Stage(1, **bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"stages": (Stage(1, lanes="own"),), "context": "none", "text_width": 0}, "own need context 'stream'"),
        ({"stages": (Stage(1, lanes="own", cross=True),), "context": "cross"}, "lanes are own need context 'stream'"),
        ({"stages": (Stage(1, mod="adaln_single"), Stage(1))}, "adaln_single is of all stages or of none"),
        ({"stages": (Stage(2, mod="plain"),)}, "hears the time by its norms; plain stages alone do not hear it"),
        ({"text_width": -1}, "0 or more"),
        ({"pooled_width": -1}, "0 or more"),
        ({"context": "none"}, "text_width goes with context 'stream' or 'cross'"),
        ({"width": 32, "sizes": True}, "sizes take a third of the width each; got width 32"),
        ({"context": "cross"}, "set both or neither"),
        ({"stages": (Stage(1, cross=True),)}, "set both or neither"),
        ({"rope": (4, 4)}, "even share of the 12 channels"),
        ({"rope": (12,)}, "even share of the 12 channels"),
        ({"rope": (1, 5, 6)}, "even share of the 12 channels"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_networks_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **bad)
