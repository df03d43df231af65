"""Python iterables as sources."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ditwright.data.base import Record
from ditwright.data.images import open_rgb
from ditwright.data.streams import Stream
from ditwright.errors import UserError

PICTURE = np.full((2, 3, 3), 9, np.uint8)


def test_every_kind_of_item(tmp_path):
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    (tmp_path / "x.png").write_bytes(file.getvalue())
    own = Record("mine", lambda: PICTURE, 1, "own")
    items = [
        *(PICTURE, Image.fromarray(PICTURE), file.getvalue(), tmp_path / "x.png", str(tmp_path / "x.png")),
        *((PICTURE, 3), (PICTURE, np.int64(2)), (PICTURE, None)),
        *({"image": PICTURE, "label": 4, "text": "a"}, {"image": PICTURE, "caption": "b"}, own),
    ]
    records = list(Stream(iter(items)))
    assert all(np.array_equal(open_rgb(record.read()), PICTURE) for record in records)
    assert [record.label for record in records] == [*[None] * 5, 3, 2, None, 4, None, 1]
    assert [record.caption for record in records] == [*[None] * 8, "a", "b", "own"]
    assert [records[0].name, records[3].name, records[10].name] == ["item 0", str(tmp_path / "x.png"), "mine"]


def test_items_are_taken_one_at_a_time():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield PICTURE

    walk = iter(Stream(endless()))
    assert [next(walk).name for _ in range(3)] == ["item 0", "item 1", "item 2"]
    assert len(taken) == 3


def test_labels_may_be_class_names():
    labels = [record.label for record in Stream([(PICTURE, "b"), (PICTURE, 0)], ("a", "b"))]
    assert labels == [1, 0]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (3, "item 1 of the iterable is of type int; wanted is a picture"),
        ({"pixels": PICTURE}, "item 1 of the iterable is of type NoneType"),
        ((PICTURE, 1, 2), "of type tuple"),
        ((PICTURE, "c"), "has the label 'c'; wanted is 0 ... 1 or one of the class names"),
        ((PICTURE, 2), "has the label 2; wanted is 0 ... 1"),
        ((PICTURE, -1), "has the label -1"),
        ((PICTURE, True), "has the label True"),
        ((PICTURE, 0.5), "has the label 0.5"),
        ({"image": PICTURE, "text": 3}, "a text is wanted; got 3"),
    ],
)
def test_other_items_are_refused_by_number(item, words):
    with pytest.raises(UserError, match=words):
        list(Stream([PICTURE, item], ("a", "b")))
