"""Data sets by name: those that are built in, and what a path stands for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ditwright.data import sources
from ditwright.data.decoded import Decoded
from ditwright.data.emoji import FONT
from ditwright.data.images import open_rgb
from ditwright.data.sources import SOURCES, is_prepared, open_dataset, open_source
from ditwright.errors import UserError

STAY = np.zeros(4, bool)
NO_FONT = pytest.mark.skipif(not FONT.is_file(), reason="the font of the emoji is not installed")
BUILT_IN = [pytest.param(name, marks=NO_FONT) if name == "emoji" else name for name in SOURCES]


@pytest.fixture
def folder(tmp_path):
    """Class folders a and b, three pictures each, of 6 x 8 pixels."""
    for n in range(6):
        (tmp_path / "set" / "ab"[n // 3]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (n, 0, 0)).save(tmp_path / "set" / "ab"[n // 3] / f"{n}.png")
    return tmp_path / "set"


def refused(words, opener, *args):
    with pytest.raises(UserError, match=words) as error:
        opener(*args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_data_set_is_pictures_labels_and_names_that_fit(name):
    data = open_dataset(name)
    assert data.codec is None
    items = np.concatenate([group.items for group in data.groups])
    assert sorted(items.tolist()) == list(range(len(items)))
    for group in data.groups:
        pictures = data.read(group.items[:4], STAY[: len(group.items[:4])])
        assert pictures.dtype == np.uint8
        assert pictures.shape[1:3] == group.size
        assert pictures.shape[3] in (1, 3)
    labels = data.labels(items)
    assert labels.dtype == np.int64
    assert set(labels.tolist()) == set(range(len(data.class_names))) or (not data.class_names and not labels.any())


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_data_set_is_a_source_too(name):
    data, source = open_dataset(name), open_source(name)
    assert source.class_names == data.class_names
    assert len(source) == sum(len(group.items) for group in data.groups)
    last = len(source) - 1
    picture = np.asarray(open_rgb(source[last].read()))
    assert np.array_equal(picture, np.broadcast_to(data.read(np.array([last]), STAY[:1])[0], picture.shape))
    assert (source[last].label or 0) == data.labels(np.array([last]))[0]
    assert source[last].caption == data.captions(np.array([last]))[0]
    assert name in source[last].name
    with pytest.raises(IndexError):
        source[len(source)]


def test_digits_use_the_whole_range_of_grey():
    data = open_dataset("digits", 8)
    assert data.images.shape == (1797, 8, 8, 1)
    assert len(np.unique(data.images)) == 17
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert data.class_names == tuple("0123456789")


def test_a_flip_mirrors_pictures_in_memory():
    data = open_dataset("digits")
    items, flips = np.array([5, 6]), np.array([False, True])
    assert np.array_equal(data.read(items, flips), np.stack((data.images[5], data.images[6][:, ::-1])))


def test_the_size_of_a_built_in_data_set_is_its_own():
    refused("'digits' has pictures of 8 x 8; leave data.image_size=16 out", open_dataset, "digits", 16)


def test_a_folder_is_read_on_the_fly(folder):
    data = open_dataset(str(folder))
    assert isinstance(data, Decoded)
    assert data.groups[0].size == (6, 8)
    assert open_dataset(str(folder), 4).groups[0].size == (4, 4)
    assert data.labels(np.arange(6)).tolist() == [0, 0, 0, 1, 1, 1]
    assert data.read(np.array([4, 1]), STAY[:2])[:, 0, 0, 0].tolist() == [4, 1]


def test_a_home_folder_may_be_short(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(open_source("~/set")) == len(open_source("flat:~/set")) == 6


def test_a_folder_may_be_called_like_a_tar_file(folder):
    assert len(open_source(str(folder.rename(folder.with_suffix(".tar"))))) == 6


def test_what_is_there_no_more_or_not_yet_is_refused_with_what_is_known(folder):
    refused(r"no data set or folder 'digitz' \(did you mean 'digits'\?\); known: digits", open_source, "digitz")
    refused("no data set or folder '/no/where'; .*hf:NAME_OR_FOLDER", open_dataset, "/no/where", 8)
    refused("'.*0.png' is a file; data come from a folder", open_source, str(folder / "a/0.png"))
    refused("no data set or folder 'flat'", open_source, "flat")
    refused("there is no tar file", open_source, str(folder / "x-{00..10}.tar"))


def test_an_empty_folder_is_refused(tmp_path):
    refused("holds no pictures", open_dataset, str(tmp_path))


def test_tar_files_beside_pictures_are_open_to_doubt(folder):
    (folder / "train.tar").touch()
    refused(r"holds tar files and '[ab]'; give '.*/\*.tar' or a folder in it", open_source, str(folder))


@pytest.mark.parametrize(
    ("index", "prepared"),
    [
        ('{"format": "ditwright-latents-1"}', True),
        ('{"format": "ditwright-latents"}', True),
        *((json.dumps(other), False) for other in ({}, [], {"format": 1}, {"format": "wids"})),
        ("{half", False),
        (b"\xff\xfe", False),
    ],
)
@pytest.mark.parametrize("file", ["index.json", "settings.json"])
def test_a_prepared_folder_is_known_by_its_files(folder, file, index, prepared):
    (folder / file).write_bytes(index if isinstance(index, bytes) else index.encode())
    assert is_prepared(folder) == prepared
    if prepared:
        refused("is prepared already", open_source, str(folder))
    else:
        assert len(open_source(str(folder))) == 6


def test_a_prepared_folder_is_read_by_its_own_reader(folder, monkeypatch):
    (folder / "index.json").write_text('{"format": "ditwright-latents-1"}')
    made = open_dataset("digits")
    monkeypatch.setattr(sources, "Shards", lambda path: made if path == folder else pytest.fail("another folder"))
    assert open_dataset(str(folder)) is made
    assert open_dataset(str(folder), 8) is made
    refused("has pictures of 8 x 8; leave data.image_size=16 out", open_dataset, str(folder), 16)
