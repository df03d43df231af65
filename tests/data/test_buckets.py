"""Aspect-ratio buckets: their sizes, and which picture goes where or nowhere."""

from __future__ import annotations

import math

import pytest

from ditwright.data.buckets import Buckets, Dropped, TooLong, TooSmall
from ditwright.errors import UserError

ALL = [Buckets(256), Buckets(512), Buckets(1024, 64, 4.0), Buckets(96, 8, 3.0), Buckets(64, 64), Buckets(256, 32, 1.0)]


@pytest.mark.parametrize("buckets", ALL)
def test_sizes_are_multiples_of_the_step_of_about_one_area(buckets):
    for height, width in buckets.sizes:
        assert height % buckets.step == width % buckets.step == 0
        assert max(height, width) / min(height, width) <= buckets.max_aspect
        off = min(abs(buckets.side**2 / height - width), abs(buckets.side**2 / width - height))
        assert off <= buckets.step / 2
        assert (width, height) in buckets.sizes
    assert (buckets.side, buckets.side) in buckets.sizes
    ratios = [height / width for height, width in buckets.sizes]
    assert ratios == sorted(set(ratios))


def test_known_sizes():
    assert Buckets(512).sizes == (
        *((384, 704), (384, 640), (448, 576), (512, 512)),
        *((576, 448), (640, 384), (704, 384)),
    )
    assert Buckets(256, 64, 1.0).sizes == ((256, 256),)


@pytest.mark.parametrize("buckets", ALL)
@pytest.mark.parametrize("times", [1, 2, 7])
def test_a_size_is_its_own_bucket(buckets, times):
    for height, width in buckets.sizes:
        assert buckets.assign(times * height, times * width) == (height, width)


def test_a_picture_goes_to_the_nearest_ratio():
    buckets = Buckets(512)
    for height, width in [(3000, 2000), (2000, 3000), (1080, 1920), (4000, 3001), (999, 1000), (1138, 1000)]:
        best = buckets.assign(height, width)
        distance = {size: abs(math.log(height / width / (size[0] / size[1]))) for size in buckets.sizes}
        assert distance[best] == min(distance.values())


def test_what_would_be_enlarged_is_dropped_unless_asked_for():
    assert Buckets(512).assign(512, 512) == (512, 512)
    for height, width in [(511, 512), (512, 511), (100, 100)]:
        with pytest.raises(TooSmall, match=f"is {height} x {width}, smaller than its bucket of 512 x 512"):
            Buckets(512).assign(height, width)
        assert Buckets(512, enlarge=True).assign(height, width) == (512, 512)


def test_what_is_too_long_is_dropped_but_not_by_a_pixel():
    buckets = Buckets(512)
    for height, width in [(999, 2000), (2000, 999), (1000, 2150)]:
        assert buckets.assign(height, width) in ((384, 704), (704, 384))
    for height, width in [(1000, 2200), (2200, 1000)]:
        with pytest.raises(TooLong, match=f"is {height} x {width}, 2.2 to 1; buckets go to 2 to 1"):
            buckets.assign(height, width)
    assert issubclass(TooLong, Dropped)


@pytest.mark.parametrize("wrong", [(250, 64), (0, 64), (256, 0), (256, 64, 0.5), (256, 64, math.nan)])
def test_buckets_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match=r"side that is a multiple|max_aspect must be"):
        Buckets(*wrong)
