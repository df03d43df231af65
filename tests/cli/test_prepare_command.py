"""`ditwright prepare`: what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditwright.data.shards import Shards


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of pictures of several sizes and kinds, and two files that are none."""
    folder = tmp_path / "pictures"
    kinds = [
        ("a/grey.png", Image.new("L", (40, 40), 90)),
        ("a/cmyk.jpg", Image.new("CMYK", (40, 60), "navy")),
        ("a/clear.png", Image.new("RGBA", (60, 40), (0, 0, 0, 0))),
        ("a/wide.png", Image.new("RGB", (3000, 10), "red")),
        ("b/deep.png", Image.fromarray(np.full((40, 40), 40000, np.uint16))),
        ("b/palette.gif", Image.new("P", (44, 44), 3)),
    ]
    for name, image in kinds:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    (folder / "b" / "empty.png").touch()
    (folder / "b" / "text.jpg").write_text("hello")
    return folder


def test_a_folder_becomes_shards(command, pictures, tmp_path):
    words = ["prepare", pictures, "--codec", "pixels", "--size", "32", "--output", tmp_path / "out"]
    code, out, err = command(*words, "--max-corrupt", "0.3")
    assert (code, err) == (0, "")
    report = tmp_path / "out" / "report.txt"
    assert out.splitlines() == [
        f"6 pictures in 1 shard in {tmp_path / 'out'}",
        f"left out: 2 corrupt; {report} names them",
        f"to train: ditwright train RECIPE --data.source {tmp_path / 'out'}",
    ]
    assert f"  {pictures / 'b/empty.png'} is empty\n" in report.read_text()
    assert "text.jpg is not a picture" in report.read_text()
    shards = Shards(tmp_path / "out")
    assert shards.class_names == ("a", "b")
    assert shards.labels(np.arange(6)).tolist() == [0, 0, 0, 0, 1, 1]
    names = [Path(facts["name"]).name for facts in shards.facts(np.arange(6))]
    deep = shards.read(np.array([names.index("deep.png")]), np.array([True]))
    assert np.unique(deep).tolist() == [round(40000 / 257)]
    assert command(*words, "--max-corrupt", "0.3").out == out  # it is done: nothing changes
    assert "every byte is as it was written" in command("prepare", "--verify", "--output", tmp_path / "out").out


def test_a_dry_run_counts_and_writes_nothing(command, pictures, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = command("prepare", pictures, "--size", "32", "--buckets", "--bucket-step", "8", "--dry-run")
    assert code == 0
    assert "8 pictures: 5 used, 3 left out" in out
    assert "left out, corrupt: 2 (25 %)" in out
    assert f"left out, too long: 1 (12 %)\n  {pictures / 'a/wide.png'} is 10 x 3000, 300 to 1" in out
    table = [line.split() for line in out.splitlines() if line.endswith("%")]
    counts = {(int(height), int(width)): int(count) for height, _, width, count, *_ in table}
    assert (counts[32, 32], counts[40, 24], counts[24, 40], sum(counts.values())) == (3, 1, 1, 5)
    assert "sizes are mixed: give --size N" in command("prepare", pictures, "--dry-run").out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_shard_is_found_and_made_anew(command, refused, pictures, tmp_path, contents):
    out = tmp_path / "out"
    words = ["prepare", pictures, "--codec", "pixels", "--size", 32, "--output", out]
    words += ["--max-corrupt", 0.3, "--shard-size", 2, "--no-flip"]
    command(*words)
    before = contents(out)
    shard = out / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"grey", b"greY"))
    line = refused("prepare", "--verify", "--output", out)
    assert "1 of 4 shards" in line
    assert "shard-000001.tar; delete them and run the same `ditwright prepare` again" in line
    shard.unlink()
    assert command(*words).code == 0
    assert contents(out) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "source is missing"),
        (["SOURCE"], "--codec is missing"),
        (["SOURCE", "--codec", "pixels"], "--output is missing"),
        (["SOURCE", "--verify", "--output", "OUT"], "--verify takes a folder of shards alone"),
        (["--verify", "--output", "OUT"], "holds no prepared shards"),
        (["nowhere", "--codec", "pixels", "--output", "OUT"], "nowhere"),
        (["SOURCE", "--codec", "nonsense/", "--output", "OUT"], "nonsense"),
        (["SOURCE", "--codec", "pixels", "--output", "OUT", "--buckets"], "--buckets needs --size N"),
        (["SOURCE", "--codec", "pixels", "--output", "OUT", "--bucket-step", "8"], "--bucket-step is for --buckets"),
        (["SOURCE", "--codec", "pixels", "--output", "OUT", "--size", "0"], "at least 1 pixel; got 0"),
        (["SOURCE", "--codec", "pixels", "--output", "OUT", "--size", "x"], "--size: invalid int value: 'x'"),
        (["SOURCE", "--codec", "pixels", "--output", "OUT", "--max-corrupt", "2"], "a share from 0 to 1; got 2"),
        (["SOURCE", "--codec", "pixels", "--output", "OUT", "--shard-size", "0"], "shard_size must be at least 1"),
        (["SOURCE", "--codec", "pixels", "--output", "OUT", "--max-corrupt", "0.3"], "the pictures are of mixed sizes"),
        (["SOURCE", "--codec", "pixels", "--output", "OUT", "--size", "32"], "1 of 8 pictures are corrupt, more than"),
        (["SOURCE", "--codec", "pixels", "--output", "SOURCE", "--size", "32"], "holds other things ('a')"),
    ],
)
def test_what_does_not_fit_is_one_line(refused, pictures, tmp_path, words, said):
    places = {"SOURCE": pictures, "OUT": tmp_path / "out"}
    assert said in refused("prepare", *(places.get(word, word) for word in words))


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE"])
def test_an_environment_that_is_not_torchruns_is_refused(refused, monkeypatch, pictures, tmp_path, variable):
    words = ["prepare", pictures, "--codec", "pixels", "--size", "32", "--output", tmp_path / "out"]
    monkeypatch.setenv(variable, "many")
    assert "must be whole numbers, as torchrun sets them" in refused(*words)
    monkeypatch.setenv(variable, "-1")
    assert "does not fit WORLD_SIZE" in refused(*words)


def test_settings_are_plain_to_read(command, pictures, tmp_path):
    command("prepare", pictures, "--codec", "pixels", "--size", 32, "--output", tmp_path / "out", "--max-corrupt", 1)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["settings"]["source"]["name"] == str(pictures)
    assert index["settings"] == json.loads((tmp_path / "out" / "settings.json").read_text())
    assert [one["name"] for one in index["corrupt"]] == [
        str(pictures / "b" / name) for name in ("empty.png", "text.jpg")
    ]
