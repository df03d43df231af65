"""Pictures decoded on the fly, as training reads them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ditwright.data.base import Record
from ditwright.data.decoded import Decoded
from ditwright.data.images import centre_crop
from ditwright.errors import UserError

RNG = np.random.default_rng(0)
ONE_WAY = np.zeros(8, bool)


class Held:
    """A source of arrays as PNG files, which counts how often they are read."""

    def __init__(self, arrays, class_names=("a", "b", "c")):
        self.class_names, self.files, self.reads = class_names, [], 0
        for array in arrays:
            file = io.BytesIO()
            Image.fromarray(array).save(file, "PNG")
            self.files.append(file.getvalue())

    def __len__(self):
        return len(self.files)

    def __getitem__(self, number):
        return Record(f"picture-{number}", lambda: self.read(number), number % 3 if self.class_names else None)

    def read(self, number):
        self.reads += 1
        return self.files[number]


def arrays(count, height=6, width=9):
    return RNG.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_pictures_of_one_size_come_as_they_are():
    pictures = arrays(20)
    data = Decoded(Held(pictures))
    (group,) = data.groups
    assert group.size == (6, 9)
    assert group.items.tolist() == list(range(20))
    assert data.codec is None
    items = np.array([3, 19, 0, 3])
    assert np.array_equal(data.read(items, ONE_WAY[:4]), pictures[items])
    assert data.labels(items).tolist() == [0, 1, 0, 0]
    assert data.labels(items).dtype == np.int64


def test_a_flip_mirrors_left_and_right_and_that_picture_only():
    pictures = arrays(3)
    got = Decoded(Held(pictures)).read(np.arange(3), np.array([False, True, False]))
    assert np.array_equal(got, np.stack((pictures[0], pictures[1][:, ::-1], pictures[2])))


def test_pictures_of_many_sizes_are_cropped():
    pictures = [RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(40, 30), (8, 100), (16, 16)]]
    data = Decoded(Held(pictures), 16)
    assert data.groups[0].size == (16, 16)
    expected = np.stack([centre_crop(Image.fromarray(picture), 16) for picture in pictures])
    assert np.array_equal(data.read(np.arange(3), ONE_WAY[:3]), expected)


def test_what_has_no_classes_has_label_zero():
    data = Decoded(Held(arrays(4), ()))
    assert data.class_names == ()
    assert data.labels(np.arange(4)).tolist() == [0, 0, 0, 0]


def test_mixed_sizes_are_refused_at_the_start_naming_two():
    mixed = [*arrays(5), *arrays(5, 9, 6)]
    with pytest.raises(UserError, match=r"'picture-0' is 6 x 9, 'picture-5' is 9 x 6; .*image_size N.*--buckets"):
        Decoded(Held(mixed))


def test_a_size_that_hid_is_refused_when_it_is_read():
    hidden = list(arrays(1000, 2, 2))
    hidden[17] = arrays(1, 3, 2)[0]
    source = Held(hidden)
    data = Decoded(source)
    assert source.reads <= 20  # a million files would not be opened either
    with pytest.raises(UserError, match="'picture-0' is 2 x 2, 'picture-17' is 3 x 2"):
        data.read(np.array([16, 17]), ONE_WAY[:2])


@pytest.mark.parametrize("size", [None, 4])
def test_an_unreadable_picture_is_named_with_what_to_do(size):
    source = Held(arrays(100))
    source.files[50] = source.files[50][:100]
    data = Decoded(source, size)
    with pytest.raises(UserError, match="'picture-50' is truncated; `ditwright prepare` skips and lists such pictures"):
        data.read(np.array([49, 50]), ONE_WAY[:2])
    source.files[0] = b""
    with pytest.raises(UserError, match="'picture-0' is empty"):
        Decoded(source).read(np.array([0]), ONE_WAY[:1])


def test_threads_change_nothing():
    pictures = arrays(50)
    items = RNG.permutation(50)
    batches = [Decoded(Held(pictures), 5, threads=n).read(items, items % 2 == 0) for n in (1, 7)]
    assert np.array_equal(*batches)
