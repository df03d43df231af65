"""Samples measured as training goes: what `ditwright eval` would find, at no other cost than the time it takes.

Run as a file, by torchrun, it is one of several processes that train: python test_measure.py FOLDER OPTIONS...
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ditwright import measure
from ditwright.codec.base import find_codec
from ditwright.codec.config import CodecConfig
from ditwright.config import merge, overrides
from ditwright.data.digits import digits
from ditwright.data.sources import open_source
from ditwright.errors import UserError
from ditwright.evaluate import Reading, evaluate, images_from, make_reference
from ditwright.evaluate import compare as compare_module
from ditwright.experiment import MeasureConfig
from ditwright.metrics.extractors import extractor_from
from ditwright.metrics.judge import learn_judge
from ditwright.metrics.npz import write_samples
from ditwright.pipeline import Pipeline
from ditwright.prepare import PrepareConfig, prepare
from ditwright.recipes import RECIPES
from ditwright.run import assemble, train
from ditwright.train import job
from ditwright.train.log import Log
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints, read_facts
from small_pipelines import autoencoder, pipeline

ALONE = World(torch.device("cpu"))
COUNT = 44
KEYS = ["fid", "is", "kid", "precision", "recall", "density", "coverage"]
SCORE = {"name", "value", "low", "high", "level", "samples", "reference", "extractor", "feature_size", "reference_from"}
SCORE |= {"sampler", "num_inference_steps", "guidance_scale", "seed"}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """The name of an extractor that has seen little, by a path without a space."""
    held_out = digits("held out")
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    learn_judge(held_out.images, held_out.targets, dataset="digits", steps=4).save(path)
    return f"judge:{path}"


@pytest.fixture
def words(judge):
    """words("--steps 5") measures every second step."""
    asked = f"--measure.extractor {judge} --measure.samples {COUNT} --measure.rounds 20 --sample.batch_size 16"
    return lambda more="": f"--log.preview_every 0 --measure.every 2 {asked} {more}"


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scores_of(run):
    return {line["step"]: line["scores"] for line in lines_of(run) if "scores" in line}


# what is found


def test_a_run_notes_what_eval_would_find(tiny, words, judge, tmp_path):
    last = train(tiny(words("--steps 5 --measure.seed 3")), tmp_path / "run")
    found = scores_of(tmp_path / "run")
    assert list(found) == [2, 4, 5]
    assert all(list(scores) == KEYS for scores in found.values())
    assert len({scores["kid"]["value"] for scores in found.values()}) == 3
    labels = [number % 10 for number in range(COUNT)]
    images = Pipeline.from_pretrained(last).draw(labels, seed=3)
    expected = evaluate(images, "digits", judge, rounds=20, seed=3)
    for key, score in zip(KEYS, expected, strict=True):
        told = found[5][key]
        assert (told["name"], told["value"]) == (score.name, pytest.approx(score.value, rel=1e-6))
        assert (told["low"], told["high"]) == pytest.approx((score.low, score.high), rel=1e-6)


def test_every_number_carries_what_it_depends_on(tiny, words, judge, tmp_path):
    train(tiny(words("--steps 2 --measure.guidance_scale 1.5 --sample.guidance_rescale 0.3")), tmp_path / "run")
    (line,) = (line for line in lines_of(tmp_path / "run") if "scores" in line)
    name = extractor_from(judge).name
    assert line.keys() == {"step", "scores", "drawn", "cautions"}
    for key, score in line["scores"].items():
        assert score.keys() >= SCORE
        assert (score["extractor"], score["samples"], score["level"]) == (name, COUNT, 0.95)
        assert (score["reference"], score["reference_from"]) == ((None, None) if key == "is" else (1797, "digits"))
        assert (score["sampler"], score["num_inference_steps"]) == ("heun", 2)
        assert (score["guidance_scale"], score["seed"]) == (1.5, 0)
    assert line["scores"]["fid"]["name"] == f"FD ({name})"
    drawn = line["drawn"]
    assert (drawn["num_samples"], drawn["size"], drawn["guidance_rescale"]) == (COUNT, [8, 8], 0.0)
    assert any("44 samples are few for 64 features" in caution for caution in line["cautions"])


def test_only_what_is_asked_for_is_measured_and_last_once_more(tiny, words, tmp_path):
    validated = "--data.source digits-train --data.validation digits-held-out --data.validation_size 40"
    train(tiny(words(f"--steps 4 --measure.every 3 --measure.metrics pr,fid {validated}")), tmp_path / "run")
    found = scores_of(tmp_path / "run")
    assert [(step, *scores) for step, scores in found.items()] == [(n, "precision", "recall", "fid") for n in (3, 4)]
    assert found[4]["fid"]["reference_from"] == "digits-train"
    assert [line["step"] for line in lines_of(tmp_path / "run") if "val_loss" in line] == [4]


def test_without_it_a_run_does_not_look_at_pictures(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("ditwright.run.gauge_of", None)
    train(tiny("--steps 2"), tmp_path / "run")
    assert scores_of(tmp_path / "run") == {}


def test_an_inception_score_needs_no_reference_and_classes_are_not_needed(tiny, words, tmp_path):
    more = "--steps 1 --measure.metrics is --model.num_classes 0 --measure.reference nowhere"
    train(tiny(words(more)), tmp_path / "run")
    assert scores_of(tmp_path / "run")[1]["is"]["reference_from"] is None


def test_the_best_may_be_kept_by_any_of_the_numbers_and_by_no_other(tiny, words, judge, tmp_path):
    name = extractor_from(judge).name
    curves = [f"{key}/{name}" for key in KEYS]
    best = "--steps 2 --log.keep_best 1 --log.best_is highest --log.best_by"
    train(tiny(words(f"{best} coverage/{name}")), tmp_path / "run")
    assert list(read_facts(tmp_path / "run/best")["scores"]) == curves
    with pytest.raises(UserError, match=f"'fid/inception' is not measured; measured: {', '.join(curves)}"):
        train(tiny(words(f"{best} fid/inception")), tmp_path / "other")
    assert not (tmp_path / "other").exists()


# samples


def test_samples_are_the_same_in_any_batch_and_of_every_class():
    pipe = pipeline()
    config = MeasureConfig(1, "judge:x", samples=20, seed=7, guidance_scale=1.5)
    images = measure.drawn(config, pipe)
    settings = asdict(replace(pipe.card.sample, guidance_scale=1.5))
    whole = pipe.draw([number % 3 for number in range(20)], seed=7, **settings)
    assert whole.std() > 20
    for size in (1, 3, 16, 64):
        np.testing.assert_array_equal(np.concatenate(list(images.batches(size, 0, 99))), whole)
    np.testing.assert_array_equal(np.concatenate(list(images.batches(4, 5, 14))), whole[5:14])
    assert [len(batch) for batch in images.batches(8, 0, 20)] == [8, 8, 4]
    assert images.first().shape == whole[:1].shape


def test_nothing_is_drawn_to_see_what_samples_are_like(monkeypatch):
    monkeypatch.setattr(Pipeline, "draw", None)
    assert measure.drawn(MeasureConfig(1, "judge:x"), pipeline()).first().dtype == np.uint8


# references


def test_the_reference_is_seen_once(tiny, words, tmp_path, monkeypatch):
    seen, collect = [], compare_module.collect

    def watched(images, *more):
        seen.append(images.name)
        return collect(images, *more)

    monkeypatch.setattr(compare_module, "collect", watched)
    train(tiny(words("--steps 6")), tmp_path / "run")
    assert seen == ["digits", *["samples of the average"] * 3]


@pytest.mark.parametrize("metrics", ["kid", "fid", "is,dc"])
def test_a_reference_made_beforehand_gives_the_same_numbers(metrics, tiny, words, judge, tmp_path):
    make_reference(images_from("digits"), extractor_from(judge), tmp_path / "ref.npz", Reading(ALONE, keep=10_000))
    for name, reference in (("pictures", "digits"), ("statistics", tmp_path / "ref.npz")):
        more = f"--steps 1 --measure.metrics {metrics} --measure.reference {reference}"
        train(tiny(words(more)), tmp_path / name)
    one, two = (
        {key: (s["value"], s["low"], s["high"], s["reference"]) for key, s in scores_of(tmp_path / name)[1].items()}
        for name in ("pictures", "statistics")
    )
    assert one == two


# the run itself is as it would have been


def test_weights_are_the_same_bits_with_and_without(tiny, words, outcome, tmp_path):
    train(tiny(words("--steps 5")), tmp_path / "with")
    train(tiny("--steps 5 --sample.batch_size 16 --log.preview_every 0"), tmp_path / "without")
    measured, plain = outcome(tmp_path / "with"), outcome(tmp_path / "without")
    facts, without = measured["checkpoint"]["train.json"], plain["checkpoint"]["train.json"]
    assert facts.pop("scores")  # all that a checkpoint knows of it, and how many lines there are
    assert without.pop("scores") == {}
    assert facts["noted"].pop("all")["lines"] == without["noted"].pop("all")["lines"] + 3
    assert measured["checkpoint"] == plain["checkpoint"]
    assert [line for line in measured["metrics"] if "scores" not in line] == plain["metrics"]
    assert len(measured["metrics"]) == len(plain["metrics"]) + 3


@pytest.mark.parametrize("step", [3, 4])
def test_a_stopped_run_goes_on_to_the_same_lines(step, tiny, words, outcome, tmp_path, monkeypatch):
    """Asked to stop between two measurements, and at one: `step` is kept."""
    config, write = tiny(words("--steps 6")), Log.write
    train(config, tmp_path / "straight")

    def noted(log, tick):
        write(log, tick)
        if tick.step == step:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", noted)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")
    assert list(scores_of(tmp_path / "stopped")) == [2, 4, 6]


def test_lines_of_steps_that_were_lost_are_written_once(tiny, words, outcome, tmp_path, monkeypatch):
    """Killed after step 6 was measured and before it was saved: step 3 is the checkpoint."""
    config, save = tiny(words("--steps 6")), job.save
    train(config, tmp_path / "straight")

    def killed(parts, output, facts):
        if facts["step"] > 3:
            raise KeyboardInterrupt
        save(parts, output, facts)

    with monkeypatch.context() as patch:
        patch.setattr(job, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    assert list(scores_of(tmp_path / "killed")) == [2, 4, 6]
    assert checkpoints(tmp_path / "killed")[-1].name == "step-00000003"
    train(config, tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


def test_a_run_may_be_measured_otherwise_when_it_goes_on(tiny, words, tmp_path, capsys):
    constant = "--optim.schedule constant --log.preview_every 0 --sample.batch_size 16"
    train(tiny(f"--steps 2 {constant}"), tmp_path / "run")
    train(tiny(words(f"--steps 4 {constant}")), tmp_path / "run")
    assert "measure.every: 0 -> 2" in capsys.readouterr().err
    train(tiny(f"--steps 6 {constant}"), tmp_path / "run")
    assert list(scores_of(tmp_path / "run")) == [4]


def test_tensorboard_draws_a_curve_of_each_number(tiny, words, judge, tmp_path):
    """Of each extractor its own. A run that went on from step 4 has all of them, and none twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    constant = "--optim.schedule constant --log.tensorboard true"
    for steps in (4, 6):
        train(tiny(words(f"--steps {steps} {constant}")), tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    curves = {f"{key}/{extractor_from(judge).name}": key for key in KEYS}
    assert set(board.Tags()["scalars"]) == {"loss", "grad_norm", "lr", *curves}
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    found = scores_of(tmp_path / "run")
    for curve, key in curves.items():
        drawn = {event.step: event.value for event in board.Scalars(curve)}
        assert drawn == {step: pytest.approx(found[step][key]["value"], rel=1e-6) for step in (2, 4, 6)}


# several processes


@pytest.fixture(scope="module")
def together(tiny_words, judge, tmp_path_factory):
    """The folder of a run by one process, and of the same by two under torchrun, each noting what it drew.

    The two hold copies of the weights ("two") or a half of them each ("halves").
    """
    folder = tmp_path_factory.mktemp("together")
    words = [*tiny_words, "--steps", "4", "--log.preview_every", "0", "--sample.batch_size", "16"]
    words += ["--measure.every", "2", "--measure.extractor", judge, "--measure.samples", str(COUNT)]
    here = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).parent)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    halves = ["--parallel.shard", "2"]
    for name, start, more in (("one", [sys.executable], []), ("two", torchrun, []), ("halves", torchrun, halves)):
        command = [*start, __file__, str(folder / name), *words, *more]
        done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True, timeout=300)
        assert (folder / name / "checkpoints/step-00000004").is_dir(), done.stderr
    return folder


@pytest.mark.parametrize("name", ["two", "halves"])
def test_two_processes_find_what_one_does(name, together):
    one, two = (scores_of(together / run) for run in ("one", name))
    assert list(one) == list(two) == [2, 4]
    for step, key in ((step, key) for step in one for key in KEYS):
        a, b = one[step][key], two[step][key]
        assert [b[name] for name in ("value", "low", "high")] == pytest.approx(
            [a[name] for name in ("value", "low", "high")], rel=1e-6
        )
        assert (b["samples"], b["reference"]) == (a["samples"], a["reference"])


def test_two_processes_share_the_drawing(together):
    drawn = {
        name: [json.loads(path.read_text()) for path in sorted(together.glob(f"{name}-*"))]
        for name in ("one", "two", "halves")
    }
    assert drawn["one"] == [[[0, 16], [16, 16], [32, 12]] * 2]
    assert drawn["two"] == drawn["halves"] == [[[0, 16]] * 2, [[16, 16], [32, 12]] * 2]


# what is refused, and leaves no trace


@pytest.fixture(scope="module")
def others(judge, tmp_path_factory):
    """Files that no run can be measured against."""
    folder = tmp_path_factory.mktemp("others")
    write_samples(folder / "five.npz", [digits().images[:5]], 5)
    learn_judge(digits().images[:50], np.arange(50) % 2, dataset="other", steps=1).save(folder / "other.safetensors")
    other = extractor_from(f"judge:{folder / 'other.safetensors'}")
    make_reference(images_from("digits-held-out"), other, folder / "other.npz", Reading(ALONE, keep=0))
    make_reference(images_from("digits-held-out"), extractor_from(judge), folder / "few.npz", Reading(ALONE, keep=0))
    return folder


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--measure.extractor judge:nowhere", "there is no checkpoint file 'nowhere'"),
        ("--measure.extractor jugde:x", "unknown extractor 'jugde:x'"),
        ("--measure.metrics fid,fidd", r"unknown metric 'fidd'; known: .*did you mean 'fid'"),
        ("--measure.metrics sfid", "sfid needs spatial features, which judge-digits-"),
        ("--measure.samples 1", "1 samples are too few for fid"),
        ("--measure.samples 5 --measure.metrics pr,dc", "5 samples are too few for dc: at least 6"),
        ("--measure.reference nowhere", "there is no data set or folder 'nowhere'"),
        ("--measure.reference {}/none.npz", "none.npz"),
        ("--measure.reference {}/five.npz --measure.metrics dc", "5 pictures in .* are too few for dc"),
        ("--measure.reference {}/other.npz", "was made with judge-other-"),
        ("--measure.reference {}/few.npz --measure.metrics kid", "kid needs features of single pictures"),
        ("--measure.guidance_scale 2 --model.num_classes 0", "guidance needs a condition"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(more, said, tiny, words, others, tmp_path):
    with pytest.raises(UserError, match=said):
        train(tiny(words(more.format(others))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"every": 2}, r"measure\.extractor is missing: judge:FILE"),
        ({"extractor": "judge:x"}, r"measure\.extractor is given, but measure\.every is 0"),
        ({"metrics": ("fid",)}, r"measure\.metrics is given, but measure\.every is 0: give --measure\.every N"),
        ({"every": -1}, r"measure\.every must be at least 0; got -1"),
        ({"every": 1, "samples": 0}, r"measure\.samples must be at least 1; got 0"),
        ({"every": 1, "rounds": -1}, r"measure\.rounds must be at least 0; got -1"),
        ({"every": 1, "guidance_scale": -0.5}, r"measure\.guidance_scale must be at least 0; got -0\.5"),
        ({"every": 1, "seed": 2**63}, r"measure\.seed must be a whole number from 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        MeasureConfig(**given)


def test_pictures_of_several_sizes_are_no_reference(tiny, words):
    parts = assemble(tiny(words()), ALONE)

    class Buckets:
        groups, codec = parts.data.groups * 2, None

    asked, pipe = MeasureConfig(1, "judge:x"), pipeline()
    with pytest.raises(
        UserError, match=r"measure\.reference is missing: 'shards' holds pictures of several sizes, and"
    ):
        measure.reference_of(asked, pipe, Buckets(), "shards")
    assert measure.reference_of(replace(asked, reference="digits"), pipe, Buckets(), "shards").count == 1797


@pytest.mark.parametrize("kind", ["pixels", "kl"])
def test_samples_of_latents_are_measured_as_pictures(kind, tiny, words, tmp_path):
    """Latents in shards are no reference, and what they were made from is; pixels in shards are pictures."""
    if kind == "kl":
        pytest.importorskip("diffusers")
    codec = find_codec(str(autoencoder(tmp_path / "codec"))) if kind == "kl" else CodecConfig("pixels")
    prepare(open_source("digits-held-out"), codec, tmp_path / "shards", PrepareConfig(flips=False, workers=1))
    colours = np.repeat(digits().images[:50], 3, 3)
    learn_judge(colours, np.arange(50) % 2, dataset="colours", steps=1).save(tmp_path / "colours.safetensors")
    network = f"--codec.kind auto --model.channels {codec.channels} --model.out_channels {codec.channels}"
    asked = words(f"--steps 1 {network} --data.source {tmp_path / 'shards'} --measure.metrics fid")
    asked += f" --measure.extractor judge:{tmp_path / 'colours.safetensors'}"
    if kind == "kl":
        with pytest.raises(UserError, match=r"measure\.reference is missing: '.*shards' holds latents, and metrics"):
            train(tiny(asked), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        asked += " --measure.reference digits-held-out"
    train(tiny(asked), tmp_path / "run")
    fid = scores_of(tmp_path / "run")[1]["fid"]
    assert (fid["samples"], fid["reference"]) == (COUNT, 359)


if __name__ == "__main__":
    folder, *options = sys.argv[1:]
    draw, drawn = Pipeline.draw, []

    def counted(pipe, labels, **more):
        drawn.append((more["first"], len(labels)))
        return draw(pipe, labels, **more)

    Pipeline.draw = counted
    train(merge(RECIPES["digits"](), overrides(options)), Path(folder))
    Path(f"{folder}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(drawn))
