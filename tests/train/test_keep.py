"""Which checkpoints are kept: the newest few and the best few; removed only once another is there and whole."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest

from ditwright.cli.main import main
from ditwright.errors import UserError
from ditwright.files import damage, seal
from ditwright.model.weights import read_safetensors
from ditwright.run import train
from ditwright.train import job
from ditwright.train.config import LogConfig
from ditwright.train.keep import before, best, fault, forget_others, is_among_best, newest_whole, whole_best
from ditwright.train.log import Log
from ditwright.train.processes import together
from ditwright.train.state import checkpoint_path, checkpoints, read_facts

VALIDATED = "--data.validation digits --data.validation_size 8 --log.evaluate_every 1 --log.keep 1"


@pytest.fixture
def scored(tmp_path):
    """scored(step=score, ...) is a run folder with these checkpoints."""

    def make(**scores):
        for step, score in scores.items():
            folder = checkpoint_path(tmp_path, int(step[1:]))
            folder.mkdir(parents=True)
            told = {} if score is None else {"scores": {"val_loss": score}}
            (folder / "train.json").write_text(json.dumps({"step": int(step[1:]), **told}))
        return tmp_path

    return make


def steps(paths):
    return [int(path.name[5:]) for path in paths]


def test_the_best_are_found_by_their_score(scored):
    run = scored(s1=0.5, s2=0.1, s3=None, s4=0.1, s5=0.9, s6=math.nan)
    (checkpoint_path(run, 5) / "train.json").write_text("{")  # damaged: nobody's best
    assert steps(best(run, LogConfig(keep_best=9))) == [2, 4, 1]
    assert steps(best(run, LogConfig(keep_best=1))) == [2]
    assert steps(best(run, LogConfig(keep_best=2, best_is="highest"))) == [1, 2]
    assert best(run, LogConfig(keep_best=2, best_by="fid/inception")) == []
    assert best(run, LogConfig()) == []


@pytest.mark.parametrize(
    ("keep_best", "score", "kept"), [(0, 0.0, False), (1, 0.2, True), (1, 0.3, False), (2, 0.4, True), (3, 9, True)]
)
def test_a_score_is_worth_a_checkpoint_if_that_would_be_kept(keep_best, score, kept, scored):
    run = scored(s1=0.3, s2=0.5)
    assert is_among_best(run, LogConfig(keep_best=keep_best), score) == kept
    assert not is_among_best(run, LogConfig(keep_best=keep_best), math.nan)


def test_others_are_forgotten_and_what_was_half_removed_too(scored):
    run = scored(s1=0.5, s2=0.1, s3=0.3, s4=None, s5=None)
    (run / "checkpoints/.step-00000009.half").mkdir()
    (run / "checkpoints/.step-00000000.gone").mkdir()
    forget_others(run, LogConfig(keep=2, keep_best=1))
    assert sorted(path.name[5:] for path in (run / "checkpoints").iterdir()) == ["00000002", "00000004", "00000005"]
    assert (run / "best").resolve() == checkpoint_path(run, 2).resolve()
    forget_others(run, LogConfig(keep=1))
    assert steps(checkpoints(run)) == [5]
    assert not (run / "best").is_symlink()


def test_checkpoints_before_leaps_are_kept_until_there_are_newer_ones(scored):
    run = scored(s1=None, s2=None, s3=None, s4=None, s5=None)
    assert [path.name[-1] for path in before(run, [1, 2, 4, 9])] == ["1", "3", "5"]
    forget_others(run, LogConfig(keep=1), [3, 4])
    assert steps(checkpoints(run)) == [2, 3, 5]
    forget_others(run, LogConfig(keep=1), [4, 5])
    assert steps(checkpoints(run)) == [3, 5]  # of what is there, the nearest before 5 too
    forget_others(run, LogConfig(keep=1))
    assert steps(checkpoints(run)) == [5]


def flip(path, old, new):
    """What one bit, or a few, do to a file."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def sealed(run):
    for path in checkpoints(run):
        seal(path)
    return run


@pytest.mark.parametrize("new", [b"0.0", b"0.1x"], ids=["another score", "no JSON"])
def test_a_damaged_score_moves_no_best_and_is_set_aside_by_name(new, scored):
    run = sealed(scored(s1=0.5, s2=0.1, s3=0.3, s4=None))
    flip(checkpoint_path(run, 1) / "train.json", b"0.5", new)
    assert steps(best(run, LogConfig(keep_best=9))) == [2, 3]
    assert not is_among_best(run, LogConfig(keep_best=2), 0.4)
    said = []
    forget_others(run, LogConfig(keep=1, keep_best=1), say=said.append)
    assert steps(checkpoints(run)) == [2, 4]
    assert (run / "best").resolve() == checkpoint_path(run, 2).resolve()
    assert (run / "checkpoints/damaged-00000001/train.json").exists()
    (line,) = said
    assert line.startswith("step-00000001/train.json is damaged")
    assert line.endswith("set aside as damaged-00000001")


def test_the_best_are_looked_at_before_a_run_goes_on(scored):
    run = scored(s1=0.1, s2=0.2, s3=0.3, s4=0.4)
    for path in checkpoints(run):
        for name in ("model.safetensors", "train.safetensors"):
            (path / name).write_text("weights")
    forget_others(sealed(run), LogConfig(keep=9, keep_best=2))
    assert (run / "best").resolve() == checkpoint_path(run, 1).resolve()
    flip(checkpoint_path(run, 1) / "model.safetensors", b"weights", b"Weights")
    flip(checkpoint_path(run, 3) / "model.safetensors", b"weights", b"Weights")
    said = []
    newest = newest_whole(run, "model.safetensors", said.append)
    whole_best(run, LogConfig(keep_best=2), "model.safetensors", said.append, newest)
    assert steps(checkpoints(run)) == [2, 4]
    assert (run / "best").resolve() == checkpoint_path(run, 2).resolve()
    assert [line.partition("/")[0] for line in said] == ["step-00000001", "step-00000003"]


@pytest.mark.parametrize("left_out", ["train.json", "model.safetensors", "train.safetensors", None])
def test_checksums_that_leave_out_a_file_are_no_seal(left_out, tiny_run, tmp_path):
    path = shutil.copytree(checkpoints(tiny_run)[-1], tmp_path / "step-00000006")
    assert fault(path, "model.safetensors") == ""
    sums = json.loads((path / "checksums.json").read_text())
    kept = {} if left_out is None else {name: mark for name, mark in sums.items() if name != left_out}
    (path / "checksums.json").write_text(json.dumps(kept))
    assert fault(path, "model.safetensors") == f"checksums.json is damaged: it lacks {left_out or 'train.json'}"


def test_a_run_keeps_its_best_and_samples_from_it(tiny, tmp_path):
    train(tiny(f"--steps 6 --log.keep_best 1 {VALIDATED} --log.checkpoint_every 4 --optim.lr 0.05"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    first = min(found, key=found.get)
    assert steps(checkpoints(tmp_path / "run")) == sorted({first, 6})
    assert read_facts(tmp_path / "run/best")["scores"] == {"val_loss": found[first]}
    words = ["sample", str(tmp_path / "run/best"), "--output", str(tmp_path / "out"), "--class-labels", "3"]
    assert main(words) == 0
    assert (tmp_path / "out/grid.png").exists()


def test_a_name_that_nothing_measures_is_an_error_that_names_what_is(tiny, tmp_path):
    config = tiny(f"--steps 6 --log.keep_best 1 {VALIDATED} --log.best_by fid/inception")
    with pytest.raises(UserError, match=r"log\.best_by 'fid/inception' is not measured; measured: val_loss"):
        train(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"log\.keep_best is 1, but nothing is measured: .*data\.validation"):
        train(tiny("--steps 6 --log.keep_best 1"), tmp_path / "other")
    with pytest.raises(UserError, match=r"'val_los' is not measured; measured: val_loss \(did you mean 'val_loss'\?\)"):
        train(tiny(f"--steps 6 --log.keep_best 1 {VALIDATED} --log.best_by val_los"), tmp_path / "another")
    assert list(tmp_path.iterdir()) == []


def refused(folder, config):
    """What a process of a run says, in a file of its own."""
    rank = os.environ["RANK"]
    try:
        train(config, Path(folder) / "run")
    except UserError as error:
        (Path(folder) / rank).write_text(str(error))


def test_all_processes_refuse_such_a_name_in_the_same_words(tiny, tmp_path):
    config = tiny(f"--steps 6 --log.keep_best 1 {VALIDATED} --log.best_by val_loss_bins")
    together(2, refused, str(tmp_path), config)
    said = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert said.keys() == {"0", "1"}
    assert set(said.values()) == {
        "log.best_by 'val_loss_bins' is not measured; measured: val_loss (did you mean 'val_loss'?)"
    }


@pytest.mark.parametrize("name", ["keep_best", "stop_within"])
def test_what_cannot_be_is_refused(name):
    with pytest.raises(UserError, match=rf"log\.{name} must be at least 0; got -1"):
        LogConfig(**{name: -1})


def test_every_changed_byte_and_every_lost_file_is_found(tmp_path):
    (tmp_path / "below").mkdir()
    files = {"a": b"x" * 40, "below/b": b"", "c": b"12"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert damage(tmp_path) == ""  # of before there were checksums
    seal(tmp_path)
    assert damage(tmp_path) == damage(tmp_path, afresh=True) == ""
    (tmp_path / "new").write_text("one more does no harm")
    assert damage(tmp_path) == ""
    for name in ("a", "c", "checksums.json"):
        content = (tmp_path / name).read_bytes()
        for bit in range(8 * len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(changed)
            assert damage(tmp_path), f"bit {bit} of {name}"
        (tmp_path / name).write_bytes(content[:-1])
        assert damage(tmp_path).startswith(name) or name == "checksums.json"
        (tmp_path / name).write_bytes(content)
    (tmp_path / "below/b").unlink()
    assert damage(tmp_path) == "below/b is missing"


@pytest.mark.parametrize(("within", "takes", "left_out"), [(0, 9, False), (10, 5, False), (10, 8, True), (3, 1, True)])
def test_a_save_that_would_not_fit_is_left_out_and_that_is_said(
    within, takes, left_out, tiny, outcome, tmp_path, capsys, monkeypatch
):
    """The signal came two seconds before the step ended; the save before took `takes`."""
    config = tiny(f"--steps 12 --log.stop_within {within}")
    train(config, tmp_path / "straight")
    now, real, write = [0.0], job.save, Log.write

    def slow(*args):
        now[0] += takes
        real(*args)

    def stopped(log, tick):
        write(log, tick)
        if tick.step == 5:
            signal.raise_signal(signal.SIGTERM)
            now[0] += 2

    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now[0])
        patch.setattr(job, "save", slow)
        patch.setattr(Log, "write", stopped)
        with pytest.raises(SystemExit) as left:
            train(config, tmp_path / "stopped")
    assert left.value.code == 128 + signal.SIGTERM
    last = capsys.readouterr().err.splitlines()[-1]
    assert steps(checkpoints(tmp_path / "stopped"))[-1] == (3 if left_out else 5)
    if left_out:
        assert last == (
            f"SIGTERM: no time to save step 5 (the save before took {takes:.1f} s, log.stop_within is {within} s): "
            "the last one saved is 3 of 12; the same command goes on"
        )
    else:
        assert last == "SIGTERM: saved step 5 of 12; the same command goes on"
    train(config, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")
    assert read_safetensors(checkpoints(tmp_path / "stopped")[-1] / "model.safetensors")
