"""A run whose data changed while it was stopped is not gone on with, nor is a step of it done again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright import run
from ditwright.config import load_yaml
from ditwright.data.known import known_by
from ditwright.errors import UserError
from ditwright.replay import replay
from ditwright.train.job import work
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints, read_facts


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes of ten pictures each."""
    chance = np.random.default_rng(0)
    for n in range(20):
        path = tmp_path / "pictures" / "ab"[n % 2] / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def trained(tiny, pictures, tmp_path):
    """trained(steps) is a run on them of so many steps, or goes on with it; they may lie elsewhere then."""

    def go(steps: int, source: Path = pictures) -> Path:
        words = f"--data.source {source} --data.image_size 8 --model.channels 3 --model.out_channels 3"
        words += " --codec.channels 3 --model.num_classes 2 --log.preview_every 0 --optim.schedule constant"
        parts = run.assemble(tiny(f"--steps {steps} {words}"), World(torch.device("cpu")))
        work(replace(run.job_of(parts), data=known_by(parts.data)), tmp_path / "run")
        return tmp_path / "run"

    return go


CHANGES = {
    "more": (lambda root: shutil.copy(root / "a/00.png", root / "a/99.png"), "items 20 then, 21 now"),
    "fewer": (lambda root: (root / "b/03.png").unlink(), "items 20 then, 19 now"),
    "others": (
        lambda root: (root / "b/03.png").rename(root / "b/30.png"),
        "as many as then, of other names, labels or captions",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_whose_data_changed_is_refused_with_both_numbers(change, trained, pictures, contents):
    folder = trained(5)
    make, words = CHANGES[change]
    make(pictures)
    trained(5)  # nothing is left to do, so nothing is wrong
    before = contents(folder)
    with pytest.raises(
        UserError,
        match=rf"'.*/pictures' is not what '.*/run' was trained on until step 5: {words}"
        r"; bring those back, or begin another run from its weights \(--init\) with another --output",
    ):
        trained(6)
    assert contents(folder) == before
    for step in (2, 5):  # from the first weights, and from a checkpoint
        with pytest.raises(UserError, match=words):
            replay(folder, step)


def test_the_same_data_are_gone_on_with(trained, pictures):
    folder = trained(3)
    (pictures / "a/00.png").touch()
    trained(5)
    assert replay(folder, 5).loss == replay(folder, 5).logged
    assert read_facts(checkpoints(folder)[-1])["data"]["items"] == 20


def forgotten(folder: Path) -> None:
    """Make a run one of before data were known by anything."""
    for path in checkpoints(folder):
        facts = read_facts(path)
        (path / "train.json").write_text(json.dumps({name: facts[name] for name in facts if name != "data"}))
        (path / "checksums.json").unlink()
        (path / "train.json").write_text((path / "train.json").read_text().replace('"sealed": true, ', ""))


def test_a_run_of_before_data_were_known_goes_on(trained, pictures):
    folder = trained(3)
    forgotten(folder)
    (pictures / "b/03.png").unlink()
    trained(5)
    assert [path.name[-1] for path in checkpoints(folder)] == ["3", "5"]


def test_data_that_were_moved_are_gone_on_with_and_that_is_said(trained, pictures, capsys):
    folder, there = trained(3), pictures.rename(pictures.with_name("moved"))
    trained(3, there)  # nothing is left to do, so nothing is wrong
    for steps in (5, 7):  # stopped before the first save, too
        capsys.readouterr()
        trained(steps, there)
        assert (f"data.source: {pictures} -> {there}" in capsys.readouterr().err) == (steps == 5)
    assert load_yaml(folder / "config.yaml")["data"]["source"] == str(there)
    for step in (2, 4, 7):  # of before it was moved, between, and after
        assert replay(folder, step).loss == replay(folder, step).logged


def test_a_run_that_was_killed_after_its_data_moved_is_told_of_nothing_more(trained, pictures, capsys):
    folder, there = trained(3), pictures.rename(pictures.with_name("moved"))
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace(str(pictures), str(there)))  # and no checkpoint since
    capsys.readouterr()
    assert replay(folder, 3).loss == replay(folder, 3).logged
    trained(5, there)
    said = capsys.readouterr().err
    assert "steps: 3 -> 5" in said
    assert "config.yaml" not in said
    assert "data.source" not in said


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_elsewhere_are_refused_in_the_same_words(change, trained, pictures, contents):
    folder, there = trained(3), pictures.rename(pictures.with_name("moved"))
    make, words = CHANGES[change]
    make(there)
    before = contents(folder)
    with pytest.raises(UserError, match=rf"'.*/moved' is not what '.*/run' was trained on until step 3: {words}"):
        trained(5, there)
    assert contents(folder) == before


def test_what_nothing_is_known_of_is_gone_on_with_where_it_was_alone(trained, pictures):
    folder, there = trained(3), pictures.rename(pictures.with_name("moved"))
    forgotten(folder)
    with pytest.raises(UserError, match=r"holds another run: data\.source is .*/pictures there and .*/moved now"):
        trained(5, there)
