"""What a run remembers comes back whole, or the error says what is wrong with it."""

from __future__ import annotations

import copy
import errno
import json
import os
from pathlib import Path

import pytest
import torch

from ditwright.diffusion.objective import Objective, SecondMoment
from ditwright.diffusion.path import DDPM
from ditwright.diffusion.process import Index, Process
from ditwright.diffusion.target import noise
from ditwright.diffusion.times import Discrete
from ditwright.errors import UserError
from ditwright.train.config import LogConfig, OptimConfig
from ditwright.train.ema import EMA
from ditwright.train.fit import Tick
from ditwright.train.folder import settle
from ditwright.train.keep import forget_others
from ditwright.train.log import Log, Mark, keep_until, last_noted
from ditwright.train.optim import Muon, Together, adamw
from ditwright.train.parallel import World
from ditwright.train.state import checkpoint_path, checkpoints, load_state, save_state, write_facts


def parts(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, EMA, SecondMoment]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Embedding(2, 4), torch.nn.Linear(4, 1))
    loss = SecondMoment(Objective(Process(DDPM("cosine", 4), noise, Index(4)), Discrete(4)), 4)
    return net, adamw(net, OptimConfig(lr=0.1, weight_decay=0.1)), EMA(net, 0.9), loss


def step(net, optim, ema, loss) -> None:
    optim.zero_grad()
    (net[2](net[0](torch.ones(2, 3)) + net[1](torch.arange(2))) ** 2).sum().backward()
    optim.step()
    ema.update()
    loss.observe(torch.tensor([0, 3]), torch.tensor([0.1, 0.3], dtype=torch.float64))


def everything(net, optim, ema, loss) -> dict[str, torch.Tensor]:
    found = {f"net.{k}": v for k, v in net.state_dict().items()}
    found |= {f"ema.{k}": v for k, v in ema.module.state_dict().items()}
    found |= {f"loss.{k}": v for k, v in loss.state_dict().items()}
    found |= {f"optim.{i}.{k}": v for i, kept in optim.state_dict()["state"].items() for k, v in kept.items()}
    return copy.deepcopy(found | {"updates": torch.tensor(ema.updates)})


@pytest.fixture
def saved(tmp_path):
    """A checkpoint's training state after three steps, and the average's weights, which lie apart."""
    ours = parts(0)
    for _ in range(3):
        step(*ours)
    net, optim, ema, loss = ours
    save_state(tmp_path, net, optim, ema, loss, {"step": 3, "note": "Ä"})
    return tmp_path, ours, copy.deepcopy(ema.module.state_dict())


def load(folder, average, into):
    net, optim, ema, loss = into
    return load_state(folder, net, optim, ema, loss, average)


def test_everything_comes_back_and_goes_on_alike(saved):
    folder, ours, average = saved
    theirs = parts(1)
    facts = load(folder, average, theirs)
    assert (facts["step"], facts["note"]) == (3, "Ä")
    for _ in range(3):
        a, b = everything(*ours), everything(*theirs)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
        step(*ours)
        step(*theirs)
    assert len(a) == 5 + 5 + 2 + 5 * 3 + 1


@pytest.mark.parametrize("name", ["train.safetensors", "train.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "noise"])
def test_a_damaged_file_is_named(name, damage, saved):
    folder, _, average = saved
    content = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    else:
        damaged = {"empty": b"", "truncated": content[:-9], "noise": bytes(range(256))}[damage]
        (folder / name).write_bytes(damaged)
    with pytest.raises(UserError, match=name):
        load(folder, average, parts(1))


def test_state_of_another_network_is_refused(saved):
    folder, _, average = saved
    net, optim, ema, loss = parts(1)
    with pytest.raises(UserError, match=r"'0.weight'.*\(4, 3\).*\(5, 3\)"):
        load(folder, average, (torch.nn.Sequential(torch.nn.Linear(3, 5), *net[1:]), optim, ema, loss))


def test_state_that_another_optimizer_left_is_refused(saved):
    folder, _, average = saved
    net, _, ema, loss = parts(1)
    matrix = net[0].weight
    optim = Together(Muon([matrix]), adamw(net, OptimConfig(), but={id(matrix)}))
    with pytest.raises(UserError, match=r"exp_avg, exp_avg_sq, step of '0.weight', which Muon does not keep.*--init"):
        load(folder, average, (net, optim, ema, loss))
    assert not optim.state


def test_checkpoints_are_the_whole_ones_oldest_first(tmp_path):
    assert checkpoints(tmp_path) == []
    for number in (100, 9, 20_000_000):
        checkpoint_path(tmp_path, number).mkdir(parents=True)
        write_facts(checkpoint_path(tmp_path, number), {"step": number})
    for other in (".step-00000030.half", "step-best", "notes"):
        (tmp_path / "checkpoints" / other).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-00000009",
        "step-00000100",
        "step-20000000",
    ]
    forget_others(tmp_path, LogConfig(keep=1))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-20000000"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', '{"step": 1}\n{"step": 2}\n'),
        ('{"step": 1}\n{"step": 2, "lo', '{"step": 1}\n'),
        ('{"step": 1}\n\x00\x00\x00', '{"step": 1}\n'),
        ('{"step": 1}\n{"qtep": 2}\n{"step": 2}\n[]\n{"step": "2"}\n', '{"step": 1}\n{"step": 2}\n'),
        ('{"step": 3}\n', ""),
        ("", ""),
    ],
)
def test_lines_after_the_checkpoint_are_dropped(text, kept, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    keep_until(tmp_path / "metrics.jsonl", 2)
    assert (tmp_path / "metrics.jsonl").read_text() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_no_lines_are_no_file(tmp_path, capsys):
    keep_until(tmp_path / "metrics.jsonl", 0)
    assert capsys.readouterr().err == ""
    keep_until(tmp_path / "metrics.jsonl", 2)
    assert list(tmp_path.iterdir()) == []
    assert "metrics.jsonl is missing: what was noted until step 2 is not all there" in capsys.readouterr().err


LOSSES = [
    f'{{"step": {step}, "loss": 0.{step}, "grad_norm": 1.0, "lr": 0.1, "samples": 32, "samples_per_second": 7.5}}'
    for step in range(1, 8)
]
BESIDE = ['{"step": 3, "event": "loss spike"}', '{"step": 3, "val_loss": 1.0}', '{"step": 3, "event": "rollback"}']
AGAIN = '{"step": 5, "event": "rollback", "why": "the loss of step 6 is nan"}'
EIGHT = [1, 2, 3, 3, 3, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "said", "left"),
    [
        (lambda lines: lines, "", [1, 2, 3, 3, 3, 3, 4, 5]),
        (lambda lines: [*lines[:-2], lines[-2][:30]], "", [1, 2, 3, 3, 3, 3, 4, 5]),  # a kill cuts the last one
        (lambda lines: [*lines[:-1], lines[-1][1:] + "\n"], "line 10 is damaged", [1, 2, 3, 3, 3, 3, 4, 5]),
        (lambda lines: [lines[0], lines[1].replace("2", "6", 1), *lines[2:]], "line 2 is", [1, 3, 3, 3, 3, 4, 5]),
        (lambda lines: [lines[0], lines[1].replace("2", "3", 1), *lines[2:]], "line 2 is", [1, 3, 3, 3, 3, 4, 5]),
        (lambda lines: [lines[0], lines[1].replace("2", "92", 1), *lines[2:]], "line 2 is", [1, 3, 3, 3, 3, 4, 5]),
        (lambda lines: [*lines[:7], lines[7].replace("5", "1", 1)], "line 8 is", [1, 2, 3, 3, 3, 3, 4]),
        (lambda lines: [*lines[:7], lines[7].replace("5", "7", 1)], "has 4 lines of losses", [1, 2, 3, 3, 3, 3, 4]),
        (lambda lines: lines[:3], "has 3 lines of losses, and other ones than the 5 saved", [1, 2, 3]),
        (lambda lines: lines[1:], "has 4 lines of losses", [2, 3, 3, 3, 3, 4, 5]),
        (lambda lines: [lines[0].replace("0.1", "0.9"), *lines[1:]], "has 5 lines of losses", [1, 2, 3, 3, 3, 3, 4, 5]),
        (lambda lines: [], "has 0 lines of losses", []),
        (lambda lines: [line.replace('val_loss": 1', 'val_loss": 2') for line in lines], "has 8 lines, and", EIGHT),
        (lambda lines: [line.replace("val_loss", "val_less") for line in lines], "has 8 lines, and", EIGHT),
        (lambda lines: [line.replace("spike", "skipe") for line in lines], "has 8 lines, and", EIGHT),
        (lambda lines: [lines[0].replace('": 32', '": 33'), *lines[1:]], "has 8 lines, and", EIGHT),
        (lambda lines: [lines[0].replace("7.5", "8.5"), *lines[1:]], "", EIGHT),  # the clock's
        (lambda lines: [*lines[:3], *lines[4:]], "has 7 lines, and other ones than the 8 saved", [1, 2, 3, 3, 3, 4, 5]),
        (lambda lines: [*lines[:4], *lines[3:]], "has 9 lines, and other ones than the 8 saved", [1, 2, 3, *EIGHT[2:]]),
        (lambda lines: [*lines[:8], AGAIN, AGAIN, *lines[8:]], "", [*EIGHT, 5, 5]),
        (lambda lines: [*lines[:8], AGAIN.replace("rollback", "skipped")], "has 9 lines, and", [*EIGHT, 5]),
    ],
)
def test_notes_that_are_not_as_they_were_are_said(change, said, left, tmp_path, capsys):
    """Of steps 1 to 7, with other things beside step 3, where step 5 was saved; a rollback is noted after its save."""
    path, lines = tmp_path / "metrics.jsonl", [*LOSSES[:3], *BESIDE, *LOSSES[3:]]
    then = Mark(line.encode() for line in lines[:8]).memory()
    path.write_text("\n".join(change(lines)) + ("\n" if change(lines) == lines else ""))
    mark = keep_until(path, 5, then)
    found = [line for line in path.read_text().splitlines() if line]
    assert [json.loads(line)["step"] for line in found] == left
    assert mark.memory() == Mark(line.encode() for line in found).memory()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == bool(said)
    assert all(said in line for line in told)
    keep_until(path, 5)  # what a run of before remembers of its notes: nothing
    assert capsys.readouterr().err == ""
    assert last_noted(path) == max(left, default=0)


def test_what_was_remembered_before_all_lines_counted_tells_of_losses_alone(tmp_path, capsys):
    path, lines = tmp_path / "metrics.jsonl", [*LOSSES[:3], *BESIDE]
    then = {key: told for key, told in Mark(map(str.encode, lines)).memory().items() if key != "all"}
    path.write_text("".join(f"{line}\n" for line in [*lines[:4], lines[4].replace("1.0", "2.0"), *lines[5:]]))
    assert keep_until(path, 3, then).memory()["all"]["lines"] == 6
    assert capsys.readouterr().err == ""
    path.write_text("".join(f"{line}\n" for line in [lines[0].replace("0.1", "0.2"), *lines[1:]]))
    keep_until(path, 3, then)
    assert "has 3 lines of losses, and other ones than the 3 saved" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_told_with_the_file_that_it_has_no_room_for(tmp_path):
    log = Log(tmp_path, LogConfig(every=1), 0, 2)
    log.file.close()
    log.file = open("/dev/full", "w")  # noqa: SIM115
    for write in (lambda: log.write(Tick(1, 0.5, 1.0, 0.1, 8)), lambda: log.__exit__()):
        with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.jsonl'"):
            write()


def test_a_full_disk_names_the_configuration(tiny, tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/config\.yaml'"):
        settle(tiny(), tmp_path, World(torch.device("cpu")), None)
