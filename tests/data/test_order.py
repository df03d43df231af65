"""The order of samples and the dropping of labels are pure functions of the place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditwright.data.base import drop, item


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("epoch", [0, 1, 12])
def test_an_epoch_sees_every_item_once(size, epoch):
    assert sorted(item(3, size, epoch * size + i) for i in range(size)) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(item(seed, 50, 50 * epoch + i) for i in range(50)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


def test_a_place_means_the_same_item_whatever_was_asked_before():
    forwards = [item(5, 30, place) for place in range(300)]
    places = np.random.default_rng(0).permutation(300)
    assert {place: item(5, 30, place) for place in places.tolist()} == dict(enumerate(forwards))


def test_labels_are_dropped_at_the_asked_rate_and_only_to_null():
    labels = torch.arange(4000) % 10
    kept = drop(labels, 10, 0.25, seed=0, places=range(4000))
    dropped = kept == 10
    assert torch.equal(kept[~dropped], labels[~dropped])
    assert abs(dropped.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5  # four standard deviations


def test_no_share_and_the_whole_share_are_exact():
    labels = torch.arange(100) % 10
    assert torch.equal(drop(labels, 10, 0.0, seed=0, places=range(100)), labels)
    assert (drop(labels, 10, 1.0, seed=0, places=range(100)) == 10).all()


@pytest.mark.parametrize("size", [1, 3, 64])
def test_which_labels_drop_does_not_depend_on_the_batch(size):
    labels, places = torch.arange(96) % 10, range(500, 596)
    whole = drop(labels, 10, 0.3, seed=7, places=places)
    parts = [drop(labels[i : i + size], 10, 0.3, seed=7, places=places[i : i + size]) for i in range(0, 96, size)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(drop(labels, 10, 0.3, seed=8, places=places), whole)


def test_a_label_dropped_in_one_epoch_is_heard_in_another():
    labels = torch.zeros(200, dtype=torch.int64)
    first, second = (drop(labels, 1, 0.5, seed=0, places=range(start, start + 200)) for start in (0, 200))
    assert not torch.equal(first, second)
