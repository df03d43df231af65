"""From numbers to vectors."""

import numpy as np
import pytest
import torch

from ditwright.nn.embed import FREQUENCIES, LabelEmbed, TimeEmbed, timestep_embedding


@pytest.mark.parametrize("dim", [8, FREQUENCIES])
def test_time_features_are_cosines_then_sines_of_falling_frequencies(dim):
    t = np.array([0.0, 0.5, 17.0, 999.0])
    angles = t[:, None] / 10_000 ** (np.arange(dim // 2) / (dim // 2))
    want = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    ours = timestep_embedding(torch.tensor(t), dim)
    np.testing.assert_allclose(ours.numpy(), want, atol=1e-4)  # fp32 angles reach 999


def test_time_features_of_neighbouring_steps_differ():
    near = timestep_embedding(torch.tensor([500.0, 501.0]))
    assert (near[0] - near[1]).norm() > 0.5


def test_the_time_is_embedded_in_the_format_of_the_weights():
    embed = TimeEmbed(8).bfloat16()
    assert embed(torch.tensor([3.0, 4.0])).dtype == torch.bfloat16
    assert embed(torch.tensor([3.0, 4.0])).shape == (2, 8)


def test_labels_have_one_row_each_and_one_for_none_of_them():
    embed = LabelEmbed(10, 6)
    assert embed.table.weight.shape == (11, 6)
    assert torch.equal(embed(torch.tensor([0, 10])), embed.table.weight[[0, 10]])
