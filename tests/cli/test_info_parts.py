"""`ditwright info --parallel.tensor`: what a device holds whose matrices are parted."""

from __future__ import annotations

import json

import pytest

WIDTH, DEPTH = 1152, 28  # of DiT-XL/2
PARTED = DEPTH * (12 * WIDTH**2 + 7 * WIDTH)  # qkv and fc1 with their biases, proj and fc2 without


def test_a_device_has_its_part_of_every_matrix_and_all_else(command):
    found = json.loads(command("info", "DiT-XL/2", "--parallel.tensor", "4", "--batch-size", "8", "--json").out)
    alone = json.loads(command("info", "DiT-XL/2", "--parallel.data", "1", "--batch-size", "8", "--json").out)
    memory = found["memory"]
    assert (memory["devices"], memory["parallel"]["tensor"]) == (4, 4)
    assert memory["bytes_by_part"]["weights"] == 4 * (found["trained_parameters"] - PARTED * 3 // 4)
    before = alone["memory"]["bytes_by_part"]["activations"]
    assert memory["bytes_by_part"]["activations"] == pytest.approx(before * (1 / 2 + 1 / 2 / 4))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("DiT-XL/2 --parallel.tensor 5", "tensor parallelism parts heads: 16 are not divisible by 5"),
        ("DiT-XL/2 --parallel.tensor 0", "are at least 1"),
        ("DiT-XL/2 --parallel.sequence 8 --parallel.tensor 4", "shares 16 heads, which 32 does not divide"),
        ("ADM-256 --parallel.tensor 2", "a transformer's blocks, and this network has none"),
    ],
)
def test_what_cannot_be_parted_is_told(words, said, refused):
    assert said in refused("info", *words.split())


def test_it_is_for_a_preset(tiny_run, refused):
    assert "--parallel.tensor is for a preset" in refused("info", tiny_run, "--parallel.tensor", "2")
