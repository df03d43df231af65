"""A tiny study, really trained: killed, gone on with, shared between processes, and the same in the end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditwright.data.digits import digits
from ditwright.errors import UserError
from ditwright.metrics.judge import learn_judge
from ditwright.scaling import work
from ditwright.scaling.fit import PREDICTION, fit_study
from ditwright.scaling.plan import runs_of
from ditwright.scaling.probe import measured_rates
from ditwright.scaling.results import read_results
from ditwright.scaling.score import JUDGE, tiled
from ditwright.scaling.study import HELD_OUT, STUDY, HeldOut, Study, changed
from ditwright.scaling.work import claim, run_study, share
from ditwright.train.log import Log
from ditwright.train.state import checkpoints

CPU = torch.device("cpu")
CLOCK = ("samples_per_second", "tflops", "share_of_peak")
TINY = Study(
    recipe="digits",
    widths=(16,),
    patches=(2, 4, 8),
    steps=(4,),
    seeds=(0,),
    held_out=HeldOut(32, 4),
    block_width=16,
    head_width=8,
    batch_size=8,
    precision="fp32",
    samples=30,
    options=(
        "data.source=digits-train",
        "data.validation=digits-held-out",
        "data.validation_size=8",
        "optim.warmup=1",
        "optim.schedule=constant",
        "log.every=1",
        "log.evaluate_every=2",
        "log.preview_every=0",
        "log.checkpoint_every=2",
        "sample.num_inference_steps=2",
    ),
)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A judge that learned next to nothing, in no time."""
    real, path = digits("train"), tmp_path_factory.mktemp("judge") / JUDGE
    learn_judge(real.images, real.targets, dataset="digits-train", steps=2).save(path)
    return path


@pytest.fixture
def folder(judge, tmp_path):
    """Where a study with that judge can be run."""
    (tmp_path / "study").mkdir()
    shutil.copy(judge, tmp_path / "study" / JUDGE)
    return tmp_path / "study"


@pytest.fixture(scope="module")
def finished(judge, tmp_path_factory):
    """A study that ran through without a stop. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    folder.mkdir()
    shutil.copy(judge, folder / JUDGE)
    run_study(TINY, folder, CPU)
    return folder


def told(folder):
    """All that a study came to, less the clock."""
    found = {}
    for path in sorted(folder.glob("*/scores.json")):
        lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        plain = [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
        scores = json.loads(path.read_text())
        assert scores.pop("seconds") > 0
        found[path.parent.name] = (scores, plain, (path.parent / "samples.png").read_bytes())
    prediction = json.loads((folder / PREDICTION).read_text())
    for one in prediction.values():
        one.pop("written")
    return found, prediction


def test_every_run_ends_with_scores_and_the_held_out_one_after_its_prediction(finished):
    found, prediction = told(finished)
    assert found.keys() == {run.name for run in runs_of(TINY)}
    assert prediction.keys() == {"w32-p4"}
    assert len(prediction["w32-p4"]["made_from"]) == 3
    held_out = finished / "w32-p4-4-s0"
    assert (finished / PREDICTION).stat().st_mtime_ns < (held_out / "config.yaml").stat().st_mtime_ns
    for scores, lines, _ in found.values():
        assert [line["step"] for line in lines if "val_loss" in line] == [2, 4]
        assert scores["frechet"]["samples"] == 30
        low, high = scores["frechet"]["interval"]
        assert 0 < low < scores["frechet"]["value"] < high
        assert scores["frechet"]["name"].startswith("FD (judge-digits-train-")
        assert 0 <= scores["frechet"]["recognised"] <= 1


def test_its_findings_are_whole(finished):
    findings = fit_study(TINY, finished, rounds=20)
    assert findings.misses().keys() == {"loss", "frechet"}
    facts = findings.reference
    assert (facts["pictures"], facts["held_out_pictures"]) == (1438, 359)
    assert facts["held_out_frechet"]["value"] > 0
    assert 0 < facts["judge_accuracy"] < 1


def test_networks_are_scored_on_equal_noise_with_labels_in_turn(finished):
    """The first samples of two networks that have learned next to nothing are nearly the same noise."""
    from PIL import Image

    shown = []
    for run in ("w16-p2-4-s0", "w16-p4-4-s0"):
        with Image.open(finished / run / "samples.png") as opened:
            assert opened.size == (80, 16)
            shown.append(np.array(opened, np.float64).ravel())
    assert np.corrcoef(*shown)[0, 1] > 0.9


def test_nothing_is_done_twice(finished, contents, capsys):
    before = contents(finished)
    run_study(TINY, finished, CPU)
    assert contents(finished) == before
    assert "training" not in capsys.readouterr().err


def test_logs_alone_are_a_finished_study(finished, tmp_path):
    """Checkpoints need not be kept or committed."""
    folder = shutil.copytree(finished, tmp_path / "study", ignore=shutil.ignore_patterns("checkpoints", ".locks"))
    run_study(TINY, folder, CPU)
    assert not list(folder.glob("*/checkpoints"))
    assert fit_study(TINY, folder, rounds=2).as_dict() == fit_study(TINY, finished, rounds=2).as_dict()


@pytest.mark.parametrize("stop", [3, 6, 11, 15])
def test_a_study_killed_at_any_step_ends_as_if_it_had_not_been(stop, finished, folder, monkeypatch):
    write, steps = Log.write, []

    def killed(log, tick):
        write(log, tick)
        steps.append(tick)
        if len(steps) == stop:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", killed)
        with pytest.raises(SystemExit):
            run_study(TINY, folder, CPU)
    assert len(list(folder.glob("*/scores.json"))) == (stop - 1) // 4
    run_study(TINY, folder, CPU)
    assert told(folder) == told(finished)


def test_a_stop_between_training_and_scoring_costs_no_step(finished, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(work, "score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_study(TINY, folder, CPU)
    (trained,) = folder.glob("w*")
    saved = checkpoints(trained)[-1].stat().st_mtime_ns
    run_study(TINY, folder, CPU)
    assert checkpoints(trained)[-1].stat().st_mtime_ns == saved
    assert told(folder) == told(finished)


def test_a_study_grows_and_keeps_what_it_predicted(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "study")
    grown = replace(TINY, held_out=HeldOut(48, 8))
    run_study(grown, folder, CPU)
    found, prediction = told(folder)
    assert prediction.keys() == {"w32-p4", "w48-p8"}
    assert prediction["w32-p4"] == told(finished)[1]["w32-p4"]
    assert found["w32-p4-4-s0"] == told(finished)[0]["w32-p4-4-s0"]
    assert {result.role for result in read_results(grown, folder)} == {"ladder", HELD_OUT}
    with pytest.raises(UserError, match="holds another study: batch_size is 8 there and 4 now"):
        run_study(replace(grown, batch_size=4), folder, CPU)


def test_runs_that_leave_the_numbers_are_noted_and_not_tried_again(folder, capsys):
    broken = changed(replace(TINY, held_out=None, samples=0, lr=1e38), ["--train.optim.warmup", "0"])
    for _ in range(2):
        run_study(broken, folder, CPU)
    assert len(list(folder.glob("*/diverged.json"))) == 3
    assert capsys.readouterr().err.count("is left out") == 3
    with pytest.raises(UserError, match="there are 0"):
        fit_study(broken, folder)


def test_a_study_without_samples_has_no_judge(folder):
    (folder / JUDGE).unlink()
    study = replace(TINY, samples=0, held_out=None)
    run_study(study, folder, CPU)
    assert not (folder / JUDGE).exists()
    assert {f.metric for f in fit_study(study, folder, rounds=2).laws} == {"loss"}


def test_a_run_too_large_is_refused_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(work, "available_memory", lambda device: 1000)
    with pytest.raises(UserError, match="are free"):
        run_study(TINY, folder, CPU)
    assert not (folder / STUDY).exists()


def test_processes_share_the_runs_and_each_is_done_once(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "PATIENCE", 0.01)
    runs, did = runs_of(TINY), []

    def do(run):
        time.sleep(0.02)
        did.append(run.name)
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "scores.json").touch()

    threads = [threading.Thread(target=share, args=(runs, tmp_path, do)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()  # nobody leaves before all is done, and all leave then
    assert sorted(did) == sorted(run.name for run in runs)


def test_what_a_process_holds_is_free_when_it_dies(tmp_path):
    holds = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); "
    words = [sys.executable, "-c", holds + "time.sleep(60)", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with claim(tmp_path, "run") as mine, claim(tmp_path, "another") as free:
            assert (mine, free) == (False, True)
        other.kill()
    with claim(tmp_path, "run") as mine:
        assert mine


def test_rates_are_measured_once_for_each_network(tmp_path):
    runs = runs_of(replace(TINY, seeds=(0, 1)))
    rates = measured_rates(runs, CPU, seconds=0.01)
    assert rates.keys() == {run.network for run in runs}
    assert all(0 < rate < 1e7 for rate in rates.values())


def test_tiles_are_the_samples_pixel_for_pixel():
    images = [np.full((2, 3, 1), i, np.uint8) for i in range(1, 13)]
    sheet = tiled(images)
    assert sheet.shape == (4, 30, 1)
    assert (sheet[0, ::3, 0] == np.arange(1, 11)).all()
    assert (sheet[2, ::3, 0] == [11, 12, *[0] * 8]).all()
    assert tiled(images[:3]).shape == (2, 9, 1)
