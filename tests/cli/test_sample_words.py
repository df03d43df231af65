"""`ditwright sample` of networks that hear several text encoders; and which warnings are notes."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ditwright.cli import notes
from ditwright.cli.notes import noted
from ditwright.pipeline import Pipeline
from ditwright.text.base import completed, encoder_from
from ditwright.text.config import TextConfig
from small_published import flux, sd3

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
HOW = ("--prompt", "a red circle", "--size", 16, 16, "--num-inference-steps", 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved("sd3") is the folder of that pipeline. Do not change it."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "pipeline"
            make = {"sd3": sd3, "flux": flux}[name]
            make(diffusers, transformers, tmp_path_factory.mktemp("scratch")).save_pretrained(made[name])
        return made[name]

    return folder


def test_an_encoder_of_sd3_that_is_not_there_can_be_done_without(command, refused, saved, tmp_path):
    folder, out = shutil.copytree(saved("sd3"), tmp_path / "sd3"), tmp_path / "out"
    for place in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / place)
    said = refused("sample", folder, *HOW, "--output", out)
    assert (
        "has no text_encoder_3/; to do without put t5 into text.drop; `ditwright sample` takes --text-drop t5" in said
    )
    assert not out.exists()
    assert command("sample", folder, *HOW, "--output", out, "--text-drop", "t5").err == ""
    told = {"height": 16, "width": 16, "num_inference_steps": 2, "seed": 0}
    encoder = encoder_from(TextConfig("sd3", str(saved("sd3")), drop=("t5",)))
    (wanted,) = Pipeline.from_pretrained(saved("sd3"), encoder=encoder)("a red circle", **told).images
    with Image.open(out / "seed0-00000.png") as opened:
        assert np.array_equal(np.asarray(opened), np.asarray(wanted))
        assert json.loads(opened.text["parameters"])["text_drop"] == ["t5"]
    (whole,) = Pipeline.from_pretrained(saved("sd3"))("a red circle", **told).images
    assert not np.array_equal(np.asarray(whole), np.asarray(wanted))


@pytest.mark.parametrize("part", ["clip_l", "clip_g"])
def test_the_others_are_dropped_too(part, command, saved, tmp_path):
    words = ("sample", saved("sd3"), *HOW, "--output", tmp_path, "--text-drop", part, "t5")
    assert command(*words).err == ""
    encoder = encoder_from(TextConfig("sd3", str(saved("sd3")), drop=(part, "t5")))
    pipe = Pipeline.from_pretrained(saved("sd3"), encoder=encoder)
    (wanted,) = pipe("a red circle", height=16, width=16, num_inference_steps=2, seed=0).images
    with Image.open(tmp_path / "seed0-00000.png") as opened:
        assert np.array_equal(np.asarray(opened), np.asarray(wanted))


def test_a_pin_of_all_the_encoders_is_not_held_against_fewer(command, saved, tmp_path):
    pipe = Pipeline.from_pretrained(saved("sd3"))
    pipe.card = replace(pipe.card, text=completed(pipe.card.text))
    pipe.save_pretrained(tmp_path / "pinned")
    words = ("sample", tmp_path / "pinned", *HOW, "--output", tmp_path / "out")
    assert command(*words).err == ""
    code, _, err = command(*words, "--text-drop", "t5")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("note: text.fingerprint is of the text encoders with those dropped: the others go unchecked")


def test_what_cannot_be_dropped_or_heard_is_one_line(refused, saved, tiny_run, tmp_path):
    out = ("--output", tmp_path / "out")
    said = refused("sample", saved("sd3"), *HOW, *out, "--text-drop", "t6")
    assert "unknown text encoder of SD3 't6'; known: clip_g, clip_l, t5 (did you mean 't5'?)" in said
    for folder, kind in ((saved("flux"), "flux"), (tiny_run, "none")):
        said = refused("sample", folder, *out, "--text-drop", "t5")
        assert f"--text-drop is for SD3's three encoders; this network's text.kind is {kind}" in said
    for length in (513, 100_000):
        said = refused("sample", saved("sd3"), *HOW, *out, "--max-sequence-length", length)
        assert f"max_sequence_length is at most 512, or text.t5_length where that is more; got {length}" in said
    assert list(tmp_path.iterdir()) == []


def test_notes_are_what_this_package_warns_of_and_nothing_else(capsys):
    place = str(notes.HERE / "pipeline" / "pipeline.py")
    ours = {"filename": place, "lineno": 1, "module": "ditwright.pipeline.pipeline", "registry": {}}
    theirs = {"filename": "torch/distributed.py", "lineno": 1, "module": "torch.distributed", "registry": {}}
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("default")
        with noted():
            for _ in range(2):
                warnings.warn_explicit("negative_prompt has no effect here", UserWarning, **ours)
                warnings.warn_explicit("ours, to be removed", DeprecationWarning, **ours)
                warnings.warn_explicit("theirs, to be removed", DeprecationWarning, **theirs)
                warnings.warn_explicit("theirs", UserWarning, **theirs)
    assert capsys.readouterr().err == "note: --negative-prompt has no effect here\n" * 2
    assert [str(other.message) for other in others] == ["ours, to be removed", "theirs, to be removed", "theirs"]
