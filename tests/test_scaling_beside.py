"""What stands beside the ladder: U-Nets at equal Gflops, and learning rates by width; from logs of a known outcome."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import pytest

from ditwright.scaling.fit import fit_study
from ditwright.scaling.report import write_report
from ditwright.scaling.transfer import Sweep, drift, sweep_table
from scaling_logs import SMALL, WHOLE, best_rate, write_logs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "scale-whole"
    write_logs(folder, WHOLE)
    return folder


@pytest.fixture(scope="module")
def findings(folder):
    return fit_study(WHOLE, folder, rounds=20)


def test_neither_is_in_any_law(folder, findings):
    alone = fit_study(SMALL, folder, rounds=20)
    assert [law.as_dict() for law in findings.laws] == [law.as_dict() for law in alone.laws]
    assert alone.unets == []
    assert alone.sweeps == []
    assert len(findings.results) == len(alone.results) + 2 * 2 + 30


def test_a_u_net_is_compared_with_transformers_of_as_many_gflops(findings):
    duels = [duel for duel in findings.duels() if duel["metric"] == "loss"]
    assert [duel["network"] for duel in duels] == ["unet8", "unet32"]
    for duel in duels:
        assert duel["transformers"].keys() == {"patch 2", "patch 4"}
        for told in duel["transformers"].values():
            assert duel["value"] / told == pytest.approx(1.25, rel=1e-3)
    assert [duel["inside"]["patch 2"] for duel in duels] == [True, False]  # the larger is beyond the ladder
    assert not any(duel["inside"]["patch 4"] for duel in duels)


def test_the_best_rate_of_each_width_is_found_between_those_tried(findings):
    assert [(s.mup, s.width) for s in findings.sweeps] == [(m, w) for m in (False, True) for w in (32, 64, 128)]
    for sweep in findings.sweeps:
        assert sweep.best == pytest.approx(best_rate(sweep.width, sweep.mup), rel=1e-6)
        assert not sweep.open
    assert drift(findings.sweeps, False) == pytest.approx(4)
    assert drift(findings.sweeps, True) == pytest.approx(1)
    assert drift(findings.sweeps[:1], False) is None


def test_a_best_rate_at_an_end_is_marked_and_what_was_not_tried_is_not_told():
    falling = Sweep(64, True, (1e-3, 2e-3, 4e-3), (0.5, 0.4, 0.3))
    assert (falling.best, falling.open) == (4e-3, True)
    (row,) = sweep_table([falling], 8e-3).rows
    assert row == ("width 64, muP", "0.00400 or beyond", "0.300", "-", "-")
    (row,) = sweep_table([falling], 2e-3).rows
    assert row[-1] == "+33.3%"


def test_both_are_on_the_page(folder, findings):
    pytest.importorskip("matplotlib")
    text = write_report(findings, folder, "whole").read_text()
    assert {path.stem for path in (folder / "report").glob("*.png")} >= {"unets", "rates", "quality"}
    assert len(re.findall("data:image/png", text)) == 7
    for name in ("unets", "rates"):
        assert base64.b64encode((folder / "report" / f"{name}.png").read_bytes()).decode() in text
    assert "(+25%)" in text
    assert "With muP the best learning rates of the widths tried lie within a factor of 1." in text
    assert "Without muP the best learning rates of the widths tried lie within a factor of 4." in text
    assert "w64-p4-mup-x2" not in text  # sweeps have a table of their own
    assert "Not in this study" not in text


def test_runs_that_the_study_no_longer_asks_for_are_left_out(folder):
    less = replace(WHOLE.transfer, factors=(0.5, 1.0, 2.0), widths=(64,))
    found = fit_study(replace(WHOLE, transfer=less, unets=replace(WHOLE.unets, widths=(8,))), folder, rounds=20)
    assert [(sweep.width, len(sweep.rates)) for sweep in found.sweeps] == [(64, 3), (64, 3)]
    assert [network.name for network in found.unets] == ["unet8"]
    other = replace(WHOLE, transfer=replace(WHOLE.transfer, steps=50))
    assert fit_study(other, folder, rounds=20).sweeps == []
