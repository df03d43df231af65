"""Randomness as an argument: a sample's numbers are its own."""

import math

import pytest
import torch

from ditwright.rng import Draws, generator


class Extreme:
    """A generator at an end of its range."""

    def __init__(self, value: float):
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("batch", [[7], [7, 8], [3, 7], [100, 7, 0, 5]])
def test_the_draws_of_a_sample_do_not_depend_on_its_batch(batch):
    alone, among, place = Draws(0, [7], "train"), Draws(0, batch, "train"), batch.index(7)
    like = torch.zeros(len(batch), 3, 4)
    for _ in range(3):  # nor do later draws, of either kind
        assert torch.equal(alone.uniform()[0], among.uniform()[place])
        assert torch.equal(alone.normal(like[:1])[0], among.normal(like)[place])


@pytest.mark.parametrize(
    "other",
    [(1, 7, "train"), (0, 8, "train"), (0, 7, "sample"), (7, 0, "train")],
    ids=["seed", "index", "stream", "swap"],
)
def test_seed_index_and_stream_each_give_other_numbers(other):
    assert generator(0, 7, "train").random() == generator(0, 7, "train").random()
    assert generator(0, 7, "train").random() != generator(*other).random()


def test_sequences_of_neighbouring_samples_do_not_overlap():
    numbers = [x for index in range(8) for x in generator(0, index, "train").random(1000)]
    assert len(set(numbers)) == 8000


def test_streams_of_one_sample_are_uncorrelated():
    a, b = (Draws(0, [0], stream).normal(torch.zeros(1, 10_000)) for stream in ("train", "sample"))
    assert abs((a * b).mean().item()) < 5 / math.sqrt(10_000)


def test_uniform_numbers_fill_the_open_interval():
    u = Draws(3, range(4000), "train").uniform()
    assert u.dtype == torch.float64
    assert u.shape == (4000,)
    assert 0 < u.min() < 0.01
    assert 0.99 < u.max() < 1
    assert abs(u.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / 4000)


def test_uniform_numbers_at_the_ends_of_their_range_keep_inverse_distributions_finite():
    draws = Draws(0, [], "train")
    draws.generators = [Extreme(0.0), Extreme(1 - 2.0**-53)]
    u = draws.uniform()
    assert torch.special.ndtri(u).isfinite().all()
    assert ((u > 0) & (u < 1)).all()


def test_normal_numbers_have_mean_0_and_variance_1_across_samples():
    x = Draws(1, range(400), "sample").normal(torch.zeros(400, 50)).double()
    assert abs(x.mean().item()) < 5 / math.sqrt(x.numel())
    assert abs(x.var().item() - 1) < 5 * math.sqrt(2 / x.numel())
    assert abs((x[:-1] * x[1:]).mean().item()) < 5 / math.sqrt(x.numel())  # neighbours are independent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normal_noise_looks_like_its_argument(dtype):
    like = torch.zeros(2, 3, 5, dtype=dtype)
    noise = Draws(0, [4, 5], "sample").normal(like)
    assert (noise.shape, noise.dtype) == (like.shape, dtype)
    assert torch.equal(noise, Draws(0, [4, 5], "sample").normal(torch.zeros(2, 3, 5)).to(dtype))


def test_a_batch_of_another_size_than_the_generators_is_a_mistake():
    with pytest.raises(AssertionError, match="2 generators for 3 samples"):
        Draws(0, [0, 1], "train").normal(torch.zeros(3, 1))
