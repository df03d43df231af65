"""Samples of a network that hears text, measured as training goes: whose captions they are, and what is found."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditwright import measure
from ditwright.codec.config import CodecConfig
from ditwright.data.base import Pictures, spread
from ditwright.data.sources import SOURCES
from ditwright.diffusion.config import SampleConfig
from ditwright.errors import UserError
from ditwright.evaluate import Reading, evaluate, images_from, make_reference
from ditwright.experiment import DataConfig, MeasureConfig, TrainConfig
from ditwright.metrics.extractors import extractor_from
from ditwright.metrics.judge import learn_judge
from ditwright.model.config import DiTConfig, Stage
from ditwright.pipeline import Pipeline
from ditwright.run import assemble, train
from ditwright.text.cache import CachedText, write_cache
from ditwright.text.config import TextConfig
from ditwright.train.config import LogConfig, OptimConfig
from ditwright.train.parallel import World
from small_pipelines import prompted_pipeline

pytest.importorskip("tokenizers")
ALONE = World(torch.device("cpu"))
COUNT = 12
NETWORK = DiTConfig(
    width=16,
    heads=2,
    stages=(Stage(1, cross=True),),
    patch=(4, 4),
    channels=1,
    out_channels=1,
    num_classes=0,
    context="cross",
    text_width=16,
    text_vocab=270,
    text_depth=1,
    text_heads=2,
)


def pictures(name: str, count: int = 20, captioned: bool = True) -> Pictures:
    images = (np.arange(count * 64, dtype=np.int64).reshape(count, 8, 8, 1) * 37 % 256).astype(np.uint8)
    texts = tuple(f"{name} {n}" for n in range(count)) if captioned else ()
    return Pictures(images, np.zeros(count, np.int64), (), texts=texts)


SETS = {"own": pictures("own"), "other": pictures("other", 8), "mute": pictures("", captioned=False)}


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    for name, data in SETS.items():
        monkeypatch.setitem(SOURCES, name, lambda size=None, data=data: data)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    learn_judge(SETS["own"].images, np.arange(20) % 2, dataset="own", steps=2).save(path)
    return f"judge:{path}"


def config(judge, data=None, **more):
    return TrainConfig(
        steps=2,
        model=NETWORK,
        precision="fp32",
        text=TextConfig("bytes", length=12),
        codec=CodecConfig("pixels", channels=1),
        data=data or DataConfig("own", batch_size=4, flip=0, prefetch=0),
        optim=OptimConfig(lr=1e-2),
        sample=SampleConfig("euler", num_inference_steps=2, guidance_scale=3.0, batch_size=4),
        log=LogConfig(every=1, preview_every=0),
        measure=replace(MeasureConfig(1, judge, samples=COUNT, rounds=20, seed=3), **more),
    )


def test_a_run_notes_what_eval_would_find(judge, tmp_path):
    last = train(config(judge), tmp_path / "run", ALONE)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if "scores" in line}
    assert list(found) == [1, 2]
    assert found[2]["drawn"]["captions"] == "own"
    prompts = [f"own {i}" for i in spread(20, COUNT)]
    images = Pipeline.from_pretrained(last).draw(prompts, seed=3, guidance_scale=1.0)
    expected = evaluate(images, "own", judge, rounds=20, seed=3)
    assert {"fid", "kid"} <= found[2]["scores"].keys()
    for score in expected:
        assert found[2]["scores"][score.facts["metric"]]["value"] == pytest.approx(score.value, rel=1e-6)


def heard(judge, validation=False, source="own", **more):
    """Where prompts come from, and the first of them."""
    own, held_out = SETS[source], SETS["other"] if validation else None
    found = measure.prompts_for(
        replace(MeasureConfig(1, judge, samples=COUNT), **more), own, held_out, source=source, size=8
    )
    return found.source, found.texts[0], len(found.texts)


def test_prompts_are_those_of_the_pictures_that_are_compared_with(judge, tmp_path):
    make_reference(images_from("own"), extractor_from(judge), tmp_path / "ref.npz", Reading(ALONE, keep=0))
    file = str(tmp_path / "ref.npz")
    assert heard(judge) == heard(judge, validation=True) == ("own", "own 0", COUNT)
    assert heard(judge, reference="other") == ("other", "other 0", 8)
    assert heard(judge, reference="mute") == heard(judge, reference=file) == ("own", "own 0", COUNT)
    assert (
        heard(judge, True, reference="mute") == heard(judge, True, reference=file) == ("data.validation", "other 0", 8)
    )
    assert heard(judge, reference="nowhere", metrics=("is",)) == ("own", "own 0", COUNT)
    with pytest.raises(UserError, match="'mute' has pictures without captions"):
        heard(judge, source="mute")


def test_validation_is_heard_where_a_run_has_it(judge, tmp_path):
    make_reference(images_from("own"), extractor_from(judge), tmp_path / "ref.npz", Reading(ALONE, keep=0))
    data = DataConfig("own", batch_size=4, flip=0, prefetch=0, validation="other")
    parts = assemble(config(judge, data, reference=str(tmp_path / "ref.npz")), ALONE)
    assert parts.gauge.prompts.source == "data.validation"


def test_captions_that_are_encoded_are_heard_as_they_are_and_no_others(judge, tmp_path, monkeypatch):
    """As `ditwright prepare` encodes them, line breaks and all."""
    data = replace(SETS["own"], texts=tuple(f"own\n{n}" for n in range(20)))
    monkeypatch.setitem(SOURCES, "own", lambda size=None: data)
    pipe = prompted_pipeline(data.texts)
    write_cache(tmp_path, pipe.encoder, data.texts)
    pipe = Pipeline(pipe.denoiser, pipe.card, encoder=CachedText(tmp_path))
    asked = MeasureConfig(1, judge, samples=COUNT, rounds=0)
    gauge = measure.gauge_of(asked, pipe, data, source="own", world=ALONE)
    assert gauge.measure(pipe).line["scores"].keys() >= {"fid", "is"}
    with pytest.raises(UserError, match=r"those of 'other' are not \('other 0'\): give measure.reference an \.npz"):
        measure.gauge_of(replace(asked, reference="other"), pipe, data, source="own", world=ALONE)


def test_samples_are_the_same_in_any_batch_and_hear_prompts_in_turn(judge):
    pipe = prompted_pipeline(SETS["other"].texts)
    found = measure.prompts_for(MeasureConfig(1, judge, samples=COUNT), SETS["other"], None, source="other", size=8)
    drawn = measure.drawn(MeasureConfig(1, judge, samples=COUNT, seed=7, guidance_scale=2.0), pipe, found)
    whole = pipe.draw([f"other {i % 8}" for i in range(COUNT)], seed=7)
    assert len({image.tobytes() for image in whole}) == COUNT
    for size in (1, 5, 64):
        np.testing.assert_array_equal(np.concatenate(list(drawn.batches(size, 0, 99))), whole)
