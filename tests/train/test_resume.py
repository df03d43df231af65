"""A run that was stopped goes on as if it never had been."""

from __future__ import annotations

import re
import shutil
import signal

import pytest

from ditwright import run
from ditwright.errors import UserError
from ditwright.model.weights import read_safetensors
from ditwright.run import train
from ditwright.train import job
from ditwright.train.log import Log
from ditwright.train.state import checkpoints

IMPORTANCE = """
    --process.path ddpm-cosine --process.target noise --process.steps 4 --process.learned_var true
    --model.out_channels 2 --objective.times discrete --objective.importance true --sample.sampler ddpm
"""
EDM = "--process.path karras --process.target edm --objective.times log-normal --objective.weight edm"
CASES = {
    "plain": "",
    "accumulated": "--optim.accumulate 2",
    "checkpointed": "--checkpoint_activations true",
    "importance": IMPORTANCE,
    "bf16": "--precision bf16",
    "unconditional": "--model.num_classes 0",
    "edm": EDM,
}


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(step, signal): that signal comes while the step is noted."""

    def arrange(step: int, number: signal.Signals) -> None:
        write = Log.write

        def noted(log, tick):
            write(log, tick)
            if tick.step == step:
                signal.raise_signal(number)

        monkeypatch.setattr(Log, "write", noted)

    return arrange


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_run_goes_on_to_the_same_bits(case, number, tiny, stop_at, outcome, tmp_path, capsys):
    config = tiny(f"--steps 12 {CASES[case]}")
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    train(config, tmp_path / "straight")
    stop_at(5, number)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        train(config, tmp_path / "stopped")
    assert left.value.code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("note: ", "training on "))]
    assert said == [f"{number.name}: saved step 5 of 12; the same command goes on"]
    assert checkpoints(tmp_path / "stopped")[-1].name == "step-00000005"
    train(config, tmp_path / "stopped")
    assert "going on at step 5" in capsys.readouterr().err
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")
    assert len(outcome(tmp_path / "straight")["metrics"]) == 12


@pytest.mark.parametrize("where", ["preview", "save"])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_signal_while_something_is_written_is_heard_and_told_truly(
    where, step, tiny, outcome, tmp_path, monkeypatch, capsys
):
    """Checkpoints at 3 and 6, previews at every step: whatever step it says was saved is there."""
    config = tiny("--steps 6 --log.preview_every 1")
    train(config, tmp_path / "straight")
    home = run if where == "preview" else job
    real, signals = getattr(home, where), [signal.SIGTERM]  # one: a second would act at once

    def interrupted(parts, output, facts):
        if signals and (facts if where == "preview" else facts["step"]) >= step:
            signal.raise_signal(signals.pop())
        real(parts, output, facts)

    with monkeypatch.context() as patch:
        patch.setattr(home, where, interrupted)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "stopped")
    saved = int(re.search(r"saved step (\d) of 6", capsys.readouterr().err)[1])
    assert saved >= step
    assert checkpoints(tmp_path / "stopped")[-1].name == f"step-{saved:08d}"
    train(config, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")


def test_a_second_ctrl_c_leaves_at_once_and_loses_only_the_steps_since_the_checkpoint(
    tiny, outcome, tmp_path, monkeypatch
):
    config = tiny("--steps 6")
    train(config, tmp_path / "straight")
    real = job.save

    def impatient(parts, output, facts):
        if facts["step"] > 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        real(parts, output, facts)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(job, "save", impatient)
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["step-00000003"]
    train(config, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")


def test_importance_sampling_was_at_work_in_the_run_that_went_on(tiny, tmp_path):
    """Else the case above would say nothing of its history."""
    last = train(tiny(f"--steps 12 {IMPORTANCE}"), tmp_path / "run")
    assert read_safetensors(last / "train.safetensors")["loss.counts"].min() > 10


def test_more_steps_go_on_from_the_end(tiny, outcome, tmp_path, capsys):
    words = "--optim.schedule constant"
    train(tiny(f"--steps 12 {words}"), tmp_path / "straight")
    train(tiny(f"--steps 5 {words}"), tmp_path / "longer")
    train(tiny(f"--steps 12 {words}"), tmp_path / "longer")
    ours, theirs = outcome(tmp_path / "longer"), outcome(tmp_path / "straight")
    assert ours["samples"].keys() - theirs["samples"].keys() == {"step-00000005.png"}
    assert ours | {"samples": None} == theirs | {"samples": None}
    assert "steps: 5 -> 12" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["", "--log.async_save true"])
def test_a_run_whose_checkpoints_are_gone_keeps_its_notes(options, tiny, contents, tmp_path):
    """It could only begin anew, over the notes of all that it did."""
    config = tiny(f"--steps 8 {options}")
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"has no checkpoint, though 8 steps are noted and every 3 one is saved: bring"):
        train(config, tmp_path / "run")
    assert contents(tmp_path / "run") == before
    (tmp_path / "run/metrics.jsonl").unlink()
    train(config, tmp_path / "run")


def test_a_run_that_was_killed_in_its_first_save_begins_anew(tiny, outcome, tmp_path):
    config = tiny("--steps 6")
    train(config, tmp_path / "run")
    straight = outcome(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/metrics.jsonl").write_text("".join(lines[:3]))
    train(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == straight


def test_notes_that_changed_since_they_were_saved_are_said_and_the_run_goes_on(tiny, tmp_path, capsys):
    train(tiny("--steps 6 --optim.schedule constant"), tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 1', '"loss": 3', 1))
    capsys.readouterr()
    for steps, times in ((7, 1), (8, 0)):  # what is saved then is known by what is there
        train(tiny(f"--steps {steps} --optim.schedule constant"), tmp_path / "run")
        assert capsys.readouterr().err.count("has 6 lines of losses, and other ones than the 6 saved") == times
    train(tiny("--steps 9 --optim.schedule constant --log.every 2"), tmp_path / "run")
    train(tiny("--steps 10 --optim.schedule constant --log.every 7"), tmp_path / "run")
    assert "lines of losses" not in capsys.readouterr().err


def test_a_changed_validation_is_said_as_a_changed_loss_is(tiny, tmp_path, capsys):
    words = "--optim.schedule constant --data.validation digits --data.validation_size 8 --log.evaluate_every 2"
    train(tiny(f"--steps 5 {words}"), tmp_path / "run")
    train(tiny(f"--steps 6 {words}"), tmp_path / "run")
    assert "other ones than" not in capsys.readouterr().err
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text().replace('"val_loss": 1', '"val_loss": 2', 1))
    train(tiny(f"--steps 7 {words}"), tmp_path / "run")
    assert "has 10 lines, and other ones than the 10 saved" in capsys.readouterr().err


def test_recomputing_activations_changes_nothing_but_memory(tiny, outcome, tmp_path):
    train(tiny("--steps 3"), tmp_path / "kept")
    train(tiny("--steps 3 --checkpoint_activations true"), tmp_path / "again")
    assert outcome(tmp_path / "kept") == outcome(tmp_path / "again")
