"""WebDataset shards, as the webdataset library writes them, read in any order; and shards that are damaged."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ditwright.data.images import Unreadable, open_rgb
from ditwright.data.sources import open_source
from ditwright.data.webdataset import open_tars, shards_of
from ditwright.errors import UserError


def picture(n, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (n, 0, 0)).save(file, kind)
    return file.getvalue()


def write(path, members):
    """A tar file byte for byte as told: [(name, bytes), ...]."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def facts(source):
    return [(source[n].label, source[n].caption) for n in range(len(source))]


def test_shards_of_the_library_itself(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/train-%03d.tar", maxcount=10, verbose=0) as shards:
        for n in range(25):
            image = np.full((4, 5, 3), n, np.uint8)
            shards.write({"__key__": f"sample{n:04d}", "png": image, "cls": n % 3, "txt": f"caption {n}"})
    for name in (tmp_path, f"{tmp_path}/train-{{000..002}}.tar", f"{tmp_path}/train-*.tar"):
        source = open_source(str(name))
        assert source.class_names == ("0", "1", "2")
        assert facts(source) == [(n % 3, f"caption {n}") for n in range(25)]
    with ThreadPoolExecutor(4) as pool:
        order = np.random.default_rng(0).permutation(25).tolist() * 4
        values = list(pool.map(lambda n: open_rgb(source[n].read()).getpixel((0, 0))[0], order))
    assert values == order
    assert source[12].name == f"{tmp_path}/train-001.tar:sample0012.png"


def test_labels_and_captions_may_be_in_json(tmp_path):
    rows = [{"label": "dog", "caption": "a"}, {"label": "cat", "text": "b"}, {"label": "dog"}]
    members = []
    for n, row in enumerate(rows):
        members += [(f"{n}.json", json.dumps(row).encode()), (f"{n}.jpg", picture(n, "JPEG"))]
    source = open_tars([write(tmp_path / "x.tar", members)])
    assert source.class_names == ("cat", "dog")
    assert facts(source) == [(1, "a"), (0, "b"), (1, None)]


def test_a_file_of_its_own_says_more_than_json(tmp_path):
    told = json.dumps({"label": 5, "caption": "no"}).encode()
    members = [("a.json", told), ("a.cls", b"1\n"), ("a.txt", b"yes\n"), ("a.webp", picture(0, "WEBP"))]
    members += [("b.png", picture(1)), ("b.cls", b"0")]
    source = open_tars([write(tmp_path / "x.tar", members)])
    assert facts(source) == [(1, "yes"), (0, None)]


def test_names_of_every_kind(tmp_path):
    """Long names, folders, several dots, capital extensions; what is no picture, or a link, is no sample."""
    long = "deep/" * 40 + "x"
    members = [
        *((f"{long}.PNG", picture(1)), ("./a.b/c.png", picture(2)), ("a.b/c.seg.png", picture(9))),
        *(("README", b"hello"), ("a.b/.hidden.png", picture(9)), ("d.npy", b"..."), ("e.png", picture(3))),
    ]
    shard = write(tmp_path / "x.tar", members)
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "e.png"
        tar.addfile(link)
    source = open_tars([shard])
    assert [open_rgb(source[n].read()).getpixel((0, 0))[0] for n in range(len(source))] == [1, 2, 3]
    assert source.class_names == ()
    assert source[0].label is None


def test_a_sample_without_its_picture_is_not_lost_silently(tmp_path):
    members = [("a.txt", b"only words"), ("b.png", b""), ("b.txt", b"empty"), ("c.png", picture(0))]
    source = open_tars([write(tmp_path / "x.tar", members)])
    assert [caption for _, caption in facts(source)] == ["only words", "empty", None]
    for n in (0, 1):
        with pytest.raises(Unreadable, match="has no picture"):
            source[n].read()


def test_a_shard_that_shrank_since_is_noticed(tmp_path):
    shard = write(tmp_path / "x.tar", [("a.png", picture(0)), ("b.png", picture(1))])
    source = open_tars([shard])
    shard.write_bytes(shard.read_bytes()[: 512 + len(picture(0)) - 1])
    with pytest.raises(Unreadable, match="truncated"):
        source[0].read()
    shard.unlink()
    with pytest.raises(Unreadable, match="cannot be read"):
        source[0].read()


def test_a_truncated_shard_is_named_wherever_it_was_cut(tmp_path):
    whole = write(tmp_path / "whole.tar", [("a.png", picture(0)), ("b.png", picture(1)), ("b.txt", b"0")]).read_bytes()
    marked = 5 * 512 + 512  # three headers, three contents, then the mark of the end
    assert whole[marked : marked + 512] == bytes(512)
    assert whole[marked - 512]
    cut = tmp_path / "cut.tar"
    for length in [0, 1, 511, 512, 513, 700, 1024, 1536, 1700, 2048, 2560, marked - 1, marked, marked + 100]:
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut.tar' is not a whole, uncompressed .tar file"):
            open_tars([cut])
    cut.write_bytes(whole[: marked + 512])
    assert len(open_tars([cut])) == 2


def test_damage_inside_a_shard_is_not_its_end(tmp_path):
    shard = write(tmp_path / "x.tar", [("a.png", picture(0)), ("b.png", picture(1)), ("c.png", picture(1))])
    harmed = bytearray(shard.read_bytes())
    harmed[1024:1100] = b"#" * 76  # the header of b.png
    shard.write_bytes(harmed)
    with pytest.raises(UserError, match=r"not a whole, uncompressed .tar file \(no mark of its end at byte 1024\)"):
        open_tars([shard])


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.txt", b"words")], "holds no pictures"),
        ([], "holds no pictures"),
        ([("a.png", picture(0)), ("a.json", b"{")], "'a' has a .json that is not JSON"),
        ([("a.png", picture(0)), ("a.json", b"[1]")], "'a' has a .json that is not an object"),
        ([("a.png", picture(0)), ("a.json", b'{"caption": 3}')], "a caption is text; got 3"),
        ([("a.png", picture(0)), ("a.cls", b"1"), ("b.png", picture(0))], "'b.png' has no label"),
        ([("a.png", picture(0)), ("a.cls", b"1"), ("b.png", picture(0)), ("b.cls", b"1")], "of one class, '1'"),
    ],
)
def test_what_is_wrong_in_a_shard_is_named(tmp_path, members, words):
    with pytest.raises(UserError, match=words) as error:
        open_tars([write(tmp_path / "bad.tar", members)])
    assert "bad.tar" in str(error.value)


def test_a_compressed_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(UserError, match="uncompressed"):
        open_tars([tmp_path / "x.tar"])


def test_patterns_name_files(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-09.tar", "odd{1}.tar"):
        (tmp_path / name).touch()

    def names(pattern):
        return [path.name for path in shards_of(f"{tmp_path}/{pattern}")]

    assert names("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert names("{b,a}-09.tar") == ["b-09.tar", "a-09.tar"]
    assert names("?-09.tar") == ["a-09.tar", "b-09.tar"]
    assert names("a-{08..09}.{tar}") == ["a-08.tar", "a-09.tar"]
    assert names("odd{1}.tar") == ["odd{1}.tar"]
    for missing in ("a-{08..11}.tar", "c.tar", "c-*.tar"):
        with pytest.raises(UserError, match="there is no tar file"):
            names(missing)


def test_captions_may_be_in_a_file_or_a_key_of_another_name(tmp_path):
    told = json.dumps({"caption": "no", "story": "key", "stars": 5, "tale": "b"}).encode()
    members = [("a.png", picture(0)), ("a.json", told), ("a.txt", b"no"), ("b.png", picture(1)), ("b.story", b"file")]
    name = str(write(tmp_path / "x.tar", members))
    assert [caption for _, caption in facts(open_source(name))] == ["no", None]
    assert [caption for _, caption in facts(open_source(f"{name}:text=story"))] == ["key", "file"]
    assert [caption for _, caption in facts(open_source(f"{tmp_path}:text=tale"))] == ["b", None]
    assert [caption for _, caption in facts(open_source(f"{tmp_path}:text=none"))] == [None, None]
    assert open_source(name).columns == ("txt", "caption", "story", "tale")
    for asked, words in (
        (
            "stroy",
            r"unknown extension or .json key of .*x.tar' 'stroy'; known: caption, stars, story, tale, txt .did you",
        ),
        ("png", r"unknown extension or .json key of .*x.tar' 'png'"),
        ("stars", r"x.tar': 'a': a caption is text; got 5"),
    ):
        with pytest.raises(UserError, match=words) as error:
            open_source(f"{name}:text={asked}")
        assert "\n" not in str(error.value)
