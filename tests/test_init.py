"""Training that starts from weights that are there."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditwright import convert
from ditwright.cli.main import main
from ditwright.codec.config import CodecConfig
from ditwright.convert import Portable
from ditwright.data.base import Pictures
from ditwright.data.sources import SOURCES
from ditwright.diffusion.config import ProcessConfig, SampleConfig
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.errors import UserError
from ditwright.experiment import DataConfig, TrainConfig
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.weights import read_safetensors
from ditwright.pipeline import WEIGHTS, Card, Pipeline
from ditwright.pipeline.start import start_from
from ditwright.run import assemble, train
from ditwright.text.config import TextConfig
from ditwright.train.config import LogConfig
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints

ALONE = World(torch.device("cpu"))
VALIDATED = "--data.validation digits --data.validation_size 64 --log.evaluate_every 1"


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def average(run):
    return read_safetensors(checkpoints(run)[-1] / WEIGHTS)


def few(classes):
    images = np.arange(16 * 64, dtype=np.int64).reshape(16, 8, 8, 1) * 7 % 256
    names = tuple(f"kind {i}" for i in range(classes))
    return Pictures(images.astype(np.uint8), np.arange(16) % classes, names)


def test_network_and_average_start_as_the_checkpoint_is_sampled(tiny, tiny_run):
    parts = assemble(tiny(f"--steps 4 --init {tiny_run} --seed 3"), ALONE)
    for started in (parts.denoiser, parts.ema.module):
        assert same(started.state_dict(), average(tiny_run))
    assert parts.ema.updates == 0


def test_losses_go_on_from_where_the_checkpoint_ended(tiny, tmp_path, capsys):
    train(tiny(f"--steps 40 --optim.ema 0.9 {VALIDATED}"), tmp_path / "first")
    train(tiny(f"--steps 1 --optim.lr 1e-8 --init {tmp_path / 'first'} {VALIDATED}"), tmp_path / "second")
    train(tiny(f"--steps 1 --optim.lr 1e-8 {VALIDATED}"), tmp_path / "new")
    ended, started, new = (lines(tmp_path / name)[-1]["val_loss"] for name in ("first", "second", "new"))
    assert started == pytest.approx(ended, rel=1e-4)
    assert new > 1.02 * started
    assert f"starting from {tmp_path / 'first'}" in capsys.readouterr().err


@pytest.mark.parametrize("cut", ["before the first checkpoint", "after it"])
def test_a_run_is_gone_on_with_bit_for_bit_and_the_start_is_not_read_again(
    cut, tiny, tiny_run, outcome, tmp_path, capsys
):
    start = shutil.copytree(tiny_run, tmp_path / "start")
    words = f"--init {start} --log.checkpoint_every 2 --optim.schedule constant"
    train(tiny(f"--steps 6 {words}"), tmp_path / "whole")
    if cut == "after it":
        train(tiny(f"--steps 4 {words}"), tmp_path / "cut")
        shutil.rmtree(start)
        capsys.readouterr()
    else:
        (tmp_path / "cut").mkdir()
        shutil.copy(tmp_path / "whole" / "config.yaml", tmp_path / "cut")
    train(tiny(f"--steps 6 {words}"), tmp_path / "cut")
    assert ("starting from" in capsys.readouterr().err) == (cut != "after it")
    left, right = (outcome(tmp_path / name) for name in ("whole", "cut"))
    assert left["checkpoint"] == right["checkpoint"]
    with pytest.raises(UserError, match=re.escape(f"holds another run: init is {start} there and {tiny_run} now")):
        train(tiny(f"--steps 6 --init {tiny_run} --log.checkpoint_every 2 --optim.schedule constant"), tmp_path / "cut")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--model.width 32",
            "of another network: model.width is 16 there and 32 here; take that network's settings: --model init",
        ),
        (
            "--model.width 32 --model.heads 4 --model.qk_norm true --model.mlp_ratio 2",
            r"model.width is .*, model.heads is 2 there and 4 here, model\S+ is .* here, and 1 more; take",
        ),
        ("--process.path cosine", "another process: process.path is linear there and cosine here; its weights mean"),
        (
            "--process.target data",
            "process.target is velocity there and data here; .* take that process, as --model init does",
        ),
        ("--init nowhere", "'nowhere'"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_no_trace(words, said, tiny, tiny_run, tmp_path):
    given = "" if "--init" in words else f"--init {tiny_run}"
    with pytest.raises(UserError, match=said) as caught:
        train(tiny(f"--steps 2 {given} {words}"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [3, 0])
def test_other_classes_are_learnt_anew(classes, tiny, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SOURCES, "few", lambda size=None: few(classes or 1))
    config = tiny(f"--steps 2 --init {tiny_run} --data.source few --model.num_classes {classes} --seed 5")
    started, learnt = assemble(config, ALONE).denoiser.state_dict(), average(tiny_run)
    drawn = assemble(replace(config, init=""), ALONE).denoiser.state_dict()
    for key, value in started.items():
        assert torch.equal(value, (drawn if "label" in key else learnt)[key]), key
    assert f"has 10 classes: this run's {classes} are new" in capsys.readouterr().err
    train(config, tmp_path / "run")
    assert Pipeline.from_pretrained(tmp_path / "run").card.model.num_classes == classes


def test_weights_of_another_project_are_a_start(tmp_path):
    network = DiTConfig(width=24, heads=2, stages=(Stage(2),), channels=4, out_channels=8, num_classes=10)
    process, state = ProcessConfig("ddpm", "noise", learned_var=True), build(network, seed=1).state_dict()
    there = Portable(network, process, state, image_size=(64, 64))
    convert.write(there, tmp_path / "theirs", to="diffusers")
    found = Pipeline.from_pretrained(tmp_path / "theirs").card
    denoiser, said = Denoiser(build(found.model, seed=2), process_from(process)), []
    card = Card(found.model, process, found.codec, SampleConfig())
    start_from(str(tmp_path / "theirs"), denoiser, card, said.append)
    assert same(denoiser.net.state_dict(), {key: state[key] for key in denoiser.net.state_dict()})
    assert said[-1] == f"starting from {tmp_path / 'theirs'}"
    pixels = replace(card, codec=CodecConfig("pixels", channels=4))
    start_from(str(tmp_path / "theirs"), denoiser, pixels, said.append)
    assert said[-2].endswith("is of the codec kl, this run of pixels")


HEARS = DiTConfig(
    width=16,
    heads=2,
    stages=(Stage(1, cross=True),),
    channels=1,
    out_channels=1,
    num_classes=0,
    context="cross",
    text_width=16,
    text_vocab=300,
    text_depth=1,
    text_heads=2,
)


def test_a_network_that_hears_text_keeps_its_tokenizer(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    for name, words in (("first", "a red square and a blue one"), ("second", "green rings")):
        data = Pictures(pixels, np.zeros(4, np.int64), (), texts=(words,) * 4)
        monkeypatch.setitem(SOURCES, name, lambda size=None, data=data: data)
    config = TrainConfig(
        steps=2,
        model=HEARS,
        text=TextConfig("bytes", length=40),
        codec=CodecConfig("pixels", channels=1),
        data=DataConfig("first", batch_size=4, prefetch=0),
        log=LogConfig(every=1, preview_every=0),
    )
    start = tmp_path / "start"
    train(config, start, ALONE)
    train(replace(config, init=str(start)), tmp_path / "the same words", ALONE)
    other = replace(config, init=str(start), data=replace(config.data, source="second"))
    place = checkpoints(start)[-1] / "text"
    with pytest.raises(UserError, match=re.escape(f"reads ids of another tokenizer: give --text.source {place}")):
        train(other, tmp_path / "other", ALONE)
    assert not (tmp_path / "other").exists()
    train(replace(other, text=replace(config.text, source=str(place))), tmp_path / "other", ALONE)


def test_a_command_line_takes_it(tiny_run, tiny_words, tmp_path, capsys):
    words = ["--steps", "2", "--init", str(tiny_run), "--output", str(tmp_path / "run")]
    assert main(["train", "digits", *tiny_words, *words]) == 0
    said = capsys.readouterr()
    assert f"starting from {tiny_run}" in said.err
    assert "checkpoint:" in said.out
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--init PLACE starts from weights that are there" in capsys.readouterr().out
