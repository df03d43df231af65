"""Branches and lanes for several streams."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ditwright.nn.attention import attend
from ditwright.nn.branch import AttentionLane, Block, Context, Feed, FeedLane, JointAttention
from ditwright.nn.modulation import AdaLN, AdaLNZero
from ditwright.nn.position import Rope, rope
from ditwright.nn.streams import Beside, ImageAttention, Parallel, ReadOnlyLane, Silent, joined

WIDTH, HEADS, HIDDEN = 12, 3, 20


def lane(make=AttentionLane, **options):
    return make(WIDTH, HEADS, AdaLNZero(WIDTH), **options)


def parallel(**options):
    return Parallel(WIDTH, HEADS, HIDDEN, AdaLNZero(WIDTH), **options)


def streams(*lengths):
    return tuple(torch.randn(2, n, WIDTH) for n in lengths)


def turns(*lengths):
    """A rotation per stream, all of other places."""
    return tuple(rope(torch.rand(1, n, 1) * 9, (WIDTH // HEADS,)) for n in lengths)


def context(streams, **rest):
    return Context(**{"vec": torch.randn(2, WIDTH), "rope": (None,) * streams} | rest)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_read_only_stream_is_read_as_any_other_and_left_as_it_is(qk_norm):
    image, text = lane(qk_norm=qk_norm), lane(ReadOnlyLane, qk_norm=qk_norm)
    xs, ctx = streams(5, 3), context(2, rope=turns(5, 3))
    found = JointAttention({"x": image, "text": text})(xs, ctx)
    written = lane(qk_norm=qk_norm)
    written.load_state_dict(text.state_dict(), strict=False)
    both = JointAttention({"x": image, "text": written})(xs, ctx)
    assert found[1] is None
    assert torch.equal(found[0], both[0])
    other = JointAttention({"x": image, "text": text})((xs[0], -xs[1]), ctx)
    assert not torch.allclose(other[0], found[0])


def test_a_read_only_stream_has_no_weights_to_write_with():
    assert {name.partition(".")[0] for name in lane(ReadOnlyLane).state_dict()} == {"mod", "qkv"}


def test_a_silent_lane_leaves_its_stream_to_the_others():
    feed, xs, ctx = FeedLane(WIDTH, HIDDEN, AdaLNZero(WIDTH)), streams(5, 3), context(2)
    branch = Feed({"x": feed, "text": Silent()})
    found = branch(xs, ctx)
    assert torch.equal(found[0], feed(xs[0], ctx.vec))
    assert found[1] is None
    out = Block({"mlp": branch})(xs, ctx)
    assert out[1] is xs[1]


def test_image_attention_is_that_of_the_image_alone():
    branch, alone = ImageAttention({"x": lane()}), JointAttention({"x": lane()})
    alone.load_state_dict(branch.state_dict())
    (a, b), both = streams(5, 3), turns(5, 3)
    ctx = context(2, rope=both, mask=torch.tensor([[True] * 5 + [False] * 3] * 2))
    (found,) = branch((a, b), ctx)
    (want,) = alone((a,), Context(ctx.vec, both[:1]))
    torch.testing.assert_close(found, want)
    out = Block({"attn": branch})((a, b), ctx)
    assert out[1] is b


def test_image_attention_does_not_see_what_is_padding_of_the_image():
    branch, (a, b) = ImageAttention({"x": lane()}), streams(5, 3)
    mask = (torch.arange(8) != 4).expand(2, -1)  # the last of the image
    ctx = context(2, mask=mask)
    (short,) = branch((a[:, :4], b), Context(ctx.vec, ctx.rope, torch.cat((mask[:, :4], mask[:, 5:]), 1)))
    torch.testing.assert_close(branch((a, b), ctx)[0][:, :4], short)


def test_branches_beside_each_other_read_the_same_streams_and_are_added_up():
    joint, image = JointAttention({"x": lane(), "text": lane()}), ImageAttention({"x": lane()})
    xs, ctx = streams(5, 3), context(2)
    found = Beside({"joint": joint, "image": image})(xs, ctx)
    torch.testing.assert_close(found[0], joint(xs, ctx)[0] + image(xs, ctx)[0])
    torch.testing.assert_close(found[1], joint(xs, ctx)[1])
    after = Block({"joint": joint, "image": image})(xs, ctx)  # one after the other is another thing
    assert not torch.allclose(xs[0] + found[0], after[0], atol=1e-4)


def test_a_stream_that_no_branch_changes_stays_as_it_is():
    joint = JointAttention({"x": lane(), "text": lane(ReadOnlyLane)})
    xs, ctx = streams(5, 3), context(2)
    out = Block({"attn": Beside({"joint": joint, "image": ImageAttention({"x": lane()})})})(xs, ctx)
    assert torch.equal(out[1], xs[1])
    assert not torch.equal(out[0], xs[0])


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_parallel_branch_is_its_formula(qk_norm, turned):
    """Dehghani et al. 2023, Sec. 2.1: y = W2 [attention(h), gelu(W1 h)], from one norm h of all the streams."""
    branch, xs = parallel(qk_norm=qk_norm), streams(5, 3)
    for norm in [branch.q_norm, branch.k_norm] * qk_norm:
        nn.init.normal_(norm.weight, 1.0)
    ropes = turns(5, 3) if turned else (None, None)
    mask = torch.tensor([[True] * 8, [True] * 6 + [False] * 2])
    ctx = context(2, rope=ropes, mask=mask)
    x = torch.cat(xs, 1)
    shift, scale, gate = branch.mod.lin(F.silu(ctx.vec))[:, None].chunk(3, -1)
    h = branch.lin1(F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift)
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in h[..., : 3 * WIDTH].split(WIDTH, -1))
    if qk_norm:
        rms = [w / (w.square().mean(-1, keepdim=True) + 1e-6).sqrt() for w in (q, k)]
        q, k = rms[0] * branch.q_norm.weight, rms[1] * branch.k_norm.weight
    if turned:  # each stream by its own places
        q, k = (torch.cat([r(part) for r, part in zip(ropes, w.split([5, 3], 2), strict=True)], 2) for w in (q, k))
    scores = (q @ k.mT / (WIDTH // HEADS) ** 0.5).masked_fill(~mask[:, None, None], -torch.inf)
    heard = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    want = gate * branch.lin2(torch.cat((heard, F.gelu(h[..., 3 * WIDTH :], approximate="tanh")), -1))
    for ours, theirs in zip(branch(xs, ctx), want.split([5, 3], 1), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_parallel_branch_is_attention_and_mlp_of_one_input_beside_each_other():
    """Its two matrices are those of the two branches, joined; the biases of the second add up."""
    branch, xs, ctx = parallel(), streams(5, 3), context(2, rope=turns(5, 3))
    attention = JointAttention({"x": AttentionLane(WIDTH, HEADS, branch.mod)})
    feed = Feed({"x": FeedLane(WIDTH, HIDDEN, branch.mod)})
    with torch.no_grad():
        for ours, theirs in zip(attention["x"].qkv.parameters(), branch.lin1.parameters(), strict=True):
            ours.copy_(theirs[: 3 * WIDTH])
        for ours, theirs in zip(feed["x"].fc1.parameters(), branch.lin1.parameters(), strict=True):
            ours.copy_(theirs[3 * WIDTH :])
        attention["x"].proj.weight.copy_(branch.lin2.weight[:, :WIDTH])
        feed["x"].fc2.weight.copy_(branch.lin2.weight[:, WIDTH:])
        attention["x"].proj.bias.copy_(branch.lin2.bias)
        feed["x"].fc2.bias.zero_()
    found = Beside({"attn": attention, "mlp": feed})(xs, ctx)
    for ours, theirs in zip(branch(xs, ctx), found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_parallel_branch_takes_any_number_of_streams_as_one():
    branch, (a, b), both = parallel(), streams(5, 3), turns(5, 3)
    ctx = context(2, rope=both)
    (one,) = branch((torch.cat((a, b), 1),), Context(ctx.vec, (joined(both),)))
    torch.testing.assert_close(torch.cat(branch((a, b), ctx), 1), one)


def test_rotations_are_joined_in_the_order_of_the_streams():
    a, b = turns(5, 3)
    both = joined((a, b))
    assert isinstance(both, Rope)
    x = torch.randn(2, HEADS, 8, WIDTH // HEADS)
    torch.testing.assert_close(both(x), torch.cat((a(x[:, :, :5]), b(x[:, :, 5:])), 2))
    assert joined((None, None)) is None
    assert joined(()) is None


def test_without_a_mask_the_kernel_is_given_none():
    """A mask of all ones would keep the fast kernel from being used."""
    seen = []

    def spy(q, k, v, mask=None):
        seen.append(mask)
        return attend(q, k, v, mask)

    branches = [JointAttention({"x": lane(), "text": lane(ReadOnlyLane)}), ImageAttention({"x": lane()}), parallel()]
    for branch in branches:
        branch(streams(5, 3), context(2, attend=spy))
    assert seen == [None] * 3
    for branch in branches:
        branch(streams(5, 3), context(2, mask=torch.ones(2, 8, dtype=torch.bool), attend=spy))
    assert [mask.shape[1] for mask in seen[3:]] == [8, 5, 8]


def test_gates_of_zero_silence_every_branch():
    mods = [AdaLNZero(WIDTH) for _ in range(3)]
    for mod in mods:
        nn.init.zeros_(mod.lin.weight)
        nn.init.zeros_(mod.lin.bias)
    joint = JointAttention(
        {"x": AttentionLane(WIDTH, HEADS, mods[0]), "text": ReadOnlyLane(WIDTH, HEADS, AdaLN(WIDTH))}
    )
    image = ImageAttention({"x": AttentionLane(WIDTH, HEADS, mods[1])})
    block = Block({"attn": Beside({"joint": joint, "image": image}), "both": Parallel(WIDTH, HEADS, HIDDEN, mods[2])})
    xs = streams(5, 3)
    for out, x in zip(block(xs, context(2)), xs, strict=True):
        assert torch.equal(out, x)
