"""Data sets of Hugging Face's library, all of them on this machine."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ditwright.data.images import Unreadable, open_rgb
from ditwright.data.sources import open_source
from ditwright.errors import UserError

datasets = pytest.importorskip("datasets")
hub_constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Caches in a folder that goes, no network, no bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def pictures(count):
    return [Image.new("RGB", (5, 4), (n, 0, 0)) for n in range(count)]


def saved(path, columns, **kinds):
    """A folder of `save_to_disk` with a column `image`; kinds={"label": ClassLabel(...)}."""
    count = len(next(iter(columns.values()))) if columns else 3
    data = datasets.Dataset.from_dict({"image": pictures(count), **columns})
    for column, kind in {"image": datasets.Image(), **kinds}.items():
        data = data.cast_column(column, kind)
    data.save_to_disk(path)
    return f"hf:{path}"


def rows(source):
    return [(source[n].label, source[n].caption) for n in range(len(source))]


def test_a_saved_data_set(tmp_path):
    labels = datasets.ClassLabel(names=["cat", "dog", "eel"])
    source = open_source(saved(tmp_path / "d", {"label": [1, 0, 1], "text": ["x", "y", "z"]}, label=labels))
    assert source.class_names == ("cat", "dog", "eel")
    assert rows(source) == [(1, "x"), (0, "y"), (1, "z")]
    assert [open_rgb(source[n].read()).getpixel((0, 0)) for n in (2, 0)] == [(2, 0, 0), (0, 0, 0)]
    assert isinstance(source[0].read(), bytes)
    assert source[2].name == f"hf:{tmp_path / 'd'} row 2"


def test_without_labels_there_are_no_classes(tmp_path):
    source = open_source(saved(tmp_path / "d", {}))
    assert source.class_names == ()
    assert rows(source) == [(None, None)] * 3
    assert rows(open_source(saved(tmp_path / "e", {"label": [0, 1, 2]}) + ":label=none")) == [(None, None)] * 3


def test_numbers_and_names_are_labels_too(tmp_path):
    assert open_source(saved(tmp_path / "d", {"label": [2, 0, 1]})).class_names == ("0", "1", "2")
    assert rows(open_source(saved(tmp_path / "e", {"label": ["b", "a", "b"]}))) == [(1, None), (0, None), (1, None)]


def test_columns_of_other_names_are_chosen(tmp_path):
    two = datasets.ClassLabel(names=["a", "b"])
    columns = {"fine": [0, 1], "coarse": [1, 1], "story": ["x", "y"], "text": ["no", "no"]}
    name = saved(tmp_path / "d", columns, fine=two, coarse=two)
    with pytest.raises(UserError, match=r"several label columns, fine, coarse; choose: .*:label=fine"):
        open_source(name)
    assert rows(open_source(f"{name}:label=fine:text=story")) == [(0, "x"), (1, "y")]
    with pytest.raises(UserError, match=r"unknown column of .* 'stroy'.*did you mean 'story'"):
        open_source(f"{name}:label=fine:text=stroy")
    with pytest.raises(UserError, match="'coarse' is not a column of text; those are story, text"):
        open_source(f"{name}:label=fine:text=coarse")
    assert open_source(f"{name}:label=fine:text=none").captions == [None, None]
    assert open_source(f"{name}:label=fine").columns == ("story", "text")
    with pytest.raises(UserError, match="unknown option 'labels'"):
        open_source(f"{name}:labels=fine")


def test_splits(tmp_path):
    parts = {split: datasets.Dataset.from_dict({"image": pictures(n)}) for split, n in {"test": 3, "train": 2}.items()}
    datasets.DatasetDict(parts).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "d")
    assert [len(open_source(f"hf:{tmp_path}/d{split}")) for split in ("", ":train", ":test")] == [2, 2, 3]
    with pytest.raises(UserError, match=r"unknown split of .* 'tset'; known: test, train \(did you mean 'test'"):
        open_source(f"hf:{tmp_path}/d:tset")
    with pytest.raises(UserError, match="saved without splits; leave 'test' out"):
        open_source(saved(tmp_path / "e", {}) + ":test")


def test_an_imagefolder_is_read_offline(tmp_path):
    for n in range(3):
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.new("RGB", (5, 4), (n, 0, 0)).save(tmp_path / f"d/{n}.png")
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"caption {n}"}) for n in range(3)]
    (tmp_path / "d/metadata.jsonl").write_text("\n".join(lines))
    source = open_source(f"hf:{tmp_path}/d")
    assert sorted(caption for _, caption in rows(source)) == ["caption 0", "caption 1", "caption 2"]
    for n in range(3):
        assert open_rgb(source[n].read()).getpixel((0, 0))[0] == int(source[n].caption[-1])


@pytest.mark.parametrize(
    ("columns", "kinds", "words"),
    [
        ({"label": [0, -1]}, {"label": datasets.ClassLabel(2)}, "row 1 has no label, as in test splits; .*:label=none"),
        ({"label": [0, 0]}, {"label": datasets.ClassLabel(1)}, "one class only, '0'; .*:label=none"),
        ({"label": [3, 3]}, {}, "row 0 and all others are of one class, '3'"),
        ({"other": pictures(2)}, {"other": datasets.Image()}, None),
    ],
)
def test_what_is_wrong_in_a_data_set_is_named(tmp_path, columns, kinds, words):
    name = saved(tmp_path / "d", columns, **kinds)
    if words is None:  # "image" is the usual name: not open to doubt
        assert len(open_source(name)) == 2
        assert np.array_equal(open_rgb(open_source(f"{name}:image=other")[1].read()), pictures(2)[1])
        return
    with pytest.raises(UserError, match=words):
        open_source(name)


def test_a_data_set_without_pictures_or_rows_is_refused(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="needs a column of pictures; it has text"):
        open_source(f"hf:{tmp_path}/d")
    with pytest.raises(UserError, match="finds no data set with rows in"):
        open_source(saved(tmp_path / "e", {"label": []}))
    empty = datasets.Dataset.from_dict({"image": []})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(test=empty))
    with pytest.raises(UserError, match="holds no rows"):
        open_source("hf:someone/nothing")


def test_a_missing_picture_is_unreadable(tmp_path):
    data = datasets.Dataset.from_dict({"image": [pictures(1)[0], None]}).cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path / "d")
    with pytest.raises(Unreadable, match="is missing"):
        open_source(f"hf:{tmp_path}/d")[1].read()


def test_a_hub_name_offline_says_what_to_put_where():
    with pytest.raises(
        UserError, match=r"without the network .*load_dataset\('someone/things'\).*save_to_disk.*hf:FOLDER"
    ):
        open_source("hf:someone/things")
    with pytest.raises(UserError, match=r"there is no folder './nowhere'"):
        open_source("hf:./nowhere")
    with pytest.raises(UserError, match="should read hf:NAME"):
        open_source("hf:a:b:c")
