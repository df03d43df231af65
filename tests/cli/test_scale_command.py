"""`ditwright scale`: a study by name, file or folder; what each action prints, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from ditwright.config import dump_yaml, from_dict
from ditwright.scaling.plan import runs_of
from ditwright.scaling.study import STUDIES, Study
from scaling_logs import SMALL, SPACE, Truth, write_logs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "scale-small"
    write_logs(folder)
    return folder


@pytest.fixture
def small(tmp_path):
    """The study as a file."""
    path = tmp_path / "small.yaml"
    path.write_text(dump_yaml(SMALL))
    return path


def test_plan_prints_a_row_for_each_run_and_trains_nothing(command, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("scale", "plan", small, "--gflops", 100, "--budget-minutes", 0.5)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    runs = runs_of(SMALL, SPACE)
    assert [line.split()[0] for line in lines[1 : 1 + len(runs)]] == [run.name for run in runs]
    assert f"{runs[0].parameters:,}" in lines[1]
    over = sum(line.endswith("over budget") for line in lines)
    assert 0 < over < len(runs)
    assert f"{len(runs) - over} of the {len(runs)} runs that are not done fit into 0.5 minutes." in out
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_plan_knows_what_is_done_and_what_is_too_large(command, finished):
    _, out, _ = command("scale", "plan", finished, "--gflops", 1)
    assert out.count("done\n") == len(runs_of(SMALL, SPACE))
    _, out, _ = command("scale", "plan", finished, "--seeds", "5", "--gflops", 1, "--memory-gb", 0.01)
    assert "too large" in out
    assert "do not fit into 0.0 GB; `scale run` refuses them." in out


def test_plan_measures_where_no_rate_is_stated(command, small):
    words = "--widths 16 --patches 2,4,8 --held_out none --conditioning none --batch_size 8 --precision fp32"
    code, out, err = command("scale", "plan", small, *words.split())
    assert (code, err) == (0, "")
    assert "from steps timed on cpu" in out
    assert "?" not in out


def test_print_study_prints_a_study(command, tmp_path):
    words = "--seeds 3 --train.optim.ema 0.5 --held_out.width 256"
    code, out, _ = command("scale", "plan", "digits", *words.split(), "--print-study")
    study = from_dict(Study, yaml.safe_load(out))
    assert code == 0
    assert (study.seeds, study.base().optim.ema, study.held_out.width) == ((3,), 0.5, 256)
    (tmp_path / "mine.yaml").write_text(out)
    assert command("scale", "run", tmp_path / "mine.yaml", "--print-study").out == out


def test_run_does_a_study_from_end_to_end(command, tmp_path):
    words = """--widths 16 --patches 2,4,8 --steps 2 --seeds 0 --held_out none --conditioning none
        --unets none --transfer none --lr_width 16 --head_width 8 --batch_size 8
        --precision fp32 --samples 0 --train.data.validation_size 8 --train.log.evaluate_every 1
        --train.log.every 1"""
    folder = tmp_path / "study"
    code, out, _ = command("scale", "run", "digits", "--output", folder, *words.split())
    assert code == 0
    follow = [line.partition("ditwright ")[2].split() for line in out.splitlines() if "ditwright" in line]
    assert [words[:2] for words in follow] == [["scale", "fit"], ["scale", "report"]]
    code, out, err = command(*follow[0])
    assert (code, err) == (0, "")
    assert "w16" not in json.loads((folder / "fit.json").read_text())["held_out"]
    assert "held-out loss, every patch" in out


def test_fit_prints_laws_and_foretells(command, finished):
    code, out, err = command("scale", "fit", finished, "--predict", "256/2")
    assert (code, err) == (0, "")
    law = json.loads((finished / "fit.json").read_text())["laws"][0]
    assert law["b"] == pytest.approx(Truth().b, rel=1e-2)
    assert [point["over_law"] for point in law["points"]] == pytest.approx([0] * 8, abs=1e-3)
    run = next(r for r in runs_of(SMALL, SPACE) if r.network == "w96-p2")
    assert run.network in out
    told = out.partition("w256-p2")[2]
    assert f"held-out loss     {Truth().loss(float(told.split()[1])):.4f} [" in told


def test_report_writes_the_page(command, finished):
    pytest.importorskip("matplotlib")
    code, out, err = command("scale", "report", finished)
    assert (code, err) == (0, "")
    page = Path(out.removeprefix("report: ").strip())
    assert page == finished / "report" / "index.html"
    assert "<h1>Scaling study: small</h1>" in page.read_text()


def test_report_names_what_it_needs(refused, finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'ditwright[eval]'" in refused("scale", "report", finished)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan digit", "unknown study 'digit'; known: digits (did you mean 'digits'?)"),
        ("plan nowhere.yaml", "there is no config file 'nowhere.yaml'"),
        ("train digits", "invalid choice: 'train'"),
        ("plan digits --gflops 0", "--gflops must be above 0; got 0"),
        ("plan digits --budget-minutes -1 --gflops 1", "--budget-minutes must be above 0; got -1"),
        ("run digits --gflops 10", "--gflops is for `ditwright scale plan`"),
        ("report digits --predict 3/4", "--predict is for `ditwright scale fit`"),
        ("plan digits --width 3 --gflops 1", "unknown key 'width'; known: recipe, widths"),
        ("fit digits --output nowhere", "holds no study (study.yaml is missing); `ditwright scale run` makes one"),
        ("fit digits --seeds 3", "--seeds would change nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused("scale", *words.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", ["256", "a/b", "256/", "100/2", "256/3"])
def test_a_network_that_cannot_be_foretold_is_refused(asked, command, finished):
    code, _, err = command("scale", "fit", finished, "--predict", asked)
    assert code == 2
    assert err.startswith("ditwright: error: ")
    assert err.count("\n") == 1


def test_studies_have_names_in_the_help(command):
    _, out, _ = command("scale", "--help")
    assert all(name in out for name in STUDIES)
