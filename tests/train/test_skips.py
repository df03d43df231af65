"""Steps that are not finite: left out and counted, then undone, then the end; exact at every turn."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch

from ditwright.diffusion.objective import Objective
from ditwright.diffusion.path import linear
from ditwright.diffusion.process import Denoiser, Process
from ditwright.diffusion.target import velocity
from ditwright.diffusion.times import Uniform
from ditwright.errors import UserError
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.weights import read_safetensors
from ditwright.rng import Draws
from ditwright.run import train
from ditwright.train import job
from ditwright.train.config import OptimConfig
from ditwright.train.ema import EMA
from ditwright.train.fit import Batch, NonFinite, fit
from ditwright.train.optim import Constant, adamw
from ditwright.train.state import checkpoints

CONFIG = DiTConfig(width=16, heads=2, stages=(Stage(1),), channels=1, out_channels=1, num_classes=3)
OBJECTIVE = Objective(Process(linear, velocity), Uniform())


def batch(number: int, damaged: bool = False) -> Batch:
    draws = Draws(0, range(2 * number, 2 * number + 2), "pictures")
    x0 = draws.normal(torch.empty(2, 1, 8, 8))
    if damaged:
        x0[0, 0, 0, 0] = float("nan")
    return Batch(x0, {"label": torch.tensor([0, 1])}, Draws(0, draws.indices, "train"))


def trained(batches, most: int, **settings):
    denoiser = Denoiser(build(CONFIG), OBJECTIVE.process)
    ema = EMA(denoiser, 0.9)
    optim = adamw(denoiser, OptimConfig(lr=0.01))
    ticks = list(islice(fit(denoiser, OBJECTIVE, batches, optim, schedule=Constant(), ema=ema, **settings), most))
    return ticks, denoiser.state_dict(), ema


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("first", [0, 1])
def test_a_step_that_is_left_out_moves_nothing_but_the_place(accumulate, first, tmp_path):
    """Training on without its batches gives the same weights; they are used up all the same."""
    bad = range(2 * accumulate, 3 * accumulate)
    damaged = bad[min(first, accumulate - 1)]
    feed = (batch(n, n == damaged) for n in range(5 * accumulate))
    ticks, ours, ema = trained(feed, 9, accumulate=accumulate, skip=1)
    assert [tick.step for tick in ticks] == [1, 2, 3, 4, 5]
    assert [tick.skipped for tick in ticks] == [0, 0, 1, 0, 0]
    assert "the data of step 3 is not finite" in ticks[2].why
    assert all(tick.samples == 2 * accumulate for tick in ticks)
    without = (batch(n) for n in range(5 * accumulate) if n not in bad)
    plain, theirs, other = trained(without, 9, accumulate=accumulate)
    assert [tick.loss for tick in ticks if not tick.why] == [tick.loss for tick in plain]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ema.updates == other.updates == 4


def test_more_in_a_row_than_are_borne_end_it():
    with pytest.raises(NonFinite, match="the data of step 4 is not finite"):
        trained((batch(n, n in (0, 2, 3)) for n in range(9)), 9, skip=1)
    with pytest.raises(NonFinite, match="the data of step 1 "):
        trained((batch(n, n == 0) for n in range(9)), 9, skip=2, skipped=2)


@pytest.fixture
def poisoned(monkeypatch):
    """poisoned(steps, times): the gradient of one weight is NaN in these steps, at most so often."""

    def arrange(steps, times=10**9):
        real, left = job.fit, [times]

        def spoilt(denoiser, loss, batches, optim, **settings):
            step = [settings["done"]]

            def counted():
                for one in batches:
                    step[0] += 1
                    yield one

            def spoil(grad):
                if step[0] not in steps or not left[0]:
                    return grad
                left[0] -= 1
                return grad * float("nan")

            handle = denoiser.net.head.proj.weight.register_hook(spoil)
            try:
                yield from real(denoiser, loss, counted(), optim, **settings)
            finally:
                handle.remove()

        monkeypatch.setattr(job, "fit", spoilt)

    return arrange


def noted(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_without_being_told_a_run_stops_at_once(tiny, poisoned, tmp_path):
    poisoned([5])
    with pytest.raises(NonFinite, match=r"the gradient of step 5 is nan; first non-finite gradient: 'net.head.proj"):
        train(tiny("--steps 9"), tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_skip_is_noted_and_a_resume_after_it_is_exact(stop, tiny, poisoned, outcome, tmp_path, capsys):
    """Stopped before, between and after two skips; a third in a row would be the end."""
    poisoned([5, 6])
    options = "--optim.skip_nonfinite 2 --optim.schedule constant"
    train(tiny(f"--steps 9 {options}"), tmp_path / "straight")
    said = capsys.readouterr().err
    assert "step 5 is skipped (1 in a row of at most 2): the gradient of step 5 is nan" in said
    assert "step 6 is skipped (2 in a row of at most 2)" in said
    train(tiny(f"--steps {stop} {options}"), tmp_path / "run")
    train(tiny(f"--steps 9 {options}"), tmp_path / "run")
    assert outcome(tmp_path / "run")["metrics"] == outcome(tmp_path / "straight")["metrics"]
    assert saved(outcome(tmp_path / "run")) == saved(outcome(tmp_path / "straight"))
    assert [(line["step"], line["event"]) for line in noted(tmp_path / "run") if "event" in line] == [
        (5, "skipped"),
        (6, "skipped"),
    ]


def test_how_many_were_skipped_in_a_row_is_remembered(tiny, poisoned, tmp_path):
    poisoned([5, 6])
    options = "--optim.skip_nonfinite 1 --optim.schedule constant"
    train(tiny(f"--steps 5 {options}"), tmp_path / "run")
    with pytest.raises(NonFinite, match="step 6 "):
        train(tiny(f"--steps 9 {options}"), tmp_path / "run")


def saved(found):
    """A checkpoint but for the sum over all notes, which tell of rollbacks too."""
    facts = dict(found["checkpoint"]["train.json"])
    facts["noted"] = {name: told for name, told in facts["noted"].items() if name != "all"}
    assert facts["noted"].keys() == {"lines", "sha256"}
    return found["checkpoint"] | {"train.json": facts}


@pytest.mark.parametrize("words", ["", "--optim.accumulate 2", "--log.tensorboard true"])
def test_a_fault_that_passes_is_rolled_back_to_the_same_bits(words, tiny, poisoned, outcome, tmp_path, capsys):
    if "tensorboard" in words:
        pytest.importorskip("tensorboard")
    train(tiny(f"--steps 9 {words}"), tmp_path / "straight")
    poisoned([9 if "accumulate" in words else 5], 1)  # the number of a batch
    train(tiny(f"--steps 9 {words} --optim.rollbacks 1"), tmp_path / "run")
    assert "going on from step-00000003 (1 of at most 1 times)" in capsys.readouterr().err
    found = noted(tmp_path / "run")
    (told,) = [line for line in found if "event" in line]
    assert (told["step"], told["event"]) == (3, "rollback")
    ours, theirs = outcome(tmp_path / "run"), outcome(tmp_path / "straight")
    assert [line for line in ours["metrics"] if "event" not in line] == theirs["metrics"]
    assert saved(ours) == saved(theirs)


def test_a_fault_that_stays_ends_the_run_after_so_many_tries(tiny, poisoned, tmp_path, capsys):
    poisoned([5])
    with pytest.raises(NonFinite, match=r"step 5 .*'net.head.proj"):
        train(tiny("--steps 9 --optim.rollbacks 2"), tmp_path / "run")
    assert capsys.readouterr().err.count("going on from step-00000003") == 2
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000003"


def test_where_nothing_is_saved_there_is_nothing_to_go_back_to(tiny, poisoned, tmp_path):
    poisoned([2], 1)
    with pytest.raises(NonFinite, match="step 2 "):
        train(tiny("--steps 9 --optim.rollbacks 2"), tmp_path / "run")


def test_a_new_checkpoint_is_worth_as_many_tries_again(tiny, poisoned, outcome, tmp_path):
    train(tiny("--steps 12"), tmp_path / "straight")
    poisoned([5], 1)
    poisoned([8], 1)
    train(tiny("--steps 12 --optim.rollbacks 1"), tmp_path / "run")
    assert saved(outcome(tmp_path / "run")) == saved(outcome(tmp_path / "straight"))


IMPORTANCE = """
    --process.path ddpm-cosine --process.target noise --process.steps 4 --process.learned_var true
    --model.out_channels 2 --objective.times discrete --objective.importance true --sample.sampler ddpm
"""


def test_a_history_of_losses_forgets_what_was_left_out(tiny, poisoned, tmp_path):
    poisoned([2])
    last = train(tiny(f"--steps 3 --optim.skip_nonfinite 1 {IMPORTANCE}"), tmp_path / "run")
    assert read_safetensors(last / "train.safetensors")["loss.counts"].sum() == 2 * 8


@pytest.mark.parametrize("name", ["skip_nonfinite", "rollbacks"])
def test_what_cannot_be_is_refused_by_name(name):
    with pytest.raises(UserError, match=rf"optim\.{name}.* must be 0 or more; got .*-1"):
        OptimConfig(**{name: -1})


def test_notes_of_a_rollback_are_no_others_to_who_goes_on(tiny, poisoned, tmp_path, capsys):
    """Killed before the next save, it goes on from the checkpoint that had not seen them; then from one that had."""
    poisoned([5], 2)
    words = "--optim.rollbacks 1 --optim.schedule constant"
    with pytest.raises(NonFinite, match="step 5 "):
        train(tiny(f"--steps 9 {words}"), tmp_path / "run")
    assert [line.get("event") for line in noted(tmp_path / "run")][-2:] == ["rollback", None]
    for steps in (9, 12):
        train(tiny(f"--steps {steps} {words}"), tmp_path / "run")
    assert "other ones than" not in capsys.readouterr().err
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text().replace("gradient of step 5", "gradient of step 6"))
    train(tiny(f"--steps 15 {words}"), tmp_path / "run")
    assert "has 13 lines, and other ones than the 13 saved" in capsys.readouterr().err
