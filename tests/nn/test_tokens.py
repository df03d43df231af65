"""Patches: cutting, projecting, putting together again."""

import pytest
import torch
import torch.nn.functional as F

from ditwright.errors import UserError
from ditwright.nn.tokens import Patchify, grid_positions, patch_grid, unpatchify

CASES = [((4,), (12,)), ((2, 2), (4, 6)), ((2, 3), (4, 9)), ((1, 2, 2), (3, 4, 6)), ((2, 2, 2), (2, 4, 6))]


def raw_patchify(patch, channels):
    """A Patchify whose tokens are the patches themselves, channels slowest."""
    size = channels * torch.Size(patch).numel()
    patchify = Patchify(patch, channels, size)
    with torch.no_grad():
        patchify.proj.weight.copy_(torch.eye(size))
        patchify.proj.bias.zero_()
    return patchify


@pytest.mark.parametrize(("patch", "space"), CASES)
def test_unpatchify_undoes_patchify(patch, space):
    x = torch.randn(2, 3, *space)
    tokens = raw_patchify(patch, 3)(x).x
    channels_fastest = tokens.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(channels_fastest, patch, space), x)


@pytest.mark.parametrize(("patch", "space"), CASES)
def test_linear_patchify_is_a_strided_convolution(patch, space):
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(patch)]
    patchify, x = Patchify(patch, 3, 5), torch.randn(2, 3, *space)
    weight = patchify.proj.weight.unflatten(1, (3, *patch))
    want = conv(x, weight, patchify.proj.bias, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x).x, want)


@pytest.mark.parametrize(("patch", "space"), CASES)
def test_the_position_of_a_token_is_where_its_patch_lies(patch, space):
    x = torch.zeros(1, 1, *space)
    patchify = raw_patchify(patch, 1)
    pos = patchify(x).pos
    assert pos.shape == (1, torch.Size(patch_grid(space, patch)).numel(), len(patch))
    for token, where in enumerate(pos[0].long().tolist()):
        marked = x.clone()
        marked[(0, 0, *(w * p for w, p in zip(where, patch, strict=True)))] = 1.0
        assert patchify(marked).x[0].sum(1).nonzero().item() == token


def test_the_last_axis_of_a_grid_runs_fastest():
    assert grid_positions((2, 3))[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 4, 4), (1, 3, 4, 4, 4)], ids=["axes", "channels", "more axes"])
def test_an_input_of_another_shape_is_refused_with_both_shapes(shape):
    with pytest.raises(UserError, match=r"\(batch, 3, size, size\).*" + str(shape).replace("(", r"\(").rstrip(")")):
        Patchify((2, 2), 3, 8)(torch.zeros(shape))


@pytest.mark.parametrize("space", [(4, 5), (0, 4)])
def test_a_side_that_the_patch_does_not_divide_is_refused(space):
    with pytest.raises(UserError, match="x".join(map(str, space)) + r" is not divisible by the patch 2x2"):
        patch_grid(space, (2, 2))


def test_a_space_with_other_axes_than_the_patch_is_refused():
    with pytest.raises(UserError, match="1 space axes came to a patch of 2 axes"):
        patch_grid((4,), (2, 2))
