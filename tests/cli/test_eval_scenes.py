"""`ditwright eval scenes`: from a network that hears text, by way of a set of samples, to a table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ditwright.cli.main import main
from ditwright.data.scene_words import parse
from ditwright.data.scenes import scenes
from ditwright.data.sources import SOURCES
from ditwright.evaluate import page
from ditwright.metrics.judge import learn_judge
from ditwright.metrics.npz import write_samples
from ditwright.pictures import captioned
from small_pipelines import prompted_pipeline

pytest.importorskip("tokenizers")
pytest.importorskip("scipy")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setitem(SOURCES, "few", lambda size=None: scenes("held out", 30, size=size or 32))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompted") / "checkpoint"
    prompted_pipeline(scenes("train", 40).texts, channels=3, size=32, length=100).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Real pictures as samples with their prompts beside them, every fifth of another prompt."""
    folder, data = tmp_path_factory.mktemp("real"), scenes("train", 25, objects=(1, 2), seed=2)
    images = data.images.copy()
    images[::5] = np.roll(images[::5], 1, 0)
    write_samples(folder / "samples.npz", [images], 25)
    (folder / "samples.txt").write_text("\n".join(data.texts) + "\n")
    return folder / "samples.npz"


def test_what_is_right_is_told_by_the_number_of_things(command, real, tmp_path):
    code, out, err = command("eval", "scenes", real, "--output", tmp_path / "new" / "found.json")
    assert (code, err) == (0, "")
    head, *lines, _ = out.splitlines()
    assert head.split()[:3] == ["things", "pictures", "sentence"]
    assert [line.split()[0] for line in lines] == ["1", "2", "all"]
    assert lines[2].split()[1:3] == ["25", "80.0%"]
    told = json.loads((tmp_path / "new" / "found.json").read_text())
    assert told["rows"][2]["sentence"]["value"] == 0.8
    assert told["samples_from"] == str(real)
    assert json.loads(command("eval", "scenes", real, "--json").out) == told


def test_a_page_shows_what_is_wrong(command, real, tmp_path, monkeypatch):
    shown = []

    def seen(pictures, captions, **style):
        shown.extend(zip(pictures, captions, strict=True))
        return captioned(pictures, captions, **style)

    monkeypatch.setattr(page, "captioned", seen)
    monkeypatch.setattr(page, "EACH", 9)
    assert command("eval", "scenes", real, "--picture", tmp_path / "new" / "page.png").code == 0
    asked, images = real.with_suffix(".txt").read_text().splitlines(), np.load(real)["arr_0"]
    counts = [len(parse(caption).things) for caption in asked]
    places = [n for count in (1, 2) for n in [n for n, found in enumerate(counts) if found == count][:9]]
    assert len(shown) == len(places) == 18
    for n, (picture, said) in zip(places, shown, strict=True):
        assert np.array_equal(picture, images[n])
        assert said.startswith(asked[n])
        assert ("(wrong: " in said) == (n % 5 == 0)
    with Image.open(tmp_path / "new" / "page.png") as image:
        assert image.size[0] > 1000


def test_the_reader_is_sure_of_real_scenes(command):
    out = command("eval", "scenes", "few", "--size", 48).out
    assert out.splitlines()[-2].split()[:3] == ["all", "30", "100.0%"]


def test_a_network_that_hears_text_is_drawn_and_judged(command, checkpoint, tmp_path):
    words = ("sample", checkpoint, "--num-fid-samples", 12, "--captions", "few", "--output", tmp_path / "fid")
    assert command(*words).out == f"12 samples in {tmp_path / 'fid' / 'samples_12.npz'}\n"
    kept = (tmp_path / "fid" / "samples_12.txt").read_text().splitlines()
    assert kept == [scenes("held out", 30).texts[i * 30 // 12] for i in range(12)]
    code, out, _ = command("eval", "scenes", tmp_path / "fid" / "samples_12.npz", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["rows"][-1]["n"] == 12
    assert (told["drawn"]["captions"], told["drawn"]["num_inference_steps"]) == ("few", 2)


def test_pictures_of_prompts_are_judged_too(command, checkpoint, tmp_path):
    words = ("--prompt", "a large red circle", "a small blue ring above a large red cross", "--output", tmp_path)
    assert command("sample", checkpoint, *words).code == 0
    rows = json.loads(command("eval", "scenes", tmp_path, "--json").out)["rows"]
    assert [(row["objects"], row["n"]) for row in rows] == [(1, 1), (2, 1), (None, 2)]


def test_eval_draws_by_captions(command, checkpoint, tmp_path):
    pictures = scenes("held out", 30)
    judge = learn_judge(pictures.images, np.arange(30) % 2, dataset="few", steps=1)
    judge.save(tmp_path / "judge.safetensors")
    words = ["eval", checkpoint, "--ref", "few", "--extractor", f"judge:{tmp_path / 'judge.safetensors'}"]
    words += ["--metrics", "fid", "--num-samples", 8, "--draws", tmp_path / "draws", "--rounds", 0]
    assert "captions are missing" in command(*words).err
    assert command(*words, "--captions", "few").code == 0
    assert "guidance 1, prompts of few, seed 0" in command(*words, "--captions", "few").out
    (kept,) = (tmp_path / "draws").rglob("samples_8.txt")
    assert command(*words, "--captions", kept).code == 0  # the same prompts from elsewhere: nothing is drawn
    assert len(list((tmp_path / "draws").rglob("*.npz"))) == 1
    words[1] = kept.with_suffix(".npz")
    assert "--captions is for samples that are drawn" in command(*words[:-6], "--captions", "few").err
    assert main(["eval", "scenes", str(kept.with_suffix(".npz"))]) == 0


def test_what_does_not_fit_is_one_line(refused, checkpoint, real, tiny_run, tmp_path):
    out = ("--output", tmp_path / "out")
    for words, said in (
        (("eval", "scenes", checkpoint), "is a model, and samples are wanted; draw them first: ditwright sample"),
        (("eval", "scenes", "digits"), "'digits' has pictures without captions"),
        (("eval", "scenes", "nowhere"), "there is no data set or folder 'nowhere'"),
        (("eval", "scenes", real, "--size", 0), "--size must be at least 1; got 0"),
        (("eval", "scenes", real, "--captions", tmp_path / "none"), "no prompts in"),
        (("sample", checkpoint, "--captions", "few", *out), "--captions goes with --num-fid-samples"),
        (("sample", checkpoint, "--num-fid-samples", 4, *out), "captions are missing, for this network hears text"),
        (("sample", checkpoint, "--num-fid-samples", 4, "--negative-prompt", "x", *out), "--negative-prompt is for"),
        (("sample", checkpoint, "--num-fid-samples", 4, "--captions", "digits", *out), "pictures without captions"),
        (("sample", tiny_run, "--num-fid-samples", 4, "--captions", "few", *out), "are for networks that hear text"),
    ):
        assert said in refused(*words)
    assert list(tmp_path.iterdir()) == []
    lines = (real.parent / "samples.txt").read_text().splitlines()
    wrong = tmp_path / "captions.txt"
    wrong.write_text("\n".join([*lines[:2], "a tiny red circle", *lines[3:]]))
    line = refused("eval", "scenes", real, "--captions", wrong)
    assert "caption 3 of 25, 'a tiny red circle': unknown size 'tiny'; known: large, small" in line
