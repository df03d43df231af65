"""`ditwright sample` writes pictures that say how they were made."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditwright.cli.main import main
from ditwright.diffusion.config import SampleConfig
from ditwright.diffusion.sampler import SAMPLERS
from ditwright.pipeline import Pipeline


def read(path: Path) -> tuple[np.ndarray, dict]:
    with Image.open(path) as opened:
        return np.asarray(opened), json.loads(opened.text["parameters"])


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: read(p)[0] for p in folder.glob("seed*.png")}


def test_without_options_every_class_is_drawn_as_the_checkpoint_says(command, tiny_run, tmp_path):
    code, out, err = command("sample", tiny_run, "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out == f"10 pictures and grid.png in {tmp_path / 'out'}\n"
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["grid.png", *(f"seed0-{i:05d}-class{i}.png" for i in range(10))]
    drawn = Pipeline.from_pretrained(tiny_run)(range(10))
    for i in range(10):
        assert np.array_equal(read(tmp_path / "out" / names[i + 1])[0], drawn[i, ..., 0])


def test_help_names_every_sampler_and_setting(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in SAMPLERS)
    assert all(f"--{name.replace('_', '-')}" in said for name in SampleConfig.__dataclass_fields__)


def test_the_settings_of_a_picture_are_in_it_and_draw_it_again(command, tiny_run, tmp_path):
    words = "--class-labels 3 7 3 --seed 11 --num-inference-steps 5 --guidance-scale 1.5 --sampler ddim --batch-size 2"
    more = "--guidance-interval 0.1 0.9 --guidance-rescale 0.25 --guidance-channels 1 --size 8 12"
    assert command("sample", tiny_run, "--output", tmp_path, *words.split(), *more.split()).code == 0
    image, facts = read(tmp_path / "seed11-00002-class3.png")
    config = SampleConfig("ddim", 5, 1.5, (0.1, 0.9), 0.25, 1, batch_size=2)
    settings = {name: facts[name] for name in SampleConfig.__dataclass_fields__}
    assert SampleConfig(**settings | {"guidance_interval": tuple(settings["guidance_interval"])}) == config
    assert (facts["seed"], facts["index"], facts["class_label"], facts["class_name"]) == (11, 2, 3, "3")
    assert facts["size"] == [8, 12]
    pipe = Pipeline.from_pretrained(facts["checkpoint"])
    again = pipe([0, 0, facts["class_label"]], seed=facts["seed"], size=facts["size"], **settings)
    assert np.array_equal(again[facts["index"], ..., 0], image)
    _, of_the_grid = read(tmp_path / "grid.png")
    assert of_the_grid["class_labels"] == [3, 7, 3]
    assert {name: of_the_grid[name] for name in settings} == settings


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_sample_is_the_same_in_any_batch(size, command, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--class-labels", *"31415926", "--guidance-scale", 3, "--seed", 2]
    assert command(*words, "--output", tmp_path / "one", "--batch-size", 64).code == 0
    assert command(*words, "--output", tmp_path / "other", "--batch-size", size).code == 0
    one, other = pictures(tmp_path / "one"), pictures(tmp_path / "other")
    assert one.keys() == other.keys()
    assert len(one) == 8
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert len({image.tobytes() for image in one.values()}) == 8


def test_a_checkpoint_folder_will_do_for_a_run(command, tiny_run, tmp_path):
    older = tiny_run / "checkpoints" / "step-00000003"
    assert command("sample", older, "--output", tmp_path, "--class-labels", 0).code == 0
    assert read(tmp_path / "grid.png")[1]["checkpoint"] == str(older)


def test_a_network_without_classes_draws_as_many_as_asked(command, tiny_words, tmp_path):
    words = ["--steps", 1, "--model.num_classes", 0, "--output", tmp_path / "run"]
    assert command("train", "digits", *tiny_words, *words).code == 0
    assert command("sample", tmp_path / "run", "--output", tmp_path / "out", "--num-images", 3).code == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["grid.png", *(f"seed0-{i:05d}.png" for i in range(3))]
    assert read(tmp_path / "out" / names[1])[1]["class_label"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--class-labels 3", "takes no class labels"),
        ("--num-images 0", "--num-images must be at least 1"),
        ("--guidance-scale 2", "unconditional"),
    ],
)
def test_a_network_without_classes_takes_none(words, said, refused, command, tiny_words, tmp_path):
    train = ["train", "digits", *tiny_words, "--steps", 1, "--model.num_classes", 0, "--output", tmp_path / "run"]
    assert command(*train).code == 0
    assert said in refused("sample", tmp_path / "run", "--output", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_whole_pictures_or_none(command, tiny_run, tmp_path, monkeypatch):
    assert command("sample", tiny_run, "--output", tmp_path, "--class-labels", 4).code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    code, out, err = command("sample", tiny_run, "--output", tmp_path, "--class-labels", 4, 5, "--seed", 0)
    assert (code, out) == (2, "")
    assert err.startswith("ditwright: error: ")
    assert "No space left on device" in err
    assert err.count("\n") == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_number_of_images_beside_labels_is_refused(command, tiny_run, tmp_path):
    code, _, err = command("sample", tiny_run, "--class-labels", "1", "--num-images", "3", "--output", tmp_path / "o")
    assert code == 2
    assert "--num-images" in err
    assert not (tmp_path / "o").exists()
