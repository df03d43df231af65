"""A step done again is the step that was: the same samples, times and losses, from any checkpoint before it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright import run as running
from ditwright.cli.main import main
from ditwright.codec.config import CodecConfig
from ditwright.config import merge, overrides, read_yaml
from ditwright.data.base import Pictures
from ditwright.data.sources import SOURCES
from ditwright.errors import UserError
from ditwright.experiment import DataConfig, TrainConfig
from ditwright.model.config import DiTConfig, Stage
from ditwright.recipes import CODEC_RECIPES
from ditwright.replay import logged_loss, replay
from ditwright.run import train
from ditwright.text.config import TextConfig
from ditwright.train.config import LogConfig
from ditwright.train.fit import NonFinite
from ditwright.train.processes import together
from ditwright.train.state import checkpoints
from ditwright.train_codec import train as train_codec


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}


@pytest.mark.parametrize("step", range(1, 7))
def test_every_step_of_a_run_has_the_loss_that_was_logged_to_the_digit(step, tiny_run, contents):
    """Checkpoints are those of steps 3 and 6: from the first weights, from a checkpoint, and with steps between."""
    before = contents(tiny_run)
    found = replay(tiny_run, step)
    assert (found.loss, found.grad_norm) == logged(tiny_run)[step]
    assert (found.logged, found.weights, found.same_weights) == (found.loss, step - 1, True)
    assert found.checkpoint == (0 if step <= 3 else 3)
    assert contents(tiny_run) == before


def test_the_samples_are_those_of_the_batch_with_their_times_and_losses(tiny_run, tiny):
    found, config = replay(tiny_run, 4), tiny("--steps 6")
    parts = running.assemble(config, running.World(torch.device("cpu")))
    _, items = running.batch_items(config.seed, parts.data.groups, 8, 3)
    places = range(24, 32)
    t = parts.loss.times(running.Draws(config.seed, places, "train").uniform())
    assert [sample.item for sample in found.samples] == items.tolist()
    assert [sample.place for sample in found.samples] == list(places)
    assert [sample.label for sample in found.samples] == parts.data.labels(items).tolist()
    assert [sample.class_name for sample in found.samples] == [str(sample.label) for sample in found.samples]
    assert [sample.t for sample in found.samples] == t.tolist()
    told = next(running.batches(parts, 3)).cond["label"]
    assert [sample.dropped for sample in found.samples] == (told == 10).tolist()
    mean = torch.tensor([sample.loss for sample in found.samples], dtype=torch.float32).mean()
    assert mean.item() == found.loss


def test_a_budget_for_other_devices_is_not_for_this_one(tiny_run, tmp_path):
    """A batch may not fit one of them."""
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("memory_gb: 0.0", "memory_gb: 1.0e-06"))
    assert read_yaml(TrainConfig, path).memory_gb == 1e-6
    assert (replay(folder, 5).loss, replay(folder, 5).grad_norm) == logged(folder)[5]


def test_a_checkpoints_weights_are_taken_as_they_are_where_that_is_asked(tiny_run):
    found = replay(tiny_run, 6, recompute=False)
    assert (found.checkpoint, found.weights, found.same_weights) == (3, 3, False)
    assert found.loss != found.logged
    assert [s.item for s in found.samples] == [s.item for s in replay(tiny_run, 6).samples]
    assert replay(tiny_run, 4, recompute=False) == replay(tiny_run, 4)  # it has them
    later = replay(tiny_run, 5, recompute=False, checkpoint=6)
    assert later.weights == 6
    anew = replay(tiny_run, 6, checkpoint=0)
    assert anew.loss == anew.logged


PARTED = {
    "copies": "",
    "shards": "--parallel.shard 2",
    "offloaded": "--parallel.shard 2 --parallel.offload true --log.async_save true --checkpoint_activations true",
}


@pytest.fixture(scope="module", params=PARTED)
def parted(request, tiny_words, tmp_path_factory):
    """The folder of a run of two processes. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("parted") / "run"
    words = [*tiny_words, "--steps", "6", *PARTED[request.param].split()]
    together(2, main, ["train", "digits", *words, "--output", str(folder)])
    assert (checkpoints(folder)[-1] / "train.dcp").is_dir() == ("shard" in PARTED[request.param])
    return folder


def test_a_run_of_several_processes_is_done_again_by_one(parted, contents):
    """From the first weights, from shards, and with steps between; but for the order of sums the same."""
    before = contents(parted)
    for step in (2, 4, 6):
        found, anew = replay(parted, step), replay(parted, step, checkpoint=0)
        assert (found.checkpoint, found.same_weights, found.flaw) == (0 if step == 2 else 3, True, "")
        assert (found.loss, found.grad_norm) == pytest.approx(logged(parted)[step], rel=1e-5)
        assert anew.loss == pytest.approx(found.loss, rel=1e-5)
        assert [sample.item for sample in anew.samples] == [sample.item for sample in found.samples]
        assert len(found.samples) == 8
    assert contents(parted) == before


def test_a_part_of_a_checkpoint_that_is_missing_is_named(parted, tmp_path):
    folder = shutil.copytree(parted, tmp_path / "run")
    path = max(
        (checkpoints(folder)[0]).rglob("*train*/*.safetensors"), default=checkpoints(folder)[0] / "train.safetensors"
    )
    path.unlink()
    with pytest.raises(
        UserError, match=rf"step-00000003.*{path.name} is missing\); --checkpoint STEP begins with anoth"
    ):
        replay(folder, 5)
    assert replay(folder, 5, checkpoint=0).loss == pytest.approx(logged(folder)[5][0], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"step": 0}, "--step must be from 1 to 6, the steps of"),
        ({"step": 7}, "--step must be from 1 to 6"),
        ({"step": 6, "most": 1}, "step 6 is 2 steps after the checkpoint of step 3, and at most 1 are done again"),
        ({"step": 6, "checkpoint": 5}, "has no checkpoint of step 5; it has 0, 3, 6"),
        ({"step": 6, "checkpoint": 6}, "the checkpoint of step 6 has seen step 6"),
    ],
)
def test_what_cannot_be_done_again_says_why(words, error, tiny_run):
    with pytest.raises(UserError, match=error):
        replay(tiny_run, **words)


def test_a_folder_without_a_run_and_a_damaged_checkpoint_are_named(tiny_run, tmp_path):
    with pytest.raises(UserError, match="holds no run; name the folder that `ditwright train` wrote"):
        replay(tmp_path, 1)
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    path = folder / "checkpoints/step-00000003/train.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"step-00000003.*damaged.*--checkpoint STEP begins with another"):
        replay(folder, 5)
    again = replay(folder, 5, checkpoint=0)
    assert again.loss == again.logged


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\nseed: 0", "\nseed: 1"),
        ("batch_size: 8", "batch_size: 9"),
        ("lr: 0.002", "lr: 0.001"),
        ("steps: ", "step[: "),
    ],
)
def test_a_damaged_configuration_is_named_and_that_of_the_checkpoints_taken(old, new, tiny_run, tmp_path, contents):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    path, said = folder / "config.yaml", []
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    before = contents(folder)
    found = replay(folder, 5, say=said.append)
    assert (found.loss, found.grad_norm) == logged(folder)[5]
    assert said[0].startswith(f"{path} ")
    assert said[0].endswith(f": taken as {checkpoints(folder)[-1]} has it")
    assert contents(folder) == before  # nothing is written
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)
    if "[" in new:
        with pytest.raises(UserError, match=r"config\.yaml"):
            replay(folder, 5)


def test_a_step_has_the_rate_of_the_steps_that_the_run_was_to_have_then(tiny, tmp_path):
    """A cosine to six steps, gone on with to nine; and what is asked for later without a step done says nothing."""
    words = "--optim.schedule cosine --log.keep 9"
    train(tiny(f"--steps 6 {words}"), tmp_path / "run")
    train(tiny(f"--steps 9 {words}"), tmp_path / "run")
    before = (tmp_path / "run/config.yaml").read_text()
    train(tiny(f"--steps 4 {words}"), tmp_path / "run")
    assert (tmp_path / "run/config.yaml").read_text() == before
    for step in (5, 8):
        found = replay(tmp_path / "run", step)
        assert (found.loss, found.grad_norm) == logged(tmp_path / "run")[step]
    (tmp_path / "run/config.yaml").write_text(before.replace("steps: 9", "steps: 8"))
    assert replay(tmp_path / "run", 9).loss == logged(tmp_path / "run")[9][0]


@pytest.mark.parametrize(
    "line", [b'{"step": 5, "loss": \xb3}', b"3", b"[5]", b"[" * 99999, b'{"step": 5, "loss": "1"}']
)
def test_a_damaged_note_is_passed_over(line, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    path = folder / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert logged_loss(folder, 5) == replay(tiny_run, 5).loss


IMPORTANCE = """
    --process.path ddpm-cosine --process.target noise --process.steps 4 --process.learned_var true
    --model.out_channels 2 --objective.times discrete --objective.importance true --sample.sampler ddpm
"""
CASES = {
    "accumulated": "--optim.accumulate 2",
    "importance": f"{IMPORTANCE} --data.batch_size 40",
    "bf16": "--precision bf16",
    "unconditional": "--model.num_classes 0",
    "edm": "--process.path karras --process.target edm --objective.times log-normal --objective.weight edm",
    "muon": "--optim.kind muon",
    "flipped": "--data.flip 0.5",
    "measured": "--data.validation digits-held-out --data.source digits-train --log.evaluate_every 2",
    "ahead": "--data.prefetch 0",
}


@pytest.mark.parametrize("case", CASES)
def test_runs_of_every_kind_are_done_again_to_the_digit(case, tiny, tmp_path):
    train(tiny(f"--steps 7 --log.preview_every 0 {CASES[case]}"), tmp_path / "run")
    for step in (1, 4, 6):
        found = replay(tmp_path / "run", step)
        assert (found.loss, found.grad_norm) == logged(tmp_path / "run")[step]
    size = {"accumulated": 16, "importance": 40}.get(case, 8)
    assert len(found.samples) == size
    assert all(sample.t > 0 for sample in found.samples)
    if case == "accumulated":
        assert [sample.place for sample in found.samples] == list(range(80, 96))
    if case == "unconditional":
        assert {(sample.label, sample.dropped) for sample in found.samples} == {(None, False)}
    if case == "flipped":
        assert {sample.mirrored for sample in found.samples} == {False, True}


def small_pictures(captioned):
    images = (np.arange(20 * 64, dtype=np.int64).reshape(20, 8, 8, 1) * 37 % 256).astype(np.uint8)
    texts = tuple(f"picture {n}" for n in range(20)) if captioned else ()
    return Pictures(images, np.zeros(20, np.int64), (), texts=texts)


def test_captions_are_told_where_the_network_hears_them(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setitem(SOURCES, "told", lambda size=None: small_pictures(True))
    shape = {"width": 16, "heads": 2, "stages": (Stage(1, cross=True),), "patch": (4, 4), "channels": 1}
    hears = {"context": "cross", "text_width": 16, "text_vocab": 270, "text_depth": 1, "text_heads": 2}
    config = TrainConfig(
        steps=3,
        model=DiTConfig(**shape, out_channels=1, num_classes=0, **hears),
        precision="fp32",
        text=TextConfig("bytes", length=12),
        codec=CodecConfig("pixels", channels=1),
        data=DataConfig("told", batch_size=8, label_drop=0.5),
        log=LogConfig(every=1, preview_every=0, checkpoint_every=2),
    )
    train(config, tmp_path / "run")
    found = replay(tmp_path / "run", 3)
    assert found.loss == logged(tmp_path / "run")[3][0]
    assert [sample.caption for sample in found.samples] == [f"picture {sample.item}" for sample in found.samples]
    assert {sample.label for sample in found.samples} == {None}
    assert {sample.dropped for sample in found.samples} == {False, True}


def test_pictures_of_a_folder_are_told_by_name(tiny, tmp_path):
    chance = np.random.default_rng(0)
    for n in range(12):
        (tmp_path / "pictures" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        grey.save(tmp_path / f"pictures/{'ab'[n % 2]}/{n:02d}.png")
    words = f"--data.source {tmp_path / 'pictures'} --data.image_size 8 --model.channels 3 --model.out_channels 3"
    words += " --codec.channels 3"
    train(tiny(f"--steps 2 --model.num_classes 2 --log.preview_every 0 {words}"), tmp_path / "run")
    found = replay(tmp_path / "run", 2)
    assert found.loss == found.logged
    for sample in found.samples:
        assert f"/{sample.class_name}/" in sample.name
        assert sample.name.endswith(".png")


def test_the_training_of_an_autoencoder_is_done_again_too(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    colour = np.random.default_rng(0).integers(0, 256, (25, 12, 16, 3), dtype=np.uint8)
    waves = Pictures(colour, np.zeros(25, np.int64), ("one",))
    monkeypatch.setitem(SOURCES, "waves", lambda size=None: waves)
    words = "--model.widths 8,8 --model.groups 4 --data.source waves --data.held_out= --data.image_size none"
    words += " --data.crop 8 --data.batch_size 4 --precision fp32 --steps 5 --log.every 1 --log.checkpoint_every 3"
    train_codec(merge(CODEC_RECIPES["photos"](), overrides(words.split())), tmp_path / "run")
    found = replay(tmp_path / "run", 5)
    assert (found.checkpoint, found.loss) == (3, logged(tmp_path / "run")[5][0])
    assert {(sample.t, sample.label, sample.caption) for sample in found.samples} == {(None, None, None)}
    assert {sample.mirrored for sample in found.samples} == {False, True}


def spoil(monkeypatch):
    """Sample 5 of step 5's batch is no number."""
    real = running.batch_of

    def batch_of(parts, data, items, places, **rest):
        batch = real(parts, data, items, places, **rest)
        if places.start == 32:
            batch.x0[5] = float("nan")
        return batch

    monkeypatch.setattr(running, "batch_of", batch_of)


def test_a_step_that_left_the_numbers_tells_which_sample_and_where(tiny, tmp_path, monkeypatch):
    """The network's weights are whole; one sample is not."""
    spoil(monkeypatch)
    with pytest.raises(NonFinite):
        train(tiny("--steps 9"), tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]
    found = replay(tmp_path / "run", 5)
    assert [np.isnan(sample.loss) for sample in found.samples] == [n == 5 for n in range(8)]
    assert "step 5" in found.flaw
    assert (found.grad_norm, found.logged) == (None, None)


def test_a_skipped_step_is_skipped_again_on_the_way(tiny, tmp_path, monkeypatch):
    spoil(monkeypatch)
    train(tiny("--steps 7 --optim.skip_nonfinite 2 --log.keep 9"), tmp_path / "run")
    found = replay(tmp_path / "run", 6, checkpoint=3)
    assert found.loss == logged(tmp_path / "run")[6][0]
    bad = replay(tmp_path / "run", 5)
    assert np.isnan(bad.samples[5].loss)
    assert "step 5" in bad.flaw
