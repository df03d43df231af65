"""The loss on held-out data: the same question put to every network."""

from __future__ import annotations

import json

import pytest
import torch

from ditwright.cli.main import main
from ditwright.data.sources import SOURCES
from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig
from ditwright.diffusion.objective import objective_from
from ditwright.diffusion.process import process_from
from ditwright.diffusion.target import Prediction
from ditwright.diffusion.validation import binned_loss
from ditwright.errors import UserError
from ditwright.rng import Draws
from ditwright.run import assemble, train, validate
from ditwright.train.parallel import World
from ditwright.train.processes import together

VALIDATED = "--data.source digits-train --data.validation digits-held-out --data.validation_size 40"
ALONE = World(torch.device("cpu"))


def test_digits_are_parted_into_those_to_train_on_and_those_held_out():
    whole, kept, held = (SOURCES[f"digits{part}"]() for part in ("", "-train", "-held-out"))
    assert len(kept.images) + len(held.images) == len(whole.images)
    assert {i.tobytes() for i in held.images[:50]}.isdisjoint({i.tobytes() for i in kept.images})


@pytest.mark.parametrize("times", ["uniform", "logit-normal"])
def test_bins_add_up_to_the_training_loss(times):
    """Of a network whose error at every time is known: it predicts no noise at all."""
    objective = objective_from(ObjectiveConfig(times=times), process_from(ProcessConfig("linear", "velocity")))
    x0 = torch.zeros(4000, 1, 1, 1, dtype=torch.float64)

    def denoiser(x_t, t, cond):
        return Prediction(torch.zeros_like(x_t), t[:, None, None, None] * torch.ones_like(x_t))

    drawn = objective(denoiser, x0, {}, Draws(0, range(4000), "train")).mean()
    bins = binned_loss(objective, denoiser, x0, {}, Draws(1, range(4000), "validation")).mean(0)
    assert bins.mean().item() == pytest.approx(drawn.item(), rel=0.05)
    assert bins[-1] != pytest.approx(bins[0].item(), rel=0.05)


def test_it_is_the_same_every_time_and_in_any_batch(tiny):
    parts = assemble(tiny(VALIDATED), ALONE)
    again = assemble(tiny(f"{VALIDATED} --data.batch_size 16"), ALONE)
    first = validate(parts)
    assert first == validate(parts)
    assert validate(again).line["val_loss"] == pytest.approx(first.line["val_loss"], rel=1e-5)
    assert len(first.line["val_loss_bins"]) == 10


def test_a_run_notes_it_beside_its_own_loss_and_goes_on_exactly(tiny, outcome, tmp_path):
    words = f"{VALIDATED} --log.evaluate_every 2"
    train(tiny(f"--steps 5 {words}"), tmp_path / "straight")
    lines = [json.loads(line) for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 4, 5]
    assert all(line["share_of_peak"] > 0 and line["tflops"] > 0 for line in lines if "loss" in line)
    constant = f"{words} --optim.schedule constant"
    train(tiny(f"--steps 5 {constant}"), tmp_path / "whole")
    train(tiny(f"--steps 4 {constant}"), tmp_path / "parts")
    train(tiny(f"--steps 5 {constant}"), tmp_path / "parts")
    assert outcome(tmp_path / "parts")["metrics"] == outcome(tmp_path / "whole")["metrics"]


def test_processes_that_hold_a_half_of_the_weights_each_find_what_one_does(tiny_words, tmp_path):
    """And keep the same best checkpoint; with a picture drawn by the one that has all weights for it."""
    words = ["train", "digits", *tiny_words, *VALIDATED.split(), "--steps", "5", "--log.evaluate_every", "2"]
    words += ["--log.keep_best", "1", "--log.keep", "1", "--log.preview_every", "2"]
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    together(2, main, [*words, "--parallel.shard", "2", "--output", str(tmp_path / "halves")])
    found = {}
    for name in ("one", "halves"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found[name] = {line["step"]: [line["val_loss"], *line["val_loss_bins"]] for line in lines if "val_loss" in line}
    assert list(found["one"]) == [2, 4, 5]
    assert found["halves"] == {step: pytest.approx(values, rel=1e-5) for step, values in found["one"].items()}
    kept = [(tmp_path / name / "best").resolve().name for name in found]
    assert kept[0] == kept[1]
    assert sorted(path.name for path in (tmp_path / "halves/samples").iterdir()) == [
        f"step-{step:08d}.png" for step in (2, 4, 5)
    ]


def test_held_out_data_must_fit(tiny, tmp_path):
    with pytest.raises(UserError, match="different classes"):
        train(tiny("--data.validation photos-held-out"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["--data.validation_size 100", "--data.validation digits --data.validation_size 0"])
def test_a_size_that_nothing_would_read_is_refused(words, tiny):
    with pytest.raises(UserError, match=r"validation_size is at least 1 and goes with data\.validation"):
        tiny(words)
