"""Matrices spread over processes come to what one process computes, forwards and backwards.

The processes of `shared` run everything in one go and note how far they are off; the tests read that.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from ditwright.errors import UserError
from ditwright.model.tensor_parallel import (
    PLANS,
    blocks_of,
    check,
    order,
    parted_parameters,
    tensor_parallel,
    whole_state,
)
from ditwright.nn.branch import AttentionLane, FeedLane
from ditwright.nn.modulation import Plain
from ditwright.train.parallel import join
from ditwright.train.processes import together
from small_networks import NETWORKS, given, off, results

PROCESSES = 2


def shared(output):
    """In every process: all networks, spread and alone."""
    world, found, classes = join(), {}, set()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for name, (config, space) in NETWORKS.items():
        net, *asked = given(config, space, config.text_width > 0)
        weights = {key: p.detach().clone() for key, p in net.named_parameters()}
        want, grads = results(net, *asked, None)
        grads = {key: grad.clone() for key, grad in grads.items()}
        classes |= {type(module).__name__ for module in net.blocks.modules() if type(module) in PLANS}
        net.zero_grad()
        tensor_parallel(net, mesh)
        got, mine = results(net, *asked, None)
        parted = {"x": mine["x"], **whole_state(net, lambda p: p.grad)}
        assert grads.keys() == parted.keys()
        worst = max(grads, key=lambda key: off(parted[key], grads[key]))
        back = max(off(kept, weights[key]) for key, kept in whole_state(net).items())
        held = [p.to_local().numel() / p.numel() for p in net.parameters() if isinstance(p, DTensor) and p.ndim == 2]
        found[name] = (off(got, want), off(parted[worst], grads[worst]), worst, back, held)
    found["classes"] = sorted(classes)
    if world.main:
        Path(output).write_text(json.dumps(found))
    dist.barrier()
    world.leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the processes noted."""
    path = tmp_path_factory.mktemp("tensor") / "found.json"
    together(PROCESSES, shared, str(path))
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", NETWORKS)
def test_processes_together_compute_what_one_does(name, found):
    forward, backward, worst, *_ = found[name]
    assert forward <= 1e-5
    assert backward <= 1e-5, worst


@pytest.mark.parametrize("name", NETWORKS)
def test_a_process_holds_its_part_and_the_whole_comes_back(name, found):
    *_, back, held = found[name]
    assert back == 0
    assert held
    assert set(held) == {1 / PROCESSES}


def test_every_plan_is_tried(found):
    assert found["classes"] == sorted(kind.__name__ for kind in PLANS)


def test_each_process_gets_its_part_of_every_matrix():
    assert order([4, 4, 2], 2).tolist() == [0, 1, 4, 5, 8, 2, 3, 6, 7, 9]
    assert order([3], 1).tolist() == [0, 1, 2]


def test_what_cannot_be_parted_is_refused():
    lane, feed = AttentionLane(12, 3, Plain(12)), FeedLane(12, 9, Plain(12))
    with pytest.raises(UserError, match="heads: 3 are not divisible by 2"):
        check(lane, 2)
    with pytest.raises(UserError, match="the 9 of fc1 are not divisible by 2"):
        check(feed, 2)
    check(lane, 3)
    with pytest.raises(UserError, match="a transformer's blocks, and this network has none"):
        check(blocks_of(nn.Linear(2, 2)), 2)


def test_what_is_parted_is_counted():
    """Of the weights of `proj` and `fc2` their bias is whole everywhere; so are the norms."""
    branches = nn.ModuleList([AttentionLane(12, 3, Plain(12)), FeedLane(12, 24, Plain(12))])
    assert parted_parameters(branches) == (36 * 12 + 36) + 12 * 12 + (24 * 12 + 24) + 12 * 24


def test_an_order_is_of_processes():
    assert torch.equal(order([6, 6], 3), torch.tensor([0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]))
