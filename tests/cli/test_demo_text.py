"""`ditwright demo scenes` and `demo emoji` in small: they train, check what was drawn, and save a page of prompts."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ditwright.accel import compiling
from ditwright.cli import demo_emoji, demo_scenes
from ditwright.data import emoji as emoji_module
from ditwright.data.base import Pictures
from ditwright.data.sources import SOURCES
from ditwright.recipes.emoji import emoji
from ditwright.recipes.scenes import layout, network, scenes
from ditwright.train import processes


@pytest.fixture
def small(monkeypatch):
    """Two steps of a network that fits on a thumbnail."""

    def make(config, source):
        model = network("joint", width=32, depth=2)
        model = replace(model, text_width=32)
        data = replace(config.data, source=source, batch_size=4)
        sample = replace(config.sample, num_inference_steps=2)
        return replace(config, steps=2, model=model, data=data, sample=sample, compile=False, precision="fp32")

    monkeypatch.setattr(compiling, "can_compile", lambda: False)
    monkeypatch.setattr(processes, "at_most", lambda batch_size: 1)
    drawn = sys.modules["ditwright.data.scenes"].scenes
    monkeypatch.setitem(SOURCES, "a few", lambda size=None: drawn(count=40, objects=(1, 2)))
    recipes = sys.modules["ditwright.recipes.scenes"]
    monkeypatch.setattr(recipes, "scenes", lambda route="joint": make(scenes(route), "a few"))
    monkeypatch.setattr(recipes, "layout", lambda: replace(layout(), steps=2, data=recipes.scenes().data))
    monkeypatch.setattr(sys.modules["ditwright.recipes.emoji"], "emoji", lambda: make(emoji(), "few emoji"))
    monkeypatch.setattr(demo_scenes, "PROMPTS", 16)
    monkeypatch.setattr(demo_emoji, "COMPOSED", ("face of a face", "number face " * 30))
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    few = Pictures(images, np.zeros(12, np.int64), (), texts=tuple(f"face number {n}" for n in range(12)))
    monkeypatch.setitem(SOURCES, "few emoji", lambda size=None: few)
    monkeypatch.setattr(emoji_module, "emoji", lambda size: few)


def test_scenes_are_checked_by_prompts_that_were_never_trained_on(small, command, tmp_path):
    code, out, _ = command("demo", "scenes", "--output", tmp_path / "run")
    assert code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["objects"] for row in report["samples"]["rows"]] == [1, 2, None]
    assert report["samples"]["rows"][2]["n"] == 32
    assert report["samples"]["rows"][2]["sentence"]["value"] < 0.2  # after two steps
    assert report["real_renders"]["rows"][2]["sentence"]["value"] > 0.9  # so the reader is not to blame
    assert str(tmp_path / "run" / "scenes.png") in out
    with Image.open(tmp_path / "run" / "scenes.png") as page:
        assert min(page.size) > 400
    code, _, err = command("demo", "scenes", "--output", tmp_path / "run")
    assert code == 0
    assert "nothing to do" in err


def test_emoji_are_looked_up_among_the_real_ones(small, command, tmp_path):
    code, out, err = command("demo", "emoji", "--output", tmp_path / "run")
    assert code == 0
    assert "note: the prompt was cut after 24 tokens" in err
    assert "CutWarning" not in err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["names"] == 12
    assert 0 <= report["nearest_real_emoji_is_the_one_named"] <= 1
    assert str(tmp_path / "run" / "emoji.png") in out
    with Image.open(tmp_path / "run" / "emoji.png") as page:
        assert min(page.size) > 300


def test_the_nearest_is_the_one_with_least_squared_difference():
    draws = np.random.default_rng(1)
    real = draws.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    order = draws.permutation(20)
    noisy = np.clip(real[order].astype(int) + draws.integers(-40, 41, real.shape), 0, 255).astype(np.uint8)
    assert (demo_emoji.nearest(noisy, real) == order).all()


def test_an_unknown_demo_is_one_line(command):
    code, _, err = command("demo", "scene")
    assert code == 2
    assert "unknown demo 'scene'; known: " in err
    assert "did you mean 'scenes'" in err
