"""What a data set is known by is the same wherever it lies, and another one as soon as an item is."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ditwright.codec.config import CodecConfig
from ditwright.data.base import Group, Pictures, Record
from ditwright.data.digits import digits
from ditwright.data.known import known_by
from ditwright.data.sources import open_dataset
from ditwright.prepare import PrepareConfig, prepare


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes of three pictures each."""
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 2, 3)).save(path)
    return tmp_path / "pictures"


CHANGES = {
    "one more": (lambda root: shutil.copy(root / "a/0.png", root / "a/9.png"), {"items", "sizes", "names"}),
    "one less": (lambda root: (root / "b/1.png").unlink(), {"items", "sizes", "names"}),
    "another name": (lambda root: (root / "a/1.png").rename(root / "a/9.png"), {"names"}),
    "another class": (lambda root: (root / "a/2.png").rename(root / "b/3.png"), {"names"}),
    "a class's name": (lambda root: (root / "b").rename(root / "c"), {"names"}),
    "one more class": (lambda root: shutil.copytree(root / "a", root / "c"), {"items", "sizes", "classes", "names"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_of_pictures_is_known_by_their_names(change, pictures, tmp_path):
    before = known_by(open_dataset(str(pictures), 8))
    moved = shutil.copytree(pictures, tmp_path / "elsewhere" / "moved")
    assert known_by(open_dataset(str(moved), 8)) == before
    assert (before["items"], before["sizes"], before["classes"]) == (6, {"8x8": 6}, 2)
    assert json.loads(json.dumps(before)) == before
    make, changed = CHANGES[change]
    make(moved)
    after = known_by(open_dataset(str(moved), 8))
    assert {name for name in before if before[name] != after[name]} == changed


def test_captions_and_labels_count(pictures, tmp_path):
    (root := tmp_path / "told").mkdir()
    found = []
    for text, label in (("one", 0), ("one", 1), ("two", 0), ("", 0), (None, 0)):
        rows = [{"file_name": f"{n}.png", "text": "it", "label": n} for n in range(2)]
        rows.append({"file_name": "2.png", "text": text, "label": label})
        for n in range(3):
            shutil.copy(pictures / f"a/{n}.png", root)
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(known_by(open_dataset(str(root), 8))["names"])
    assert len(set(found)) == 5


def test_tar_files_are_known_by_the_names_in_them(pictures, tmp_path):
    found = []
    for place, names in (("one", "012"), ("two", "012"), ("three", "013")):
        (tmp_path / place).mkdir()
        with tarfile.open(tmp_path / place / "all.tar", "w") as tar:
            for name in names:
                tar.add(pictures / "a/0.png", f"{name}.png")
        found.append(known_by(open_dataset(str(tmp_path / place), 8)))
    assert found[0] == found[1]
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {"names"}


class Grey:
    """Three pictures; what their own greys are depends on `first`."""

    class_names = ()

    def __init__(self, first):
        self.first = first

    def __len__(self):
        return 3

    def __getitem__(self, number):
        return Record(f"grey/{number}", lambda: np.full((8, 8, 3), self.first + number, np.uint8))


def test_prepared_shards_are_known_by_all_that_is_in_them(tmp_path):
    found = []
    for place, first in (("one", 0), ("two", 0), ("three", 7)):
        prepare(Grey(first), CodecConfig("pixels"), tmp_path / place, PrepareConfig(size=8, workers=1))
        found.append(known_by(open_dataset(str(tmp_path / place))))
    assert found[0] == found[1]
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {"names"}


def test_data_in_memory_are_known_by_their_labels_and_texts():
    data = digits()
    assert known_by(data) == known_by(digits())
    assert known_by(data)["names"] != known_by(replace(data, targets=data.targets[::-1]))["names"]
    texts = ("a",) * len(data.images)
    assert len({known_by(replace(data, texts=told))["names"] for told in ((), texts, ("b", *texts[1:]))}) == 3


def test_a_data_set_of_ones_own_is_known_by_its_numbers():
    class Own:
        class_names = ("x", "y")
        groups = (Group((8, 8), np.arange(5)), Group((8, 12), np.arange(5, 7)))
        codec = None

    known = known_by(Own())
    assert (known["items"], known["sizes"], known["classes"]) == (7, {"8x8": 5, "8x12": 2}, 2)
    few = Pictures(np.zeros((7, 8, 8, 1), np.uint8), np.zeros(7, np.int64), ("x", "y"))
    assert known["names"] != known_by(few)["names"]
