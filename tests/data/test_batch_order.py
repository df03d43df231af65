"""Batches are of one size, every item has its turn, and a batch is a pure function of its number."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ditwright.data.base import Group, batch_items, item, mirrored


def groups(*counts):
    """Groups of so many items, numbered through."""
    ends = np.cumsum(counts)
    return tuple(
        Group((64, 64 + 8 * i), np.arange(end - n, end)) for i, (n, end) in enumerate(zip(counts, ends, strict=True))
    )


@pytest.mark.parametrize("batch_size", [1, 7, 100, 250])
def test_a_single_group_comes_in_the_order_of_its_places(batch_size):
    (group,) = one = groups(100)
    for number in (0, 1, 2, 3, 50):
        found, items = batch_items(3, one, batch_size, number)
        assert found is group
        places = range(number * batch_size, (number + 1) * batch_size)
        assert items.tolist() == [item(3, 100, place) for place in places]


@pytest.mark.parametrize("counts", [(100, 23, 3), (1, 1), (5, 500), (64, 64, 64)])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_every_item_comes_as_often_as_every_other(counts, batch_size):
    made, seen = groups(*counts), Counter()
    rounds = 12
    for number in range(rounds * sum(counts) // batch_size):
        group, items = batch_items(5, made, batch_size, number)
        assert set(items) <= set(group.items)
        assert len(items) == batch_size
        seen.update(items.tolist())
    assert len(seen) == sum(counts)
    slack = max(2, batch_size // min(counts) + 1)  # a batch of a small group holds its items several times
    assert rounds - slack <= min(seen.values()) <= max(seen.values()) <= rounds + slack


def test_batches_of_different_sizes_are_mixed():
    sizes = [batch_items(0, groups(64, 64), 8, number)[0].size for number in range(16)]
    assert sizes != sorted(sizes)
    assert Counter(sizes) == {(64, 64): 8, (64, 72): 8}


def test_half_of_the_samples_are_mirrored():
    flips = mirrored(0.5, 1, range(4000))
    assert abs(flips.mean() - 0.5) < 0.05
    assert np.array_equal(flips[1000:1010], mirrored(0.5, 1, range(1000, 1010)))
    assert not mirrored(0.0, 1, range(100)).any()
    assert mirrored(1.0, 1, range(100)).all()
