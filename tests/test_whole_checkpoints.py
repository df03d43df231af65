"""What is read of a run's checkpoint is as it was written, or is not used."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ditwright.cli.main import main
from ditwright.errors import UserError
from ditwright.pipeline import CARD, WEIGHTS, Pipeline
from ditwright.train.state import checkpoints


def flip(path, place=-1):
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def refused(capsys):
    """The one line with which a command is refused."""

    def run(*words):
        assert main([str(word) for word in words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    return run


def test_damaged_weights_are_used_nowhere_and_an_older_checkpoint_is_named(run, refused, tiny_words, tmp_path):
    older, newest = checkpoints(run)
    flip(newest / WEIGHTS)
    out, before = tmp_path / "out", sorted(tmp_path.iterdir())
    for words in (
        ("sample", run, "--output", out),
        ("sample", newest, "--output", out),
        ("sample", newest / WEIGHTS, "--output", out),
        ("convert", run, out, "--to", "ditwright"),
        ("train", "digits", *tiny_words, "--steps", 2, "--init", run, "--output", out),
    ):
        line = refused(*words)
        assert f"{str(newest)!r} is not as it was written: {WEIGHTS} is damaged" in line
        assert f"use the older {str(older)!r}, which is whole" in line
        assert sorted(tmp_path.iterdir()) == before
    assert main(["sample", str(older), "--output", str(out)]) == 0


def test_a_setting_that_was_changed_is_damage_too_and_what_is_not_read_is_not(run):
    newest = checkpoints(run)[-1]
    flip(newest / "train.safetensors")
    drawn = Pipeline.from_pretrained(run).draw([3])
    card = newest / CARD
    kept = card.read_text()
    card.write_text(kept.replace("num_inference_steps: 2", "num_inference_steps: 3"))
    with pytest.raises(UserError, match=f"{CARD} is damaged.*use the older"):
        Pipeline.from_pretrained(run)
    card.write_text(kept)
    assert np.array_equal(Pipeline.from_pretrained(run).draw([3]), drawn)


def test_without_an_older_whole_one_none_is_named(run, tmp_path):
    for checkpoint in checkpoints(run):
        flip(checkpoint / WEIGHTS)
    alone = shutil.copytree(checkpoints(run)[-1], tmp_path / "alone")
    for place in (run, alone):
        with pytest.raises(UserError, match=f"{WEIGHTS} is damaged.*; bring it back, or take another") as caught:
            Pipeline.from_pretrained(place)
        assert "use the older" not in str(caught.value)


def test_the_newest_older_one_that_is_whole_is_named(run):
    older, newest = checkpoints(run)
    between = shutil.copytree(older, older.with_name("step-00000004"))
    flip(newest / WEIGHTS)
    with pytest.raises(UserError, match=f"use the older '{between}'"):
        Pipeline.from_pretrained(run)
    flip(between / WEIGHTS)
    with pytest.raises(UserError, match=f"use the older '{older}'"):
        Pipeline.from_pretrained(run)
    flip(newest / WEIGHTS)
    flip(older / WEIGHTS)
    with pytest.raises(UserError, match="bring it back"):  # the newer one is whole, and is not older
        Pipeline.from_pretrained(older)


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_a_file_that_is_gone_is_named_and_so_is_the_older_checkpoint(name, run, refused, tmp_path):
    older, newest = checkpoints(run)
    (newest / name).unlink()
    for place in (run, newest):
        line = refused("sample", place, "--output", tmp_path / "out")
        assert f"{str(newest)!r} is not as it was written: {name} is missing; use the older {str(older)!r}" in line
    (older / name).unlink()
    assert f"{name} is missing; bring it back" in refused("sample", run, "--output", tmp_path / "out")


def test_damaged_checksums_are_damage_and_none_tell_nothing(run):
    newest = checkpoints(run)[-1]
    (newest / "checksums.json").write_text("{")
    with pytest.raises(UserError, match=r"checksums\.json is damaged"):
        Pipeline.from_pretrained(run)
    (newest / "checksums.json").unlink()
    flip(newest / WEIGHTS)
    Pipeline.from_pretrained(run)  # as whoever edits a checkpoint on purpose has it
