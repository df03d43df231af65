"""The network: one class for every modality and conditioning."""

import itertools
from dataclasses import replace

import pytest
import torch

from ditwright.errors import UserError
from ditwright.model.build import build
from ditwright.model.config import CONDITIONINGS, DiTConfig, Stage, conditioned
from ditwright.model.dit import DiT
from ditwright.nn.branch import run_all
from ditwright.train.runners import checkpointed

MODALITIES = {  # patch, space
    "audio": ((4,), (20,)),
    "image": ((2, 2), (4, 10)),
    "video": ((1, 2, 2), (3, 4, 6)),
    "voxels": ((2, 2, 2), (4, 2, 6)),
}


def config(conditioning="adaln-zero", patch=(2, 2), **rest):
    small = {"width": 24, "heads": 2, "stages": (Stage(2),), "channels": 3, "out_channels": 6, "num_classes": 5}
    return conditioned(DiTConfig(**small | {"patch": patch, "sincos": tuple(range(len(patch)))} | rest), conditioning)


def lively(config):
    """A network all of whose weights do something, gates and head included."""
    net = DiT(config)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.2)
    return net


def inputs(space=(4, 10), batch=2):
    return torch.randn(batch, 3, *space), 1000 * torch.rand(batch), {"label": torch.arange(batch) % 5}


def lengths(net, x, t, cond):
    """How many tokens of each stream the blocks see."""
    seen = []
    net(x, t, cond, run=lambda blocks, xs, ctx: seen.extend(x.shape[1] for x in xs) or run_all(blocks, xs, ctx))
    return seen


every_conditioning = pytest.mark.parametrize("conditioning", CONDITIONINGS)
every_modality = pytest.mark.parametrize("modality", MODALITIES)


@every_modality
@every_conditioning
def test_one_class_serves_every_modality_and_conditioning(conditioning, modality):
    patch, space = MODALITIES[modality]
    net = lively(config(conditioning, patch))
    for factor in (1, 2):  # any space that the patch divides
        x, t, cond = inputs(tuple(factor * s for s in space))
        assert net(x, t, cond).shape == (2, 6, *x.shape[2:])


@every_conditioning
def test_a_sample_does_not_depend_on_its_batch(conditioning):
    net, (x, t, cond) = lively(config(conditioning)), inputs(batch=3)
    alone = net(x[1:2], t[1:2], {"label": cond["label"][1:2]})
    torch.testing.assert_close(net(x, t, cond)[1:2], alone, atol=1e-4, rtol=1e-4)


@every_conditioning
def test_the_network_hears_the_time_and_the_label(conditioning):
    net, (x, t, cond) = lively(config(conditioning)), inputs()
    out = net(x, t, cond)
    for other in (
        net(x, t + 100, cond),
        net(x, t, {"label": cond["label"] + 1}),
        net(x, t, {"label": cond["label"] * 0 + 5}),
    ):
        assert ((out - other).abs().amax((1, 2, 3)) > 1e-3).all()


@every_conditioning
def test_every_parameter_is_trained(conditioning):
    net, (x, t, cond) = lively(config(conditioning, qk_norm=True)), inputs()
    net(x, t, cond).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


LIGHTNING = {"norm": "rms", "mlp": "swiglu", "mlp_ratio": 8 / 3, "rope": (6, 6), "qk_norm": True}


@every_conditioning
def test_every_parameter_of_lightningdits_options_is_trained(conditioning):
    net, (x, t, cond) = lively(config(conditioning, **LIGHTNING)), inputs()
    net(x, t, cond).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_conditioning
@pytest.mark.parametrize("options", [{}, LIGHTNING], ids=["dit", "lightning"])
def test_a_fresh_network_predicts_zero(conditioning, options):
    out = build(config(conditioning, **options))(*inputs())
    assert (out == 0).all()


@pytest.mark.parametrize(("key", "known"), [("norm", "layer, rms"), ("mlp", "gelu, swiglu")])
def test_an_unknown_norm_or_mlp_is_refused(key, known):
    with pytest.raises(UserError, match=rf"unknown {key} 'other'; known: {known}"):
        DiT(config(**{key: "other"}))


@every_conditioning
def test_only_blocks_of_adaln_zero_start_as_the_identity(conditioning):
    changed = []

    def watch(blocks, xs, ctx):
        out = run_all(blocks, xs, ctx)
        changed.extend(not torch.equal(a, b) for a, b in zip(xs, out, strict=True))
        return out

    build(config(conditioning))(*inputs(), run=watch)
    assert all(changed) == any(changed) == (conditioning != "adaln-zero")


@every_conditioning
def test_condition_tokens_join_the_stream_in_context_alone_and_are_dropped_after_it(conditioning):
    net, (x, t, cond) = lively(config(conditioning)), inputs()
    tokens = 2 * 5
    assert lengths(net, x, t, cond) == ([tokens, 2] if conditioning == "in-context" else [tokens])
    head_input = []
    net.head.register_forward_pre_hook(lambda head, args: head_input.append(args[0].shape[1]))
    net(x, t, cond)
    assert head_input == [tokens]


def test_without_classes_the_network_is_unconditional():
    net, (x, t, _) = lively(config("in-context", num_classes=0)), inputs()
    assert not net.vectors
    assert net(x, t).shape == (2, 6, 4, 10)
    assert lengths(net, x, t, None) == [10, 1]


@pytest.mark.parametrize("cond", [None, {}, {"text": torch.zeros(2)}])
def test_a_missing_condition_is_named(cond):
    with pytest.raises(UserError, match=r"conditioned on \['label'\]; pass cond=\{'label': tensor\}"):
        build(config())(*inputs()[:2], cond)


@pytest.mark.parametrize(
    ("positions", "sees_order"),
    [({"sincos": ()}, False), ({}, True), ({"sincos": (), "rope": (4, 8)}, True)],
    ids=["none", "sincos", "rope"],
)
def test_only_positions_tell_the_order_of_patches(positions, sees_order):
    net, (x, t, cond) = lively(config(**positions)), inputs()

    def swap(x):  # the first column of patches and the third
        return x[..., [4, 5, 2, 3, 0, 1, 6, 7, 8, 9]]

    assert torch.allclose(net(swap(x), t, cond), swap(net(x, t, cond)), atol=1e-4) != sees_order


def test_a_runner_decides_which_blocks_run():
    net, (x, t, cond) = lively(config()), inputs()
    first = net(x, t, cond, run=lambda blocks, xs, ctx: run_all(blocks[:1], xs, ctx))
    shorter = lively(config(stages=(Stage(1),)))
    shorter.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(first, shorter(x, t, cond))
    assert not torch.equal(first, net(x, t, cond))


@every_conditioning
def test_a_runner_knows_the_condition_and_the_time(conditioning):
    net, (x, t, cond), seen = lively(config(conditioning)), inputs(), []
    net(x, t, cond, run=lambda blocks, xs, ctx: seen.append(ctx) or xs)
    (ctx,) = seen
    torch.testing.assert_close(ctx.vec, net.time(t) + net.vectors["label"](cond["label"]))
    assert torch.equal(ctx.t, t)
    assert (ctx.cross is not None) == (conditioning == "cross")


@every_conditioning
def test_checkpointed_blocks_give_the_same_gradients(conditioning):
    net, (x, t, cond) = lively(config(conditioning)), inputs()
    calls = []
    net.blocks[0].register_forward_pre_hook(lambda *_: calls.append(0))
    grads = []
    for run in (run_all, checkpointed):
        grads.append(torch.autograd.grad(net(x, t, cond, run=run).square().sum(), list(net.parameters())))
    assert len(calls) == 1 + 2  # once, then once forth and once again on the way back
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_weights_follow_from_the_seed_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    a, b, c = (build(config(), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["patchify.proj.weight"], c["patchify.proj.weight"])


def test_names_of_weights_read():
    names = set(DiT(config("cross", qk_norm=True)).state_dict())
    assert {
        "patchify.proj.weight",
        "time.mlp.0.weight",
        "vectors.label.table.weight",
        "blocks.1.attn.x.qkv.weight",
        "blocks.1.attn.x.q_norm.weight",
        "blocks.0.cross.kv.bias",
        "blocks.0.mlp.x.fc1.weight",
        "head.proj.weight",
    } <= names
    assert not any("pos" in name for name in names)  # tables are computed


def test_stages_may_differ():
    stages = (Stage(1), Stage(2, mod="plain", cross=True))
    net = lively(replace(config(), stages=stages, context="cross"))
    assert [list(block) for block in net.blocks] == [["attn", "mlp"], *[["attn", "cross", "mlp"]] * 2]
    assert net.config.depth == 3
    assert net(*inputs()).shape == (2, 6, 4, 10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "positions", [{}, {"sincos": (), "rope": (4, 8)}, LIGHTNING], ids=["sincos", "rope", "lightning"]
)
@every_conditioning
def test_numbers_of_less_or_more_precision_agree(conditioning, positions, training):
    net, (x, t, cond) = lively(config(conditioning, **positions)), inputs()
    with torch.set_grad_enabled(training):
        out = net(x, t, cond)
        with torch.autocast("cpu", torch.bfloat16):
            low = net(x, t, cond)
        high = net.double()(x.double(), t, cond)
    assert (low - out).norm() < 0.03 * out.norm()
    assert (high - out).norm() < 1e-5 * out.norm()


def test_norms_of_queries_and_keys_train_in_less_precision_without_a_warning():
    net, (x, t, cond) = lively(config(qk_norm=True)), inputs()
    out = net(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, t, cond)
    assert (low - out).norm() < 0.03 * out.norm()


@every_conditioning
@pytest.mark.parametrize("options", [{}, LIGHTNING], ids=["dit", "lightning"])
def test_all_weights_may_be_of_less_precision(conditioning, options):
    net, (x, t, cond) = lively(config(conditioning, **options)), inputs()
    out, low = net(x, t, cond), net.bfloat16()(x.bfloat16(), t, cond)
    assert low.dtype == torch.bfloat16
    assert (low - out).norm() < 0.05 * out.norm()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"heads": 5}, "width 24, heads 5"),
        ({"stages": ()}, "at least one stage"),
        ({"patch": ()}, "patch must be"),
        ({"patch": (0, 2)}, "patch must be"),
        ({"channels": 0}, "channels and out_channels must be at least 1"),
        ({"num_classes": -1}, "num_classes at least 0"),
        ({"sincos": (0,)}, "sincos must name each of the 2 axes once"),
        ({"sincos": (1, 1)}, "sincos must name each of the 2 axes once"),
        ({"width": 22, "heads": 2}, "share the width 22 evenly"),
        ({"rope": (6, 4)}, "even share of the 12 channels"),
        ({"rope": (5, 7)}, "even share of the 12 channels"),
        ({"rope": (12,)}, "even share of the 12 channels"),
        ({"context": "cross"}, "set both or neither"),
        ({"stages": (Stage(1, cross=True),)}, "set both or neither"),
    ],
    ids=str,
)
def test_impossible_networks_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        replace(config(), **bad)


def test_impossible_stages_and_conditionings_are_refused():
    with pytest.raises(UserError, match="depth of at least 1, not 0"):
        Stage(0)
    with pytest.raises(UserError, match=r"unknown conditioning 'adaln_zero'.*did you mean 'adaln-zero'"):
        conditioned(config(), "adaln_zero")


@pytest.mark.parametrize(("first", "second"), list(itertools.product(CONDITIONINGS, repeat=2)))
def test_the_last_conditioning_chosen_counts(first, second):
    assert conditioned(config(first), second) == config(second)


@pytest.mark.parametrize("sincos", [(1, 0), ()])
def test_the_stream_keeps_the_precision_of_the_weights_under_autocast(sincos):
    net, seen = build(DiTConfig(width=32, heads=2, stages=(Stage(2),), sincos=sincos)), []
    for block in net.blocks:
        block.register_forward_hook(lambda block, args, out: seen.append(out[0].dtype))
    x, t, label = torch.randn(1, 4, 8, 8), torch.ones(1), {"label": torch.zeros(1, dtype=torch.long)}
    with torch.autocast("cpu", torch.bfloat16):
        net(x, t, label)
    assert seen == [torch.float32] * 2
    net.bfloat16()(x.bfloat16(), t, label)
    assert seen[2:] == [torch.bfloat16] * 2
