"""All contestants compute the same before any is timed; one that cannot be measured says why, and the others go on."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ditwright import extras
from ditwright.accel import compiling
from ditwright.bench import ceilings, contest, loader, measure, peers
from ditwright.bench import decode as decoding
from ditwright.bench.contest import Contest, Entry, Turn, Variant, hold
from ditwright.bench.loader import loader as loading
from ditwright.bench.machine import absent
from ditwright.bench.measure import Time
from ditwright.bench.peers import CALLS, OURS, PEERS, PLAIN, THEIRS, Networks, variants
from ditwright.bench.plan import Plan
from ditwright.bench.sampling import Walks
from ditwright.bench.startup import startup
from ditwright.bench.step import Trainers
from ditwright.bench.subject import Subject
from ditwright.codec.config import AutoencoderConfig
from ditwright.errors import UserError
from ditwright.model.baseline import UNetConfig
from ditwright.model.config import DiTConfig, Stage

CPU = torch.device("cpu")
TINY = Subject(DiTConfig(width=32, heads=2, stages=(Stage(2),), out_channels=8, num_classes=10), (8, 8))
TEXT = Subject(
    DiTConfig(width=16, heads=2, stages=(Stage(1, cross=True),), num_classes=0, context="cross", text_width=8),
    (4, 4),
    3,
)
UNET = Subject(
    UNetConfig(width=16, levels=(1, 2), depth=1, attention=1, head_width=8, groups=8, out_channels=8), (8, 8)
)


@pytest.fixture(autouse=True)
def _no_looks(monkeypatch):
    monkeypatch.setattr(ceilings, "peak_flops", lambda precision, device: 1e12)
    monkeypatch.setattr(ceilings, "copy_rate", lambda device: 1e9)


def plan(**how):
    """Of a tiny network, in no time."""
    return Plan({"tiny": TINY}, **{"batch_size": 2, "rounds": 3, "seconds": 1e-9, "steps": 4, **how})


def rows(asked, device=CPU, **how):
    """Of the only contest, by contestant."""
    (result,) = measure.measure([asked], device, **how).results
    return {str(row.entry): row for row in result.rows}


@pytest.mark.parametrize("case", ["forward", "step", "sampling"])
def test_all_agree_and_are_timed(case):
    pytest.importorskip("diffusers")
    found = rows(plan(cases=(case,)))
    halves = ["bf16 autocast"] if case == "step" else ["bf16 autocast", "bf16 weights"]
    others = [f"{peer}, {way}" for peer in (PLAIN, THEIRS) for way in ("fp32", *halves)]
    assert list(found) == ["ditwright, fp32", "ditwright, bf16", *others]
    for name, row in found.items():
        assert (row.why, len(row.times)) == ("", 3), name
        assert row.error < (1e-5 if "fp32" in name else 2e-2)
        assert row.error > 0 or "fp32" in name


@pytest.mark.parametrize("case", ["forward", "step", "sampling"])
def test_who_computes_something_else_is_named_and_not_timed(case, monkeypatch):
    timed: list[str] = []
    monkeypatch.setattr(contest, "in_turns", lambda works, *rest, **how: timed.extend(works) or {})
    monkeypatch.setitem(CALLS, PLAIN, lambda net, x, t, y: 1.1 * net(x, t, y))
    found = rows(plan(cases=(case,), peers=(OURS, PLAIN), precisions=("fp32",)))
    assert timed == [0]
    assert "differs by" in found["plain, fp32"].why
    assert "it is wrong" in found["plain, fp32"].why
    assert found["plain, fp32"].times == ()
    assert found["plain, fp32"].error > 0.01


def test_what_is_no_number_is_wrong(monkeypatch):
    monkeypatch.setitem(CALLS, PLAIN, lambda net, x, t, y: net(x, t, y) * float("nan"))
    assert "differs by nan" in rows(plan(cases=("forward",), peers=(PLAIN,), precisions=("fp32",)))["plain, fp32"].why


def test_a_peer_that_is_not_installed_is_a_row(monkeypatch):
    def gone(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(extras.importlib, "import_module", gone)
    found = rows(plan(cases=("forward",), precisions=("fp32",)))
    assert "'diffusers' is not installed" in found["diffusers, fp32"].why
    assert [len(row.times) for row in found.values()] == [3, 3, 0]


def test_what_is_not_here_is_a_row(monkeypatch):
    monkeypatch.setattr(peers, "can_compile", lambda: False)
    monkeypatch.setattr(peers, "missing", lambda precision, device: "no bf16 here" if precision == "bf16" else "")
    found = rows(plan(cases=("forward",), peers=(OURS, PLAIN), compiled=True))
    whys = {name: row.why for name, row in found.items()}
    assert {whys[name] for name in whys if "bf16" in name} == {"no bf16 here"}
    compiler = {whys[name] for name in whys if "compiled" in name and "bf16" not in name}
    assert compiler == {"torch.compile finds no compiler here: a CPU needs one of C++"}
    assert whys["ditwright, fp32"] == whys["plain, fp32"] == ""


@pytest.mark.parametrize(("subject", "whose"), [(TEXT, "text"), (UNET, "U-Net")], ids=lambda x: str(x)[:6])
@pytest.mark.parametrize("case", ["forward", "step"])
def test_other_networks_are_measured_without_peers(subject, whose, case):
    found = rows(Plan({whose: subject}, (case,), batch_size=2, rounds=3, seconds=1e-9))
    for name, row in found.items():
        assert (row.why == "") == name.startswith(OURS), row.why
        assert row.why in ("", "no such network in the paper's DiT", "no such network in diffusers' DiT")


def test_sampling_is_of_networks_that_know_classes():
    found = rows(Plan({"text": TEXT}, ("sampling",), batch_size=2))
    assert list(found) == list(PEERS)
    assert all("told a class" in row.why for row in found.values())


def test_what_does_not_fit_into_memory_is_a_row(monkeypatch):
    def full(*asked):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(CALLS, PLAIN, full)
    found = rows(plan(cases=("step",), peers=(OURS, PLAIN), precisions=("fp32",)))
    assert "does not fit into memory" in found["plain, fp32"].why
    assert len(found["ditwright, fp32"].times) == 3


def test_a_device_that_is_not_here_is_all_rows(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert absent(CPU) == ""
    found = rows(plan(cases=("forward",)), torch.device("cuda"))
    assert {row.why for row in found.values()} == {"there is no device 'cuda' here"}


def test_what_the_time_does_not_reach_is_a_row():
    found = rows(plan(cases=("forward",)), allowed=Time.allowed(-1))
    assert {row.why for row in found.values()} == {"time"}


def test_who_fails_while_it_warms_up_is_a_row():
    def fails():
        raise UserError("no more")

    entries = [Entry("good"), Entry("bad", lambda: Turn(fails))]
    good, bad = hold(Contest("forward", "", entries, 3, 1e-9), CPU).rows
    assert (len(good.times), good.why, bad.times, bad.why) == (3, "", (), "no more")


def test_warm_up_and_check_come_before_any_time(monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(contest, "in_turns", lambda *works, **how: done.append("timed") or {})

    def make(name):
        return Turn(lambda: done.append(f"{name} works"), lambda: done.append(f"{name} checked") or {})

    entries = [Entry(name, lambda name=name: make(name)) for name in "ab"]
    hold(Contest("forward", "", entries, 3, 1e-9), CPU)
    assert done == ["a checked", "b checked", *["a works"] * 2, *["b works"] * 2, "timed"]


def test_results_hold_on_to_no_network(monkeypatch):
    made: list[weakref.ref] = []
    real = peers.network
    monkeypatch.setattr(peers, "network", lambda *asked: (net := real(*asked), made.append(weakref.ref(net)))[0])
    found = [rows(plan(cases=(case,), peers=(OURS, PLAIN))) for case in ("forward", "step", "sampling")]
    gc.collect()
    assert found
    assert len(made) == 3
    assert [ref() for ref in made] == [None] * 3


def test_the_variants_of_a_peer():
    ways = {peer: [str(way) for way in variants(peer, ("fp32", "bf16"), compiled=False)] for peer in PEERS}
    assert ways[OURS] == ["fp32", "bf16"]
    assert ways[PLAIN] == ways[THEIRS] == ["fp32", "bf16 autocast", "bf16 weights"]
    assert list(map(str, variants(OURS, ("bf16",), compiled=True, blocks=True))) == ["bf16", "bf16, compiled"]
    both = list(map(str, variants(THEIRS, ("bf16",), compiled=True, blocks=True, training=True)))
    assert both == ["bf16 autocast", "bf16 autocast, compiled by blocks"]
    assert str(variants(PLAIN, ("fp32",), compiled=True)[1]) == "fp32, compiled"


@pytest.mark.parametrize("peer", [PLAIN, THEIRS])
def test_a_peer_that_is_compiled_by_blocks_shares_its_weights_and_leaves_it_eager(peer, monkeypatch):
    """All its blocks are a graph or two, however many they are: seconds at XL/2 too."""
    if peer == THEIRS:
        pytest.importorskip("diffusers")
    monkeypatch.setattr(compiling, "can_compile", lambda: True)
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(peers, "compile_blocks", lambda blocks, backend: compiling.compile_blocks(blocks, counter))
    deep = replace(TINY, config=replace(TINY.config, stages=(Stage(6),)))
    net = Networks(deep, CPU).of(peer)
    made = peers.compiled(net, Variant("fp32", True, True))
    assert [id(p) for p in made.parameters()] == [id(p) for p in net.parameters()]
    assert made._compiled_call_impl is None
    x, t, y = torch.ones(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        told = CALLS[peer](net, x, t, y)
        assert counter.frame_count == 0
        torch.testing.assert_close(CALLS[peer](made, x, t, y), told)
    assert counter.frame_count in (1, 2)


@pytest.mark.parametrize("case", ["forward", "step", "sampling"])
def test_peers_are_compiled_as_the_plan_says(case):
    for blocks in (False, True):
        asked = plan(compiled=True, blocks=blocks, precisions=("bf16",))
        there = [(entry.peer, entry.variant) for entry in measure.OF_NETWORKS[case](asked, "tiny", CPU).entries]
        assert (PLAIN, Variant("autocast", True, blocks)) in there
        assert (OURS, Variant("bf16", True)) in there
        assert (PLAIN, Variant("autocast", True, not blocks)) not in there


@pytest.mark.parametrize("peer", PEERS)
def test_a_step_moves_the_weights_and_their_average(peer):
    if peer == THEIRS:
        pytest.importorskip("diffusers")
    trainers = Trainers(TINY, 2, CPU)
    turn = trainers.turn(peer, Variant())
    net, average = (
        (trainers.first[0], trainers.first[2].module)
        if peer == OURS
        else (trainers.scripts(peer).net, trainers.scripts(peer).average)
    )
    kept = [[p.clone() for p in of.parameters()] for of in (net, average)]
    turn.told()
    assert all(p.grad is None for p in net.parameters())
    turn.work()
    moved = [
        [(p - before).abs().max().item() for p, before in zip(of.parameters(), was, strict=True)]
        for of, was in zip((net, average), kept, strict=True)
    ]
    assert min(sum(m > 0 for m in each) / len(each) for each in moved) > 0.9
    assert max(moved[0]) == pytest.approx(1e-4, rel=0.1)  # AdamW's first step is the learning rate
    assert turn.told()["loss"] != trainers.truth["loss"]


def test_a_peer_has_our_weights_in_all_its_variants():
    networks = Networks(TINY, CPU)
    state = torch.random.get_rng_state()
    net = networks.plain
    assert networks.plain is net
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(net.head.weight, networks.ours.head.proj.weight)


def test_a_walk_without_the_pipeline_is_the_pipelines(monkeypatch):
    """Where Pillow is not installed."""
    walks = Walks(plan(steps=6), TINY, CPU)
    ours = walks.networks.denoiser
    final = walks.by_pipeline(ours)()
    torch.testing.assert_close(walks.by_parts(ours), final, rtol=0, atol=1e-5 * final.abs().max().item())
    short = Walks(plan(steps=6, first=2), TINY, CPU)
    torch.testing.assert_close(
        short.by_pipeline(ours)(), short.truth["latents"], rtol=0, atol=1e-4 * final.abs().max().item()
    )
    assert not torch.allclose(short.truth["latents"], final, rtol=0.1)


def test_decoding_agrees(monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(decoding, "CONFIG", AutoencoderConfig(widths=(8, 8)))
    monkeypatch.setattr(decoding, "SIDE", 4)
    found = rows(plan(cases=("decode",)))
    assert {row.entry.peer for row in found.values()} == {OURS, THEIRS}
    for name, row in found.items():
        assert (row.why, len(row.times)) == ("", 3), name


def test_the_loader_reads_what_it_made(monkeypatch):
    monkeypatch.setattr(loader, "ITEMS", 8)
    monkeypatch.setattr(loader, "BATCH", 4)
    (entry,) = loading(plan(), CPU).entries
    turn = entry.make()
    one, other = turn.work(), turn.work()
    assert one.shape == other.shape == (4, 4, 32, 32)
    assert not torch.equal(one, other)


def test_a_command_that_fails_is_a_row():
    """Each in a process of its own; exit codes are looked at."""
    asked = plan(cases=("startup",), commands={"a truth": int, "a lie": partial(int, 1)}, rounds=1)
    nothing, good, bad = hold(startup(asked, CPU), CPU).rows
    assert (nothing.why, good.why) == ("", "")
    assert min(nothing.times + good.times) > 0
    assert bad.why == "a lie ended with exit code 1"
