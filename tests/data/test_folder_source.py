"""Folders of pictures: classes, pictures alone, metadata.jsonl; and all that can be wrong with them."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from ditwright.data.folder import open_flat, open_folder
from ditwright.data.images import Unreadable, open_rgb
from ditwright.data.sources import open_source
from ditwright.errors import UserError


@pytest.fixture
def fill(tmp_path):
    """fill("a/x.png", "b/y.png") makes those pictures, each of a grey of its own, and returns their folder."""

    def make(*files):
        for n, file in enumerate(files):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 3), n).save(tmp_path / file)
        return tmp_path

    return make


def refused(folder, words, opener=open_folder):
    with pytest.raises(UserError, match=words) as error:
        opener(folder)
    assert "\n" not in str(error.value)


def listed(source):
    records = [source[n] for n in range(len(source))]
    return [(record.name.removeprefix(f"{source.root}/"), record.label) for record in records]


def test_class_folders_are_classes_in_the_order_of_their_names(fill):
    root = fill("b/2.png", "b/10.PNG", "a-b/x.jpg", "a/deep/er/z.webp", "a/y.JPEG")
    source = open_folder(root)
    assert source.class_names == ("a", "a-b", "b")
    assert listed(source) == [
        *(("a/deep/er/z.webp", 0), ("a/y.JPEG", 0)),
        *(("a-b/x.jpg", 1), ("b/10.PNG", 2), ("b/2.png", 2)),
    ]
    assert open_rgb(source[4].read()).getpixel((0, 0)) == (0, 0, 0)
    assert source[4].caption is None


def test_hidden_files_are_no_pictures_and_others_are_counted(fill):
    root = fill("a/x.png", "b/y.png", "b/._y.png", ".cache/z.png", "a/.trash/w.png")
    for file in ("a/x.npy", "b/y.NPY", "notes"):
        (root / file).write_text("")
    source = open_folder(root)
    assert len(source) == 2
    assert source.ignored == {".npy": 2, "": 1}


def test_pictures_alone_have_no_classes(fill):
    source = open_folder(fill("y.png", "x.png"))
    assert source.class_names == ()
    assert listed(source) == [("x.png", None), ("y.png", None)]


def test_flat_takes_everything_without_classes(fill):
    root = fill("00/x.png", "01/y.png", "z.png")
    assert listed(open_flat(root)) == [("00/x.png", None), ("01/y.png", None), ("z.png", None)]
    assert len(open_source(f"flat:{root}")) == 3


def test_links_are_followed_once_around(fill, tmp_path_factory):
    root, other = fill("a/x.png", "b/y.png"), tmp_path_factory.mktemp("other")
    Image.new("L", (2, 2)).save(other / "w.png")
    os.symlink(other, root / "c")
    os.symlink(root, other / "back")
    os.symlink(root / "nowhere.png", root / "a/dead.png")
    source = open_folder(root)
    assert listed(source)[:3] == [("a/dead.png", 0), ("a/x.png", 0), ("b/y.png", 1)]
    assert [name for name, label in listed(source) if label == 2].count("c/w.png") == 1
    assert len(source) < 20
    with pytest.raises(Unreadable, match="cannot be read"):
        source[0].read()


def test_a_link_to_the_folder_itself_adds_no_picture(fill):
    root = fill("x.png", "a/y.png")
    for place in (root / "loop", root / "a/loop"):
        os.symlink(root, place)
    assert listed(open_source(f"flat:{root}")) == [("a/y.png", None), ("x.png", None)]


def test_what_a_folder_could_mean_is_asked(fill):
    refused(fill("a/x.png"), "one class only, 'a'; for pictures without classes use '.*/a'")
    refused(fill("train/a/x.png", "val/a/y.png", "a/x.png").joinpath("train"), "one class only")
    root = fill("b/y.png")
    (root / "empty").mkdir()
    refused(root, "without pictures, 'empty' first")
    refused(fill("loose.png"), r"holds pictures \('loose.png'\) and folders of pictures \('a'\)")


def test_splits_are_not_taken_for_classes(fill):
    refused(fill("train/a/x.png", "val/a/y.png"), "holds splits, not classes; use one of them, such as '.*/train'")


def test_no_pictures_is_an_error_that_says_what_was_looked_for(tmp_path):
    refused(tmp_path, "holds no pictures; pictures are jpg, jpeg,")
    (tmp_path / "a.npy").touch()
    refused(tmp_path, "holds no pictures among 1 files")


def described(root, *rows):
    (root / "metadata.jsonl").write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return root


def test_metadata_gives_captions_and_labels_by_name(fill):
    rows = [
        {"file_name": "x.png", "text": "a ü", "label": "dog"},
        "",
        {"file_name": "deep/y.png", "caption": "b", "label": "cat", "other": [1]},
        {"file_name": "deep/y.png", "label": "dog"},
    ]
    source = open_folder(described(fill("x.png", "deep/y.png", "unlisted.png"), *rows))
    assert source.class_names == ("cat", "dog")
    assert [(r.label, r.caption) for r in map(source.__getitem__, range(3))] == [(1, "a ü"), (0, "b"), (1, None)]
    assert open_rgb(source[1].read()).getpixel((0, 0)) == (1, 1, 1)


def test_metadata_may_number_the_classes_or_have_none(fill):
    root = fill("x.png", "y.png")
    numbers = open_folder(described(root, {"file_name": "x.png", "label": 3}, {"file_name": "y.png", "label": 0}))
    assert numbers.class_names == ("0", "1", "2", "3")
    assert numbers.targets.tolist() == [3, 0]
    none = open_folder(described(root, {"file_name": "x.png", "text": "a"}, {"file_name": "y.png"}))
    assert none.class_names == ()
    assert [none[0].label, none[0].caption, none[1].caption] == [None, "a", None]


GOOD = {"file_name": "x.png", "label": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{nonsense", "is not JSON"),
        ("[1]", 'must be an object with "file_name"'),
        ({"text": "a"}, 'must be an object with "file_name"'),
        ({"file_name": 3}, 'must be an object with "file_name"'),
        ({"file_name": "gone.png"}, "there is no 'gone.png'"),
        ({"file_name": "../x.png"}, "must lie in the folder"),
        ({"file_name": "/etc/passwd"}, "must lie in the folder"),
        ({"file_name": "x.png", "text": 3}, "text must be text; got 3"),
        ({"file_name": "x.png"}, "has no label, but others have"),
        ({"file_name": "x.png", "label": -1}, "number the classes from 0; got -1"),
        ({"file_name": "x.png", "label": True}, "whole number or a name; got True"),
        ({"file_name": "x.png", "label": 1.5}, "whole number or a name; got 1.5"),
        ({"file_name": "x.png", "label": "dog"}, "numbers or names, not both: line 1 .* and line 3"),
    ],
)
def test_a_bad_line_of_metadata_is_named(fill, line, words):
    refused(described(fill("x.png"), GOOD, "", line), words)
    refused(described(fill("x.png"), GOOD, "", line), "line 3 of '.*metadata.jsonl'")


def test_metadata_of_one_class_or_nothing_is_refused(fill):
    refused(described(fill("x.png"), GOOD, GOOD), "line 1 .* are of one class, '1'; leave the labels out")
    refused(described(fill("x.png")), "names no pictures")
    (fill("x.png") / "metadata.jsonl").write_bytes(b'{"file_name": "\xff"}')
    refused(fill("x.png"), "is not UTF-8")


def test_captions_may_be_in_a_field_of_another_name(fill):
    rows = [{"file_name": "x.png", "text": "no", "story": "a", "n": 3}, {"file_name": "y.png", "text": "no"}]
    root = described(fill("x.png", "y.png"), *rows)
    source = open_source(f"{root}:text=story")
    assert [source[0].caption, source[1].caption] == ["a", None]
    assert source.columns == ("text", "story")
    assert [record.caption for record in map(open_source(f"{root}:text=none").__getitem__, range(2))] == [None, None]
    known = "known: file_name, n, story, text .did you mean 'story'"
    refused(f"{root}:text=stroy", f"unknown field of '.*metadata.jsonl' 'stroy'; {known}", open_source)
    refused(f"{root}:text=n", "line 1 of '.*metadata.jsonl': n must be text; got 3", open_source)
    refused(f"{root}:text=", "captions are told as .*:text=NAME", open_source)


def test_a_field_where_there_is_none_to_name_is_refused(fill):
    root = fill("a/x.png", "b/y.png")
    refused(
        f"{root}:text=story", "has no metadata.jsonl, from which to take 'story'; .* leave :text=story out", open_source
    )
    refused(
        f"flat:{root}:text=story", "flat: takes pictures alone, without captions; leave :text=story out", open_source
    )
    refused("digits:text=story", "'digits' has captions of its own, or none; leave :text=story out", open_source)


def test_a_folder_may_be_called_like_a_choice_of_a_field(fill):
    assert len(open_source(str(fill("odd:text=x/1.png") / "odd:text=x"))) == 1
