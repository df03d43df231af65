"""The judge of the demo: right on what is right, wrong on what is wrong."""

import numpy as np
import pytest

from ditwright.data.digits import digits
from ditwright.metrics.classes import nearest_real_ratio, spread, train_judge


@pytest.fixture(scope="module")
def real():
    return digits()


def test_the_judge_knows_real_digits_and_only_their_labels(real):
    judge = train_judge(real.images, real.targets)
    assert judge.real_accuracy >= 0.97
    assert judge.accuracy(real.images, real.targets) >= judge.real_accuracy
    assert judge.accuracy(real.images, (real.targets + 1) % 10) < 0.02


def test_spread_is_the_standard_deviation_around_the_mean_of_a_class(real):
    labels = np.array([3, 3, 5, 5])
    images = np.zeros((4, 2, 2, 1), np.uint8)
    images[1] = 255
    assert spread(images, labels) == {3: 0.5, 5: 0.0}
    collapsed = np.repeat(real.images[:1], 50, 0)
    assert spread(collapsed, np.zeros(50, int)) == {0: pytest.approx(0, abs=1e-12)}


def test_the_distance_to_real_is_0_for_copies_and_1_for_other_real_digits(real):
    assert nearest_real_ratio(real.images[:100], real.images) == 0
    assert nearest_real_ratio(real.images[1::2], real.images[::2]) == pytest.approx(1, abs=0.05)
    noise = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
    assert nearest_real_ratio(noise, real.images) > 1.5
