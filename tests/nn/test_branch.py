"""Blocks, branches, lanes and streams."""

import pytest
import torch
from torch import nn

from ditwright.nn.branch import (
    FEEDS,
    AttentionLane,
    Block,
    Context,
    CrossAttention,
    Feed,
    FeedLane,
    JointAttention,
    SwiGLULane,
    add,
    lanes_for,
    run_all,
)
from ditwright.nn.modulation import AdaLN, AdaLNZero, Plain
from ditwright.nn.position import rope
from ditwright.nn.tokens import Tokens

WIDTH, HEADS = 12, 3


def attention_lane(**options):
    return AttentionLane(WIDTH, HEADS, AdaLN(WIDTH), **options)


def feed_lane():
    return FeedLane(WIDTH, 20, AdaLN(WIDTH))


def joint_block(lanes=("x",)):
    attn, mlp = JointAttention({n: attention_lane() for n in lanes}), Feed({n: feed_lane() for n in lanes})
    return Block({"attn": attn, "mlp": mlp})


def context(streams, **rest):
    return Context(vec=torch.randn(2, WIDTH), rope=(None,) * streams, **rest)


def streams(*lengths):
    return tuple(torch.randn(2, n, WIDTH) for n in lengths)


def test_add_leaves_a_stream_without_a_delta_alone():
    a, b, c = streams(2, 3, 4)
    out = add((a, b, c), [torch.ones_like(a), None])  # one delta short
    assert torch.equal(out[0], a + 1)
    assert out[1] is b
    assert out[2] is c


def test_one_lane_serves_all_streams_and_else_each_has_its_own():
    lane, other = nn.Identity(), nn.Identity()
    assert lanes_for([lane], 3) == [lane] * 3
    assert lanes_for([lane, other], 2) == [lane, other]
    with pytest.raises(AssertionError, match="2 lanes cannot serve 3 streams"):
        lanes_for([lane, other], 3)


def test_a_shared_lane_on_two_streams_is_one_stream_of_both():
    block, (a, b) = joint_block(), streams(5, 3)
    ctx = context(2)
    apart = block((a, b), ctx)
    (joined,) = block((torch.cat((a, b), 1),), Context(ctx.vec, (None,)))
    torch.testing.assert_close(torch.cat(apart, 1), joined)


def test_own_lanes_with_equal_weights_are_a_shared_lane():
    own, shared, xs, ctx = joint_block(("x", "c")), joint_block(), streams(5, 3), context(2)
    for branch in ("attn", "mlp"):
        for lane in ("x", "c"):
            own[branch][lane].load_state_dict(shared[branch]["x"].state_dict())
    for a, b in zip(own(xs, ctx), shared(xs, ctx), strict=True):
        torch.testing.assert_close(a, b)


def test_a_gated_mlp_opens_one_half_by_the_other():
    """Shazeer 2020, eq. 6, the first half of the fused projection being the gate."""
    lane, (x,), vec = SwiGLULane(WIDTH, 20, AdaLNZero(WIDTH)), streams(5), torch.randn(2, WIDTH)
    h, gate = lane.mod(x, vec)
    w, v = lane.w12.weight.split(20)
    b, c = lane.w12.bias.split(20)
    opened = h @ w.T + b
    want = gate * ((opened * opened.sigmoid() * (h @ v.T + c)) @ lane.w3.weight.T + lane.w3.bias)
    torch.testing.assert_close(lane(x, vec), want)


@pytest.mark.parametrize("name", FEEDS)
def test_every_mlp_costs_the_products_that_it_says(name):
    lane = FEEDS[name](WIDTH, 20, Plain(WIDTH))
    products = sum(p.numel() for p in lane.parameters() if p.ndim == 2)
    assert products == lane.products * WIDTH * 20


def test_own_lanes_each_serve_their_stream():
    block, xs, ctx = Feed({"x": feed_lane(), "c": feed_lane()}), streams(5, 3), context(2)
    for lane, x, out in zip(block.values(), xs, block(xs, ctx), strict=True):
        assert torch.equal(out, lane(x, ctx.vec))


def test_a_block_without_positions_does_not_see_order():
    block, (x,), ctx = joint_block(), streams(6), context(1)
    order = torch.randperm(6)
    torch.testing.assert_close(block((x[:, order],), ctx)[0], block((x,), ctx)[0][:, order])


def test_a_block_with_rotation_sees_order():
    block, (x,) = joint_block(), streams(6)
    ctx = Context(torch.randn(2, WIDTH), (rope(torch.arange(6.0).reshape(1, 6, 1), (4,)),))
    assert not torch.allclose(block((x.flip(1),), ctx)[0], block((x,), ctx)[0].flip(1), atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_masked_tokens_of_any_stream_do_not_change_the_others(training):
    block, (a, b), ctx = joint_block(), streams(5, 4), context(2)
    mask = (torch.arange(9) < 7).expand(2, -1)  # the last two of the second stream are padding
    with torch.set_grad_enabled(training):
        short = block((a, b[:, :2]), ctx)
        padded = block((a, b), Context(ctx.vec, ctx.rope, mask))
    torch.testing.assert_close(padded[0], short[0])
    torch.testing.assert_close(padded[1][:, :2], short[1])


def test_query_and_key_norms_make_attention_blind_to_the_scale_of_queries_and_keys():
    for qk_norm in (True, False):
        lane, (x,), ctx = attention_lane(qk_norm=qk_norm), streams(6), context(1)
        branch = JointAttention({"x": lane})
        with torch.no_grad():
            before = branch((x,), ctx)[0]
            lane.qkv.weight[: 2 * WIDTH] *= 8
            lane.qkv.bias[: 2 * WIDTH] *= 8
            after = branch((x,), ctx)[0]
        assert torch.allclose(before, after, atol=1e-4) == qk_norm


def test_cross_attention_to_one_token_adds_that_token_everywhere():
    branch, (x,), (token,) = CrossAttention(WIDTH, HEADS, AdaLN(WIDTH)), streams(5), streams(1)
    ctx = context(1, cross=Tokens(token, torch.zeros(1, 1, 2)))
    value = branch.kv(token)[..., WIDTH:]  # (B, 1, D)
    torch.testing.assert_close(branch((x,), ctx)[0], branch.proj(value).expand(-1, 5, -1))


def test_cross_attention_does_not_see_the_padding_of_its_context():
    branch, (x,), (tokens,) = CrossAttention(WIDTH, HEADS, AdaLN(WIDTH)), streams(5), streams(4)
    pos, mask, ctx = torch.zeros(1, 4, 2), (torch.arange(4) < 3).expand(2, -1), context(1)
    masked = Context(ctx.vec, ctx.rope, cross=Tokens(tokens, pos, mask))
    short = Context(ctx.vec, ctx.rope, cross=Tokens(tokens[:, :3], pos[:, :3]))
    torch.testing.assert_close(branch((x,), masked)[0], branch((x,), short)[0])


def test_cross_attention_changes_the_image_stream_alone():
    xs, tokens = streams(5, 3), streams(2)[0]
    block = Block({"cross": CrossAttention(WIDTH, HEADS, AdaLN(WIDTH))})
    out = block(xs, context(2, cross=Tokens(tokens, torch.zeros(1, 2, 2))))
    assert not torch.equal(out[0], xs[0])
    assert out[1] is xs[1]


def test_a_block_adds_its_branches_in_order_and_a_runner_its_blocks():
    class Times(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, xs, ctx):
            return [self.factor * x for x in xs]

    class Plus(Times):
        def forward(self, xs, ctx):
            return [torch.full_like(x, self.factor) for x in xs]

    blocks = [Block({"a": Times(1.0), "b": Plus(3.0)}), Block({"a": Times(2.0)})]
    (out,) = run_all(blocks, (torch.full((1, 1, 1), 5.0),), context(1))
    assert out.item() == 3 * (2 * 5 + 3)


def test_a_lane_reads_queries_keys_and_values_in_this_order_and_turns_the_first_two():
    lane, (x,), vec = attention_lane(), streams(6), torch.randn(2, WIDTH)
    turn = rope(torch.arange(6.0).reshape(1, 6, 1), (4,))
    thirds = lane.qkv(lane.mod(x, vec)[0]).split(WIDTH, -1)
    plain = [part.unflatten(-1, (HEADS, 4)).transpose(1, 2) for part in thirds]
    for got, want in zip(lane.read(x, vec, None)[0], plain, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(lane.read(x, vec, turn)[0], (turn(plain[0]), turn(plain[1]), plain[2]), strict=True):
        torch.testing.assert_close(got, want)


def test_a_one_token_sequence_attends_to_itself():
    lane, (x,), ctx = attention_lane(), streams(1), context(1)
    h, _ = lane.mod(x, ctx.vec)
    value = lane.qkv(h)[..., 2 * WIDTH :]
    torch.testing.assert_close(JointAttention({"x": lane})((x,), ctx)[0], lane.proj(value))
