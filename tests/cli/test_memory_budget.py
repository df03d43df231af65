"""A budget of memory on the command line: `ditwright info --memory-gb`, and what `train` says to one that cannot be."""

from __future__ import annotations

import json

import pytest

from ditwright.model.build import parameters
from ditwright.model.presets import PRESETS
from ditwright.train.cost import memory

BILL = "DiT-XL/2 --batch-size 64 --train-steps 100 --tflops 100 --devices 2"
ASKED = "DiT-XL/2 --batch-size 64 --parallel.data 2 --memory-gb 24"


def test_info_tells_how_many_blocks_are_recomputed_and_the_parts_then(command):
    found = json.loads(command("info", *ASKED.split(), "--json").out)["memory"]
    net, count = PRESETS["DiT-XL/2"], found["recomputed_blocks"]
    needs = [memory(net, (32, 32), 32, parameters(net), recomputed=n) for n in range(net.depth)]
    assert found["bytes_by_part"] == needs[count]
    assert found["bytes_per_device"] == sum(needs[count].values()) <= 24e9 < sum(needs[count - 1].values())
    assert 0 < count < net.depth == found["blocks"]
    text = command("info", *ASKED.split()).out
    assert f"{count} of 28 blocks, the fewest for at most 24 GB" in text
    assert f"activations {needs[count]['activations'] / 1e9:.1f}" in text
    plain = json.loads(command("info", *ASKED.split()[:-2], "--json").out)["memory"]
    assert plain["bytes_by_part"] == needs[0]
    assert "recomputed" not in command("info", *ASKED.split()[:-2]).out


def test_hours_are_for_what_is_recomputed_too(command):
    words = BILL.split()
    plain = json.loads(command("info", *words, "--json").out)
    within = json.loads(command("info", *words, "--memory-gb", "24", "--json").out)
    again = within["memory"]["recomputed_blocks"] / 28 / 3
    assert within["training"]["hours"] == pytest.approx(plain["training"]["hours"] * (1 + again))
    assert within["training"]["flops"] == plain["training"]["flops"]
    assert "what is recomputed counted in" in command("info", *words, "--memory-gb", "24").out
    assert "what is recomputed counted in" not in command("info", *words, "--memory-gb", "240").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "info DiT-XL/2 --batch-size 64 --memory-gb 16",
            "GB even with all blocks recomputed, and memory_gb is 16: take",
        ),
        ("info DiT-XL/2 --memory-gb 0", "--memory-gb must be a number above 0; got 0"),
        ("info DiT-XL/2 --memory-gb inf", "--memory-gb must be a number above 0; got inf"),
        ("info ADM-256 --memory-gb 80", "leave memory_gb out for a U-Net"),
        ("info DiT-XL/2 --memory-gb 80 --devices 2 --parallel.data 2", "give one of them"),
        ("train digits --memory-gb -1", "memory_gb must be 0 or more; got -1"),
        ("train digits --memory-gb inf", "memory_gb must be"),
        ("train digits --memory-gb 1 --checkpoint_activations true", "memory_gb for as few as it takes: give one of"),
        ("train digits --memory-gb 1 --parallel.offload true", "parallel.offload keeps them off: give one of them"),
        (
            "train digits --memory-gb 0.001",
            "GB even with all blocks recomputed, and memory_gb is 0.001: take a smaller",
        ),
    ],
)
def test_a_budget_that_cannot_be_is_told_in_a_line(words, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(*words.split())
    assert list(tmp_path.iterdir()) == []
