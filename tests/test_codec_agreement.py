"""Latents are trained on with the codec that made them, or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ditwright.cli.main import main
from ditwright.codec.base import find_codec
from ditwright.data.streams import Stream
from ditwright.errors import UserError
from ditwright.pipeline import Pipeline
from ditwright.prepare import PrepareConfig, prepare
from ditwright.run import train
from small_pipelines import autoencoder

LATENT = (
    "--model.channels 4 --model.out_channels 4 --model.num_classes 2 --codec.kind auto --codec.channels 4 "
    "--codec.factor 2 --data.flip 0.5"
)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("codecs")
    return [autoencoder(folder / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def shards(codecs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "shards"
    draws = np.random.default_rng(0)
    pairs = [(draws.integers(0, 255, (16, 16, 3), dtype=np.uint8), i % 2) for i in range(16)]
    source = Stream(pairs, class_names=("even", "odd"))
    assert prepare(source, find_codec(str(codecs[0])), folder, PrepareConfig()) is not None
    return folder


def test_the_codec_comes_from_the_shards_and_goes_into_the_checkpoint(tiny, shards, codecs, tmp_path):
    checkpoint = train(tiny(f"--steps 2 {LATENT} --data.source {shards}"), tmp_path / "run")
    found, made = Pipeline.from_pretrained(checkpoint).card.codec, find_codec(str(codecs[0]))
    assert (found.kind, found.fingerprint, found.scale, found.shift) == (
        "kl",
        made.fingerprint,
        made.scale,
        made.shift,
    )
    assert Pipeline.from_pretrained(checkpoint).draw([0]).shape == (1, 16, 16, 3)


def test_another_codec_is_refused_and_both_are_named(tiny, shards, codecs, tmp_path):
    with pytest.raises(UserError, match=rf"prepared with the codec kl '{codecs[0]}' .*asks for kl '{codecs[1]}'"):
        train(tiny(f"--steps 2 {LATENT} --data.source {shards} --codec.source {codecs[1]}"), tmp_path / "run")
    with pytest.raises(UserError, match="the recipe asks for pixels"):
        train(tiny(f"--steps 2 --data.source {shards}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_codec_may_be_asked_for(tiny, shards, codecs, tmp_path):
    words = f"--steps 1 {LATENT} --data.source {shards} --codec.source {codecs[0]}"
    train(tiny(words), tmp_path / "run")


def test_a_scale_of_ones_own_is_kept_with_the_checkpoint(tiny, shards, codecs, tmp_path):
    words = f"--steps 1 {LATENT} --data.source {shards} --codec.source {codecs[0]} --codec.scale 0.5,1,2,3"
    checkpoint = train(tiny(words), tmp_path / "run")
    assert Pipeline.from_pretrained(checkpoint).card.codec.scale == (0.5, 1, 2, 3)


def test_a_run_goes_on_only_with_the_latents_it_began_with(tiny, shards, codecs, tmp_path, capsys):
    words = f"--steps 1 {LATENT} --data.source {shards}"
    train(tiny(words), tmp_path / "run")
    index = json.loads((shards / "index.json").read_text())
    assert index["settings"]["codec"]["fingerprint"] == find_codec(str(codecs[0])).fingerprint
    assert main(["train", "digits", "--output", str(tmp_path / "run")]) == 2
    assert "is not what" in capsys.readouterr().err  # other data, whatever else is another
