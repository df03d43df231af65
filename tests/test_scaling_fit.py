"""From logs to laws, predictions and a page: from logs of a known law, so that what must come out is known."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ditwright.errors import UserError
from ditwright.scaling.fit import PREDICTION, fit_study, keep_prediction, predict
from ditwright.scaling.optimum import frontier, growth, loss_at, slices
from ditwright.scaling.plan import runs_of
from ditwright.scaling.report import order, write_report
from ditwright.scaling.results import networks, read_results
from ditwright.scaling.study import HELD_OUT, LADDER
from scaling_logs import SMALL, SPACE, Truth, write_logs

ROUNDS = 60
FIGURES = ("quality", "curves", "slices", "residuals", "samples")
TRUTH = Truth()
HELD = next(run for run in runs_of(SMALL, SPACE) if run.role == HELD_OUT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study whose prediction was written before the held-out network came; then all is there."""
    folder = tmp_path_factory.mktemp("study") / "scale-small"
    write_logs(folder, noise=0.005, held_out=False)
    keep_prediction(SMALL, folder, HELD, rounds=ROUNDS)
    write_logs(folder, noise=0.005)
    return folder


@pytest.fixture(scope="module")
def findings(finished):
    return fit_study(SMALL, finished, rounds=ROUNDS)


def test_the_known_law_is_within_its_intervals(findings):
    law = findings.law("loss", "gflops").law
    for name, true in TRUTH._asdict().items():
        low, high = law.interval(name)
        assert low <= true <= high, name
    assert law.interval("c")[1] < 0.4


def test_laws_are_of_every_patch_and_of_each(findings):
    found = {(f.metric, f.against, f.patch): len(f.networks) for f in findings.laws}
    both = {("loss", "gflops"), ("frechet", "gflops")}
    assert {key[:2] for key in found} == both | {("loss", "frontier")}
    assert {found[(*pair, None)] for pair in both} == {8}
    assert {found[(*pair, patch)] for pair in both for patch in (2, 4)} == {4}


def test_the_held_out_network_is_in_no_law(findings):
    named = {name for fitted in findings.laws for name in fitted.networks}
    assert "w96-p2" in named
    assert HELD.network not in named
    assert findings.held_out.name == HELD.network


def test_the_prediction_was_made_without_it_and_stays_as_it_was(findings, finished):
    written = (finished / PREDICTION).read_text()
    told = json.loads(written)[HELD.network]
    assert len(told["made_from"]) == sum(run.role == LADDER for run in runs_of(SMALL, SPACE))
    assert HELD.name not in told["made_from"]
    assert keep_prediction(SMALL, finished, HELD, rounds=ROUNDS) == told
    assert (finished / PREDICTION).read_text() == written
    for metric, miss in findings.misses().items():
        assert miss["by"] == "patch 2", metric
        assert abs(miss["miss"]) < 0.05
        assert miss["inside"]
        assert miss["actual"] == findings.held_out.mean(metric)


def test_an_exact_law_foretells_exactly(tmp_path):
    write_logs(tmp_path)
    findings = fit_study(SMALL, tmp_path, rounds=2)
    x = 100 * findings.ladder[-1].gflops
    for patch, by in ((2, "patch 2"), (8, "every patch")):
        told = predict(SMALL, findings.laws, x, patch)["loss"]
        assert (told["by"], told["value"]) == (by, pytest.approx(TRUTH.loss(x), rel=1e-3))
    (last,) = {test["network"] for test in findings.backtests if test["patch"] is None}
    assert last == "w96-p2"
    assert all(abs(test["miss"]) < 1e-3 for test in findings.backtests)


def test_a_run_alone_does_not_make_a_law(tmp_path):
    study = replace(SMALL, widths=(32, 64), patches=(4,), held_out=None, conditioning=None)
    write_logs(tmp_path, study)
    with pytest.raises(UserError, match="needs at least 3 finished networks of different cost; there are 2"):
        fit_study(study, tmp_path)


def test_lengths_in_operations_are_compared_by_training(tmp_path):
    study = replace(SMALL, steps=(), flops=(1e11, 1e12), held_out=None, conditioning=None, seeds=(0,))
    write_logs(tmp_path, study)
    findings = fit_study(study, tmp_path, rounds=2)
    assert {f.against for f in findings.laws} == {"compute", "frontier"}
    assert {s.compute for s in findings.slices} == {1e11, 1e12}
    assert {len(s.networks) for s in findings.slices} == {4}
    assert predict(study, findings.laws, 1e13, 2)["loss"]["value"] > TRUTH.c


def test_slices_find_the_size_that_the_law_of_their_losses_has(tmp_path):
    """Of losses that are a parabola in log size at each compute, its lowest point comes out."""
    study = replace(SMALL, steps=(), flops=(1e11, 1e12), seeds=(0,), held_out=None, conditioning=None, patches=(2,))
    write_logs(tmp_path, study)
    results = []
    for result in read_results(study, tmp_path):
        budget = 1e11 if result.compute < 3e11 else 1e12
        best = 1e-3 * (budget / 1e11) ** 0.5
        loss = float(np.exp(0.05 * np.log(result.gflops / best) ** 2))
        results.append(replace(result, curve=((result.facts["steps"], loss),)))
    found = slices(networks(results), study.flops)
    assert [s.minimum for s in found] == [pytest.approx(1e-3), pytest.approx(1e-3 * 10**0.5)]
    assert growth(found) == pytest.approx(0.5)
    assert growth(found[:1]) is None


def test_the_frontier_is_the_least_of_all_curves(finished):
    found = networks(r for r in read_results(SMALL, finished) if r.role == LADDER)
    x, y = frontier([network.curve() for network in found])
    for compute, loss in zip(x, y, strict=True):
        there = [value for n in found if (value := loss_at([n], compute)) is not None]
        assert loss <= min(there) * (1 + 1e-9)
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) <= 0).all()
    assert y[-1] == pytest.approx(min(n.mean("loss") for n in found))


def test_conditionings_and_over_fitting_are_told(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "study")
    path = folder / "w64-p2-400-s0" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lowest = min(line["val_loss"] for line in lines if "val_loss" in line) / 2
    lines[-3]["val_loss"], lines[-1]["val_loss"] = lowest, 1.5 * lowest
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    findings = fit_study(SMALL, folder, rounds=2)
    assert findings.overfitted() == {"w64-p2-400-s0": pytest.approx(0.5)}
    assert list(findings.conditionings()) == ["adaln", "adaln-zero"]
    assert {len(network.runs) for network in findings.conditionings().values()} == {2}


def test_diverged_runs_are_left_out_and_told(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "study")
    (folder / "w64-p2-400-s0" / "scores.json").unlink()
    (folder / "w64-p2-400-s0" / "diverged.json").write_text('{"why": "the loss of step 9 is nan"}')
    findings = fit_study(SMALL, folder, rounds=2)
    assert findings.diverged == {"w64-p2-400-s0": "the loss of step 9 is nan"}
    page = write_report(findings, folder, "small").read_text()
    assert "Left out: w64-p2-400-s0, the loss of step 9 is nan." in page


@pytest.mark.parametrize(
    ("file", "text"),
    [("metrics.jsonl", '{"step": 40, "val_loss": 1}\n'), ("metrics.jsonl", "{"), ("scores.json", "{}")],
)
def test_damaged_logs_are_named(file, text, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "study")
    (folder / "w64-p2-400-s0" / file).write_text(text)
    with pytest.raises(UserError, match="w64-p2-400-s0"):
        read_results(SMALL, folder)


def test_pairs_out_of_order_are_counted(findings):
    kept = order(findings.equal, "loss")
    assert kept == {"the wider network of one patch": (6, 6), "the smaller patch of one width": (4, 4)}
    reversed_ = [replace(n, runs=tuple(replace(r, curve=((400, -r.loss),)) for r in n.runs)) for n in findings.equal]
    assert order(reversed_, "loss") == {key: (0, count) for key, (_, count) in kept.items()}


def test_the_page_holds_all_it_shows_and_is_the_same_again(finished, findings, contents, tmp_path):
    pytest.importorskip("matplotlib")
    page = write_report(findings, finished, "small")
    before = contents(page.parent)
    assert before.keys() == {"index.html", *(f"{name}.png" for name in FIGURES)}
    text = page.read_text()
    assert not re.search(r"(src|href)=.?(http|//|/|\w+\.png)", text)
    inside = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    assert sorted(inside) == sorted(data for name, data in before.items() if name.endswith("png"))
    commands = re.findall(r"</table></div><p class=note><code>ditwright scale \w+ small</code>", text)
    assert len(commands) == text.count("<table>") == 5
    for name in ("w128-p2", "w64-p2-adaln", "19.47", "real pictures", "U-Net"):
        assert name in text
    again = write_report(fit_study(SMALL, finished, rounds=ROUNDS), finished, "small")
    assert contents(again.parent) == before


def test_the_figures_show_every_network(finished, findings):
    write_report(findings, finished, "small")
    with Image.open(finished / "report" / "quality.png") as opened:
        assert opened.width > opened.height > 300
        assert len(set(opened.convert("RGB").get_flattened_data())) > 20
        assert "Software" not in opened.info
    with Image.open(finished / "report" / "samples.png") as opened:
        assert opened.height > 5 * 40  # five widths, the held-out one among them
