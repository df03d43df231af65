"""`ditwright info`: what a device holds whose matrices are parted, or whose weights wait in the host's memory."""

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
        (
            "DiT-XL/2 --parallel.tensor 5",
            "--parallel.tensor 5: tensor parallelism parts heads: 16 are not divisible by 5",
        ),
        ("DiT-XL/2 --parallel.tensor 0", "--parallel.tensor must be at least 1; got 0"),
        (
            "DiT-XL/2 --parallel.sequence 8 --parallel.tensor 4",
            "--parallel.sequence 8 times --parallel.tensor 4 shares 16 heads, which 32 does not divide",
        ),
        ("ADM-256 --parallel.tensor 2", "a transformer's blocks, and this network has none"),
    ],
)
def test_what_cannot_be_parted_is_told(words, said, refused):
    assert said in refused("info", *words.split())


def test_it_is_for_a_preset(tiny_run, refused):
    assert "--parallel.tensor is for a preset" in refused("info", tiny_run, "--parallel.tensor", "2")


HELD = ("weights", "gradients", "optimizer", "average")


@pytest.mark.parametrize("ways", ["--parallel.shard 4", "--parallel.data 2 --parallel.shard 2 --parallel.tensor 2"])
def test_what_a_device_holds_waits_in_the_hosts_memory(ways, command):
    """What is whole at once, and what blocks keep, stay where they were."""
    words = ["info", "DiT-S/2", *ways.split(), "--json"]
    here, there = (json.loads(command(*words, *more).out)["memory"] for more in ((), ("--parallel.offload", "true")))
    assert there["host_bytes_by_part"] == {name: here["bytes_by_part"][name] for name in HELD}
    assert there["host_bytes_per_device"] == sum(there["host_bytes_by_part"].values())
    passes = there["bytes_by_part"].pop("on the way")
    assert there["bytes_by_part"] == {name: n for name, n in here["bytes_by_part"].items() if name not in HELD}
    assert there["bytes_per_device"] == sum(there["bytes_by_part"].values()) + passes < here["bytes_per_device"]
    assert (here["parallel"] | {"offload": True}, here["devices"]) == (there["parallel"], there["devices"])


def test_one_device_that_offloads_holds_two_blocks_and_not_all(command):
    """It is trained as shards are: the weights of two blocks are whole in bf16, those of none in fp32 and bf16."""
    found = json.loads(command("info", "DiT-S/2", "--parallel.offload", "true", "--json").out)
    memory, count = found["memory"], found["trained_parameters"]
    assert memory["host_bytes_by_part"] == dict(zip(HELD, (4 * count, 4 * count, 8 * count, 4 * count), strict=True))
    block = 18 * 384**2 + 15 * 384  # qkv, proj, the MLP's two, the modulation's six, with their biases
    rest = count - 12 * block
    assert memory["bytes_by_part"].keys() == {"whole weights", "whole gradients", "activations", "on the way"}
    assert memory["bytes_by_part"]["whole weights"] == 2 * 2 * block + 6 * rest
    assert memory["bytes_by_part"]["on the way"] == 4 * (3 * block + rest)
    text = command("info", "DiT-S/2", "--parallel.offload", "true").out
    assert f"host (computed)            {20 * count / 1e9:.1f} GB of its memory for each: weights 0.1, gradi" in text


def test_offload_false_changes_nothing(command):
    words = ["info", "DiT-S/2", "--parallel.shard", "2"]
    assert command(*words, "--parallel.offload", "false") == command(*words)
    assert "host" not in command(*words).out
