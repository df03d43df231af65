"""Tokens spread over processes come to what one process computes, forwards and backwards.

The processes of `shared` run everything in one go and note how far they are off; the tests read that.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ditwright.errors import UserError
from ditwright.nn.runners import Without
from ditwright.nn.sequence import InParts, attend_by_heads, part_of
from ditwright.train.parallel import join
from ditwright.train.processes import together
from ditwright.train.runners import checkpointed
from small_networks import NETWORKS, given, off, results

RUNNERS = {"plain": None, "checkpointed": checkpointed, "without a block": Without((1,))}
CASES = [
    (name, masked, "plain")
    for name, (config, _) in NETWORKS.items()
    for masked in (False, True)[: 1 + bool(config.text_width)]
]
CASES += [("sd3", True, "checkpointed"), ("flux", False, "checkpointed"), ("adaln-zero", False, "without a block")]
PROCESSES = 2


def mean(grads):
    """Over the processes, as DDP does it."""
    for grad in grads.values():
        dist.all_reduce(grad)
    return {name: grad / dist.get_world_size() for name, grad in grads.items()}


def shared(output):
    """In every process: all cases, in parts and alone."""
    world, found = join(), {}
    for name, masked, runner in CASES:
        net, *asked = given(*NETWORKS[name], masked)
        want, grads = results(net, *asked, RUNNERS[runner])
        run = InParts(dist.group.WORLD) if runner == "plain" else InParts(dist.group.WORLD, RUNNERS[runner])
        got, parted = results(net, *asked, run)
        parted = mean(parted)
        assert grads.keys() == parted.keys()
        worst = max(grads, key=lambda key: off(parted[key], grads[key]))
        found[f"{name} {masked} {runner}"] = (off(got, want), off(parted[worst], grads[worst]), worst)
    found["length in a block"] = seen_by_a_block()
    found["heads"] = refusal()
    if world.main:
        Path(output).write_text(json.dumps(found))
    dist.barrier()
    world.leave()


def seen_by_a_block():
    """Tokens that a process has in its blocks, of 24."""
    net, *asked = given(*NETWORKS["adaln-zero"], False)
    seen = []
    net.blocks[0].register_forward_hook(lambda block, args, out: seen.append(args[0][0].shape[1]))
    net(*asked, run=InParts(dist.group.WORLD))
    return seen


def refusal():
    """What is said where the processes do not divide the heads."""
    q = torch.zeros(1, 3, 2, 4)
    try:
        attend_by_heads(q, q, q, None, group=dist.group.WORLD)
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the processes noted."""
    path = tmp_path_factory.mktemp("sequence") / "found.json"
    together(PROCESSES, shared, str(path))
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{', masked' * case[1]}, {case[2]}")
def test_processes_together_compute_what_one_does(case, found):
    forward, backward, worst = found["{} {} {}".format(*case)]
    assert forward <= 1e-5
    assert backward <= 1e-5, worst


def test_a_process_has_its_part_of_the_tokens_alone(found):
    assert found["length in a block"] == [24 // 4 // PROCESSES]


def test_heads_that_cannot_be_shared_are_refused(found):
    assert "3 are not divisible by 2" in found["heads"]


@pytest.mark.parametrize(("length", "parts"), [(6, 2), (5, 2), (1, 3), (7, 4)])
def test_parts_are_equal_and_come_to_the_whole(length, parts):
    x = torch.arange(2.0 * length * 3).reshape(2, length, 3)
    found = [part_of(x, parts=parts, rank=rank) for rank in range(parts)]
    assert {part.shape for part in found} == {(2, -(-length // parts), 3)}
    torch.testing.assert_close(torch.cat(found, 1)[:, :length], x)
    assert torch.cat(found, 1)[:, length:].abs().sum() == 0
