"""`ditwright train`: recipe, files and options in order of precedence; one folder, one run."""

from __future__ import annotations

import signal

import pytest
import yaml

from ditwright.config import from_dict, load_yaml
from ditwright.experiment import TrainConfig
from ditwright.recipes import RECIPES
from ditwright.train.log import Log


def resolved(command, *words) -> TrainConfig:
    code, out, err = command("train", *words, "--print-config")
    assert (code, err) == (0, "")
    return from_dict(TrainConfig, yaml.safe_load(out))


@pytest.mark.parametrize("name", RECIPES)
def test_print_config_prints_the_recipe_and_makes_nothing(name, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolved(command, name) == RECIPES[name]()
    assert list(tmp_path.iterdir()) == []


def test_what_print_config_prints_is_a_config(command, tmp_path):
    words = "--steps 7 --seed 3 --optim.lr=1e-5 --model.stages.0.depth 2 --process.span 0.001,1 --optim.betas 0.8,0.9"
    _, out, _ = command("train", "digits", *words.split(), "--print-config")
    (tmp_path / "c.yaml").write_text(out)
    assert command("train", "digits", "--config", tmp_path / "c.yaml", "--print-config").out == out
    config = from_dict(TrainConfig, yaml.safe_load(out))
    assert (config.steps, config.seed, config.optim.lr, config.model.depth) == (7, 3, 1e-5, 2)


def test_options_come_before_files_and_files_before_the_recipe(command, tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 11\nseed: 11\noptim: {lr: 11, clip: 11}")
    (tmp_path / "b.yaml").write_text("seed: 22\noptim: {lr: 22}")
    files = ["--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml"]
    config = resolved(command, "digits", "--optim.lr", 33, *files)
    assert (config.steps, config.seed, config.optim.lr, config.optim.clip) == (11, 22, 33, 11)
    assert config.optim.betas == RECIPES["digits"]().optim.betas
    assert resolved(command, "digits", *files, "--steps", 44).steps == 44


def test_a_run_keeps_the_config_that_was_printed(command, tiny_words, tmp_path):
    words = ["digits", *tiny_words, "--steps", 2]
    assert command("train", *words, "--output", tmp_path / "run").code == 0
    assert from_dict(TrainConfig, load_yaml(tmp_path / "run" / "config.yaml")) == resolved(command, *words)


def test_the_end_says_where_the_checkpoint_is_and_what_to_type(command, tiny_words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("train", "digits", *tiny_words, "--steps", 2)
    assert code == 0
    assert out.splitlines() == [
        "checkpoint: runs/digits/checkpoints/step-00000002",
        "to sample: ditwright sample runs/digits",
    ]
    (typed,) = (line.removeprefix("to sample: ditwright ") for line in out.splitlines()[1:])
    assert command(*typed.split(), "--class-labels", 0).code == 0


def test_the_same_command_again_has_nothing_to_do(command, tiny_run, tiny_words, contents):
    before = contents(tiny_run)
    code, out, err = command("train", "digits", "--steps", 6, "--output", tiny_run, *tiny_words)
    assert code == 0
    assert "step-00000006" in out
    assert "is at step 6 of 6: nothing to do" in err
    assert contents(tiny_run) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_is_a_clear_line_and_its_own_exit_code(number, command, tiny_words, tmp_path, monkeypatch):
    write = Log.write
    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", lambda log, tick: (write(log, tick), signal.raise_signal(number)))
        code, out, err = command("train", "digits", *tiny_words, "--steps", 9, "--output", tmp_path / "run")
    assert (code, out) == (128 + number, "")
    assert err.splitlines()[-1] == f"{number.name}: saved step 1 of 9; the same command goes on"
    code, out, err = command("train", "digits", *tiny_words, "--steps", 9, "--output", tmp_path / "run")
    assert code == 0
    assert "going on at step 1" in err


def test_numbers_that_end_stop_the_run_with_one_line(command, tiny_words, contents, tmp_path):
    words = ["--steps", 9, "--optim.lr", "1e38", "--optim.warmup", 0, "--log.checkpoint_every", 1]
    code, _, err = command("train", "digits", *tiny_words, *words, "--output", tmp_path / "run")
    line = code if isinstance(code, str) else err.splitlines()[-1]  # a text as exit code is printed, and means 1
    assert "stopped" in line
    assert "step 2" in line
    assert "'net." in line
    assert "\n" not in line
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
