"""The engine of conversion tables, and the laws that every table keeps."""

import math
from dataclasses import replace

import pytest
import torch
from checkpoints import flux, flux_stock, lightning, original, pixart, pixart_stock, same, sd3, sd3_stock, sit, stock

from ditwright.convert import FAMILIES, rules
from ditwright.convert.rules import DRIFT, Layout, Rule, Way, copies, halves, joined, kernel, places, spread, stored
from ditwright.convert.source import source_of
from ditwright.errors import UserError
from ditwright.model.config import DiTConfig, Stage

MODEL = DiTConfig(width=4, heads=2, stages=(Stage(3),), patch=(2, 2), channels=3, out_channels=3)
LAYOUT = Layout(MODEL, side=2)
FLUX = replace(MODEL, width=32, num_classes=0, context="stream", text_width=5, pooled_width=7, guidance=True)
FLUX = replace(FLUX, sincos=(), rope=(4, 6, 6), qk_norm=True)
PIXART = replace(MODEL, width=12, num_classes=0, text_width=5, text_mlp=True, sizes=True, context="cross",
                 stages=(Stage(1, "adaln_single", cross=True),))  # fmt: skip
SD3 = replace(MODEL, num_classes=0, context="stream", text_width=5, pooled_width=7, qk_norm=True)


def test_templates_stand_for_blocks_and_for_weight_and_bias():
    rule = Rule(("a.{i}.q.{p}", "a.{i}.k.{p}"), "b.{i}.{p}", rules.same)
    assert [(link.theirs, link.ours) for link in places(rule, 2)] == [
        (("a.0.q.weight", "a.0.k.weight"), ("b.0.weight",)),
        (("a.0.q.bias", "a.0.k.bias"), ("b.0.bias",)),
        (("a.1.q.weight", "a.1.k.weight"), ("b.1.weight",)),
        (("a.1.q.bias", "a.1.k.bias"), ("b.1.bias",)),
    ]


def test_a_block_number_on_their_side_alone_means_all_blocks():
    (link,) = places(Rule("a.{i}.emb", "emb", copies), 3)
    assert link[:2] == (("a.0.emb", "a.1.emb", "a.2.emb"), ("emb",))
    (link,) = places(Rule("table", (), rules.same), 3)
    assert link[:2] == (("table",), ())


def test_blocks_are_numbered_among_their_kind():
    """A stage of the same kind goes on counting where the last one stopped."""
    stages = (Stage(2, lanes="own"), Stage(1, parallel=True), Stage(1, lanes="own"), Stage(2, parallel=True))
    among = rules.among_kind(replace(FLUX, stages=stages))
    assert among == [0, 1, 0, 2, 1, 2]
    links = places(Rule(("a.{j}.q.{p}", "a.{j}.k.{p}"), "b.{i}.{p}", rules.same), 6, among)
    assert [(link.theirs[1], link.ours[0]) for link in links if "bias" in link.ours[0]] == [
        ("a.0.k.bias", "b.0.bias"),
        ("a.1.k.bias", "b.1.bias"),
        ("a.0.k.bias", "b.2.bias"),
        ("a.2.k.bias", "b.3.bias"),
        ("a.1.k.bias", "b.4.bias"),
        ("a.2.k.bias", "b.5.bias"),
    ]
    layout = Layout(replace(FLUX, stages=(Stage(3, lanes="own"), Stage(2, parallel=True))))
    where = {link.ours[0]: link.theirs[0] for link in spread(FAMILIES["flux"].rules, layout)}
    assert where["blocks.2.attn.x.qkv.bias"] == "double_blocks.2.img_attn.qkv.bias"
    assert where["blocks.3.both.lin1.bias"] == "single_blocks.0.linear1.bias"
    assert "blocks.3.attn.x.qkv.bias" not in where  # a rule for a weight that a block has not is not for that block


def test_a_rule_may_be_for_some_blocks_only():
    last = replace(rules.same, where=lambda stage: stage.read_only)
    layout = Layout(replace(SD3, stages=(Stage(2, lanes="own"), Stage(1, lanes="own", read_only=True))))
    with pytest.raises(UserError, match=r"two rules claim the key 'blocks\.2\.attn\.text\.mod\.lin\.bias'"):
        spread([*FAMILIES["sd3"].rules, Rule("new.{i}.{p}", "blocks.{i}.attn.text.mod.lin.{p}", last)], layout)
    assert [link.ours for link in places(Rule("new.{i}", "blocks.{i}.x", last), 3, here=[2])] == [("blocks.2.x",)]


@pytest.mark.parametrize(
    ("way", "theirs", "ours"),
    [
        (rules.same, [(5, 2)], [(5, 2)]),
        (kernel, [(4, 3, 2, 2)], [(4, 12)]),
        (halves, [(24, 4)], [(12, 4), (12, 4)]),
        (halves, [(24,)], [(12,), (12,)]),
        (joined, [(4, 4)] * 3, [(12, 4)]),
        (rules.first_half, [(12, 4)], [(12, 4)]),
        (rules.swapped, [(8, 4)], [(8, 4)]),
    ],
)
def test_every_way_goes_there_and_back(way, theirs, ours):
    given = {f"key{i}": torch.randn(shape) for i, shape in enumerate(theirs)}
    read = way.read(given, LAYOUT)
    assert [tuple(w.shape) for w in read] == ours
    for back, was in zip(way.write(read, LAYOUT), given.values(), strict=True):
        assert torch.equal(back, was)


def test_a_doubled_layer_keeps_its_first_half_and_is_written_with_nothing_in_the_second():
    doubled = replace(LAYOUT, doubled=True)
    ours = [torch.randn(12, 4)]
    (written,) = rules.first_half.write(ours, doubled)
    assert written.shape == (24, 4)
    assert torch.equal(rules.first_half.read({"w": written}, doubled)[0], ours[0])
    channels = written.unflatten(0, (2, 2, 6))  # patch, patch, channel: the order in which the last layer gives them
    assert (channels[:, :, 3:] == 0).all()
    assert (channels[:, :, :3] != 0).all()


def test_a_modulation_without_shifts_is_read_with_shifts_of_zero():
    shiftless = replace(LAYOUT, shiftless=True)
    theirs = {"w": torch.randn(16, 4)}  # scale, gate, scale, gate
    first, second = halves.read(theirs, shiftless)
    assert first.shape == second.shape == (12, 4)
    assert (first[:4] == 0).all()
    assert torch.equal(torch.cat((first[4:], second[4:])), theirs["w"])
    assert torch.equal(halves.write([first, second], shiftless)[0], theirs["w"])


def test_copies_must_be_equal_and_are_written_apart():
    w = torch.randn(3)
    assert torch.equal(copies.read({"a": w, "b": w.clone()}, LAYOUT)[0], w)
    with pytest.raises(UserError, match="'b' differs from 'a'"):
        copies.read({"a": w, "b": w + 1}, LAYOUT)
    written = copies.write([w], LAYOUT)
    assert len({v.data_ptr() for v in written}) == len(written) == MODEL.depth


def test_a_stored_table_may_be_absent_or_drift_but_not_differ():
    way = stored(lambda layout: torch.ones(layout.side), "a row of ones", when=lambda model: True)
    assert way.read({"t": torch.ones(2) + DRIFT / 2}, LAYOUT) == []
    for wrong in (torch.ones(2) + 2 * DRIFT, torch.ones(3), torch.full((2,), math.nan)):
        with pytest.raises(UserError, match="'t' is not a row of ones"):
            way.read({"t": wrong}, LAYOUT)
    assert not way.needed
    assert torch.equal(way.write([], LAYOUT)[0], torch.ones(2))


def test_an_average_of_a_constant_table_drifts_by_less_than_is_allowed():
    """train.py averages the frozen positions too; in fp32 they do not stay what they were."""
    table = original(side=8)["pos_embed"].flatten()[::7].clone()
    average = table.clone()
    for _ in range(20_000):
        average.mul_(0.9999).add_(table, alpha=1e-4)
    drift = (average - table).abs().max()
    assert 1e-4 < drift < DRIFT / 2  # it has come to rest: half a last bit stops the average


def test_two_rules_that_claim_a_key_are_an_error():
    extra = Rule("blocks.{i}.attn.qkv.{p}", (), rules.same)
    with pytest.raises(UserError, match=r"two rules claim the key 'blocks\.0\.attn\.qkv\.bias'"):
        spread((*FAMILIES["dit"].rules, extra), LAYOUT)
    extra = Rule("other.{p}", "head.proj.{p}", rules.same)
    with pytest.raises(UserError, match=r"two rules claim the key 'head\.proj\.bias'"):
        spread((*FAMILIES["dit"].rules, extra), LAYOUT)


def test_a_network_that_the_table_does_not_cover_is_an_error():
    with pytest.raises(UserError, match=r"no place for 'blocks\.0\.attn\.x\.k_norm\.weight' of this network"):
        spread(FAMILIES["dit"].rules, replace(LAYOUT, model=replace(MODEL, qk_norm=True)))


@pytest.mark.parametrize("depth", [1, 2, 5, 11])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_table_relates_every_weight_to_a_key_and_back(name, depth):
    """A bijection: all of our weights, each once; every key of theirs once; shapes agree both ways."""
    model = replace(MODEL, stages=(Stage(depth),))
    if name == "lightningdit":
        model = replace(model, width=8, rope=(2, 2), norm="rms", mlp="swiglu", qk_norm=True)
    if name.startswith("flux"):
        model = replace(FLUX, stages=(Stage(depth, lanes="own"), Stage(depth + 1, parallel=True)))
    if name.startswith("pixart"):
        model = replace(PIXART, stages=(Stage(depth, "adaln_single", cross=True, cross_norm=False),))
    if name.startswith("sd3"):
        own, last = Stage(depth, lanes="own"), Stage(1, lanes="own", read_only=True, dual=depth == 2)
        model = replace(SD3, stages=(replace(own, dual=True), own, last))
    layout = Layout(model, side=3)
    links = spread(FAMILIES[name].rules, layout)
    ours = [key for link in links for key in link.ours]
    theirs = [key for link in links for key in link.theirs]
    own = rules.shapes(model)
    assert sorted(ours) == sorted(own)
    assert len(set(theirs)) == len(theirs)
    state = {key: torch.randn(w.shape) for key, w in own.items()}
    written = rules.write(state, FAMILIES[name].rules, layout)
    assert same(rules.read(written, FAMILIES[name].rules, layout), state)
    assert written.keys() == {key for link in links if link.way.written for key in link.theirs}


MADE = {"dit": original, "sit": sit, "lightningdit": lightning, "diffusers": stock}
MADE |= {"flux": flux, "flux-diffusers": flux_stock}
MADE |= {"pixart": pixart, "pixart-diffusers": pixart_stock, "sd3": sd3, "sd3-diffusers": sd3_stock}


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_gives_exactly_the_keys_of_the_projects_own_files(name, depth):
    state = MADE[name](depth=depth)
    layout = FAMILIES[name].layout(source_of(state), 3)
    keys = {key for link in spread(FAMILIES[name].rules, layout) if link.way.written for key in link.theirs}
    assert keys == state.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_that_is_missing_is_named(name):
    family, state = FAMILIES[name], MADE[name]()
    layout = family.layout(source_of(state), 3)
    needed = {key for link in spread(family.rules, layout) if link.way.needed for key in link.theirs}
    for key in state:
        without = {k: v for k, v in state.items() if k != key}
        if key in needed:
            with pytest.raises(UserError, match=f"lacks the key {key!r}"):
                rules.read(without, family.rules, layout)
        else:
            rules.read(without, family.rules, layout)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_that_is_misshapen_is_named_as_the_file_does(name):
    family, state = FAMILIES[name], MADE[name]()
    layout = family.layout(source_of(state), 3)
    for link in spread(family.rules, layout):
        for key in link.theirs if link.way.needed else ():
            wrong = state | {key: torch.zeros(*state[key].shape, 2)}
            with pytest.raises(UserError, match=rf"'module\.{key}' has shape .*; the network needs"):
                rules.read(wrong, family.rules, layout, {k: f"module.{k}" for k in state})


@pytest.mark.parametrize(
    "key", ["x", "blocks.0.attn.q.weight", "blocks.2.attn.qkv.weight", "xblocks.0.attn.qkv.weight"]
)
def test_a_key_that_no_rule_knows_is_named(key):
    state = original()
    with pytest.raises(UserError, match=f"no rule knows the key {key!r}"):
        rules.read(state | {key: torch.zeros(1)}, FAMILIES["dit"].rules, FAMILIES["dit"].layout(source_of(state), 3))


def test_a_rule_of_its_own_is_all_that_a_new_layout_needs():
    def twice(theirs, layout):
        return [2 * w for w in theirs.values()]

    rows = [r if r.ours != "head.proj.{p}" else Rule("last.{p}", r.ours, Way(twice, lambda ours, _: [ours[0] / 2]))
            for r in FAMILIES["dit"].rules]  # fmt: skip
    state = original(width=4, patch=2, channels=3, out=3, hidden=16, depth=3, side=2, classes=1000)
    for p in ("weight", "bias"):
        state[f"last.{p}"] = state.pop(f"final_layer.linear.{p}")
    ours = rules.read(state, rows, LAYOUT)
    assert torch.equal(ours["head.proj.bias"], 2 * state["last.bias"])
    assert same(rules.write(ours, rows, LAYOUT), state)
