"""`ditwright demo` in small: it trains, judges, and saves pictures; done again it only looks."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from ditwright.cli import demo_digits as demo


@pytest.fixture
def small(tiny, monkeypatch):
    monkeypatch.setattr(sys.modules["ditwright.recipes.digits"], "digits", lambda: tiny("--steps 3"))
    monkeypatch.setattr(demo, "SAMPLES", 50)


def test_the_demo_judges_what_it_trained(small, command, tmp_path):
    code, out, _ = command("demo", "--output", tmp_path / "run")
    assert code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["samples"] == 50
    assert report["guidance_scale"] == 1.0
    assert report["judge_accuracy_on_held_out_real_digits"] >= 0.97
    assert report["accuracy"] < 0.9  # after three steps nobody could read them
    assert report["spread_within_class_over_real"].keys() == set("0123456789")
    pictures = [tmp_path / "run" / name for name in ("digits.png", "denoising.png")]
    for path in pictures:
        assert str(path) in out
        with Image.open(path) as picture:
            assert min(picture.size) > 400  # to be enjoyed
    assert f"{report['accuracy']:.1%}" in out
    code, _, err = command("demo", "--output", tmp_path / "run")
    assert code == 0
    assert "nothing to do" in err
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    clocks = {name: None for name in again if name.endswith("seconds")}
    assert again | clocks == report | clocks
