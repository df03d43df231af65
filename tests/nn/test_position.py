"""Positions: the fixed table and the rotation."""

import numpy as np
import pytest
import torch

from ditwright.nn.position import rope, sincos
from ditwright.nn.tokens import grid_positions


def reference_table(rows: int, columns: int, width: int) -> np.ndarray:
    """The table of DiT, cell by cell: first half the column, second half the row, sines before cosines."""
    quarter = width // 4
    table = np.zeros((rows * columns, width))
    for row in range(rows):
        for column in range(columns):
            for half, place in enumerate((column, row)):
                for k in range(quarter):
                    angle = place / 10_000 ** (k / quarter)
                    table[row * columns + column, half * 2 * quarter + k] = np.sin(angle)
                    table[row * columns + column, half * 2 * quarter + quarter + k] = np.cos(angle)
    return table


@pytest.mark.parametrize(("rows", "columns", "width"), [(4, 4, 48), (2, 5, 8), (16, 3, 12)])
def test_the_table_of_axes_1_0_is_that_of_dit(rows, columns, width):
    ours = sincos(grid_positions((rows, columns)), width, (1, 0))[0].double().numpy()
    np.testing.assert_allclose(ours, reference_table(rows, columns, width), atol=1e-7)


def test_the_order_of_axes_swaps_the_halves_of_the_table():
    pos = grid_positions((3, 4))
    assert torch.equal(sincos(pos, 16, (0, 1)), sincos(pos, 16, (1, 0)).roll(8, -1))


def test_each_axis_of_the_table_has_its_share_of_the_width():
    pos = grid_positions((2, 3, 4))
    table = sincos(pos, 24, (0, 1, 2)).unflatten(-1, (3, 8))
    for axis in range(3):
        assert torch.equal(table[:, :, axis], sincos(pos[..., axis : axis + 1], 8, (0,)))


@pytest.mark.parametrize(("dims", "grid"), [((8,), (6,)), ((4, 4), (3, 4)), ((2, 4, 6), (2, 3, 2))])
def test_rotated_attention_depends_on_relative_position_only(dims, grid):
    torch.manual_seed(0)
    pos = grid_positions(grid)
    q, k = torch.randn(2, 3, pos.shape[1], sum(dims)), torch.randn(2, 3, pos.shape[1], sum(dims))

    def logits(q_pos, k_pos):
        return rope(q_pos, dims)(q) @ rope(k_pos, dims)(k).mT

    shift = torch.tensor([5.0, -3.0, 11.0])[: len(dims)]
    torch.testing.assert_close(logits(pos + shift, pos + shift), logits(pos, pos), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(pos + shift, pos), logits(pos, pos), atol=1e-2)


def test_rotation_keeps_lengths_and_does_nothing_at_the_origin():
    x, pos = torch.randn(1, 2, 5, 8), torch.arange(5.0).reshape(1, 5, 1)
    turned = rope(pos, (8,))(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_rotation_turns_neighbouring_pairs_as_complex_numbers():
    x, base = torch.randn(1, 1, 7, 6), 100.0
    pos = torch.arange(7.0).reshape(1, 7, 1)
    angle = pos[0] * base ** -(torch.arange(0, 6, 2) / 6)  # (L, 3)
    pairs = torch.view_as_complex(x.unflatten(-1, (3, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(rope(pos, (6,), base)(x), torch.view_as_real(pairs).flatten(-2))


def test_each_axis_turns_its_own_channels():
    x = torch.randn(1, 1, 1, 10)
    turned = rope(torch.tensor([[[0.0, 3.0]]]), (4, 6))(x)
    assert torch.equal(turned[..., :4], x[..., :4])
    assert (turned[..., 4:6] != x[..., 4:6]).all()


def test_rotation_keeps_the_number_format():
    x = torch.randn(1, 1, 3, 4, dtype=torch.bfloat16)
    assert rope(torch.arange(3.0).reshape(1, 3, 1), (4,))(x).dtype == torch.bfloat16
