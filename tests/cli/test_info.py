"""`ditwright info` counts as the paper does."""

from __future__ import annotations

import json

import pytest

from ditwright.model.presets import PRESETS

PARAMETERS = {"DiT-S/2": 32_963_360, "DiT-B/2": 130_512_416, "DiT-L/2": 458_102_816, "DiT-XL/2": 675_129_632}
GFLOPS = {  # Peebles & Xie, Tables 1, 3 and 4: multiply-adds
    ("DiT-S/8",): 0.36,
    ("DiT-S/4",): 1.41,
    ("DiT-S/2",): 6.06,
    ("DiT-B/8",): 1.42,
    ("DiT-B/4",): 5.56,
    ("DiT-B/2",): 23.01,
    ("DiT-L/8",): 5.01,
    ("DiT-L/4",): 19.70,
    ("DiT-L/2",): 80.71,
    ("DiT-XL/8",): 7.39,
    ("DiT-XL/4",): 29.05,
    ("DiT-XL/2",): 118.64,
    ("DiT-XL/2", "--image-size", "512"): 524.60,
    ("DiT-XL/2", "--conditioning", "in-context"): 119.37,
    ("DiT-XL/2", "--conditioning", "cross"): 137.62,
    ("DiT-XL/2", "--conditioning", "adaln"): 118.56,
}


def facts(command, *words):
    code, out, err = command("info", *words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("words", GFLOPS, ids=" ".join)
def test_macs_are_the_papers_gflops(words, command):
    found = facts(command, *words)
    digits = 0.005  # the paper rounds to two of them
    assert found["macs"] / 1e9 == pytest.approx(GFLOPS[words], rel=0.005, abs=digits)
    assert found["flops"] == 2 * found["macs"]
    assert sum(found["macs_by_part"].values()) == found["macs"]


def test_every_preset_is_in_the_papers_table():
    assert {words[0] for words in GFLOPS if len(words) == 1} == {name for name in PRESETS if name.startswith("DiT-")}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_to_the_unit(name, command):
    found = facts(command, name)
    assert found["parameters"] == PARAMETERS[name]
    assert found["trained_parameters"] + found["position_table"] == found["parameters"]


def test_the_picture_may_have_any_shape(command):
    wide = facts(command, "DiT-S/2", "--image-size", "128", "512")
    square = facts(command, "DiT-S/2", "--image-size", "256")
    assert wide["latent_size"] == [16, 64]
    assert wide["tokens"] == square["tokens"] == 256
    assert wide["macs"] == square["macs"]


def test_classes_cost_a_row_each(command):
    more, fewer = (facts(command, "DiT-S/4", "--num-classes", str(n)) for n in (100, 10))
    assert more["parameters"] - fewer["parameters"] == 90 * 384
    none = facts(command, "DiT-S/4", "--num-classes", "0")
    assert fewer["parameters"] - none["parameters"] == 11 * 384


def test_text_says_which_flops_are_which(command):
    code, out, err = command("info", "DiT-XL/2")
    assert (code, err) == (0, "")
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert lines["MACs (the paper's Gflops)"].strip().startswith("118.6")
    assert lines["FLOPs (2 per MAC)"].strip().startswith("237.")
    assert "675,129,632" in lines["parameters"]
    assert lines["tokens"].strip() == "256"
