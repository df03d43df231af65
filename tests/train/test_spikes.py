"""Losses that leap are told once, with their samples, the same after any stop."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from ditwright import run as running
from ditwright.config import merge
from ditwright.errors import UserError
from ditwright.replay import replay
from ditwright.run import train
from ditwright.train.config import LogConfig
from ditwright.train.fit import Tick
from ditwright.train.log import Log
from ditwright.train.spikes import LEAST, NORMAL, WINDOW, Spikes
from ditwright.train.state import checkpoints


def noise(count, seed=0):
    return (1 + 0.1 * np.random.default_rng(seed).standard_normal(count)).tolist()


def seen(spikes, losses, first=1):
    return [spike for step, loss in enumerate(losses, first) if (spike := spikes.see(step, loss)) is not None]


def test_a_leap_is_told_by_its_robust_distance_from_the_median():
    before = noise(WINDOW + 30)
    (spike,) = seen(Spikes(8), [*before, 3.0])
    window = np.array(before[-WINDOW:])
    spread = NORMAL * np.median(np.abs(window - np.median(window)))
    assert (spike.step, spike.loss, spike.median) == (WINDOW + 31, 3.0, np.median(window))
    assert spike.z == pytest.approx((3.0 - np.median(window)) / spread)
    assert spread == pytest.approx(0.1, rel=0.2)  # of what the noise was made with


def test_noise_and_falls_are_no_leaps():
    assert seen(Spikes(8), noise(5000)) == []
    assert seen(Spikes(8), [*noise(200), 0.0, *noise(50)]) == []
    assert seen(Spikes(8), [math.exp(-n / 100) for n in range(1000)]) == []


def test_a_few_wild_losses_do_not_hide_the_next():
    """Mean and standard deviation would be carried off by them."""
    losses = noise(100)
    losses[40:49] = [50.0] * 9
    (last,) = seen(Spikes(8), [*losses, 2.5])[-1:]
    assert last.step == 101


def test_a_loss_that_stays_high_is_one_leap_and_the_next_one_after_it_came_back_another():
    losses = [*noise(100), *[3.0] * 10, *noise(20, 1), 3.0, *noise(5, 2)]
    assert [spike.step for spike in seen(Spikes(8), losses)] == [101, 131]


def heavy(mean, std, seed, count=3000, batch=64):
    """Losses of a network that tells x0 and is held to the velocity's error: 1 / t^2 of its own, at most 400 times.

    At logit-normal times, with a part that does not shrink with t; falling from ten times as high.
    """
    chance = np.random.default_rng(seed)
    t = 1 / (1 + np.exp(-mean - std * chance.standard_normal((count, batch))))
    own, floor = np.exp([[[0.5]], [[0.8]]] * chance.standard_normal((2, count, batch)))
    losses = (0.03 * own + 0.006 * floor * np.minimum(t**-2, 400)).mean(1)
    return (losses * (1 + 10 * np.exp(-np.arange(count) / 150))).tolist()


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 1.0), (1.0, 1.5)])
def test_a_heavy_tail_is_no_row_of_leaps(mean, std):
    """One sample makes a batch's mean several times the median: about one in 3000 steps is told, not 15 and more."""
    told = []
    for seed in range(3):
        losses = heavy(mean, std, seed)
        every = Spikes(1e-9)
        far = [z for loss in losses if (z := every.judged(loss)) is not None and z >= 6]
        assert len(far) >= 15
        told += seen(Spikes(6), losses)
    assert len(told) <= 3


def test_a_leap_out_of_a_heavy_tail_is_told():
    losses = heavy(0.8, 1.0, 0)
    (*_, last) = seen(Spikes(6), [*losses, 30 * losses[-1]])
    assert last.step == 3001


def test_three_times_a_quiet_loss_is_a_leap_after_any_time_and_after_another():
    for count in (LEAST, 200, 3000):
        first, second = seen(Spikes(6), [*noise(count), 3.0, *noise(100, 1), 3.0, *noise(100, 2)])
        assert (first.step, second.step) == (count + 1, count + 102)


def test_two_leaps_hide_a_third_as_high_for_a_while():
    leaps = [loss for seed in range(3) for loss in (*noise(100, seed), 3.0)]
    assert len(seen(Spikes(6), leaps)) == 2
    assert len(seen(Spikes(6), [*leaps[:-1], 12.0])) == 3
    assert len(seen(Spikes(6), [*leaps, *noise(3000, 4), 3.0])) == 3


def test_too_few_losses_equal_ones_and_no_numbers_are_not_judged():
    assert seen(Spikes(8), [*noise(LEAST - 1), 9.0]) == []
    assert seen(Spikes(8), [1.0] * 100 + [9.0]) == []
    spikes = Spikes(8)
    assert seen(spikes, [*noise(100), math.nan, math.inf]) == []
    assert len(spikes.losses) == 100
    assert seen(Spikes(0), [*noise(100), 9.0]) == []
    assert Spikes(0).memory() == {}


@pytest.mark.parametrize("cut", [3, LEAST, 77, 101, 105, 112, 250])
def test_what_a_checkpoint_remembers_makes_no_difference(cut):
    """Through JSON, wherever the run was stopped."""
    losses = [*noise(100), *[3.0] * 10, *noise(200, 1), 4.0]
    whole, first = Spikes(8), Spikes(8)
    told = seen(whole, losses)
    before = seen(first, losses[:cut])
    second = Spikes(8, json.loads(json.dumps(first.memory())))
    assert before + seen(second, losses[cut:], cut + 1) == told
    assert second.memory() == whole.memory()
    assert second.memory()["told"] == [spike.step for spike in told] == [101, 311]


def test_a_checkpoint_of_before_remembers_less():
    old = Spikes(8, {"losses": noise(100), "out": False})
    assert [spike.step for spike in seen(old, [3.0], 101)] == [101]


def test_a_spike_is_a_line_that_readers_of_losses_pass_over(tmp_path, capsys):
    def items(step):
        return [step * 10 + n for n in range(12)]

    with Log(tmp_path, LogConfig(every=10), 0, 120, items=items) as log:
        for step, loss in enumerate([*noise(100), 5.0, *noise(19, 1)], 1):
            log.write(Tick(step, loss, 1.0, 1e-3, 12))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(10, 121, 10))
    (event,) = (line for line in lines if "event" in line)
    assert event.keys() == {"step", "event", "spike"}
    assert (event["step"], event["event"], event["spike"]["items"]) == (101, "loss spike", items(101))
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"loss spike at step 101: 5 is {event['spike']['z']:.1f} robust deviations above the median" in line
    assert "items 1010, 1011, 1012, 1013, 1014, 1015, 1016, 1017 and 4 more" in line
    assert line.strip().endswith(f"ditwright replay {tmp_path} --step 101")


def test_lines_after_a_checkpoint_come_again_once(tmp_path):
    """A spike after the checkpoint was noted, the run was killed: it is noted anew, not twice."""
    losses = [*noise(100), 5.0, *noise(19, 1)]

    def go(done, stop, before=None):
        with Log(tmp_path, LogConfig(every=10), done, 120, before=before) as log:
            for step in range(done + 1, stop + 1):
                log.write(Tick(step, losses[step - 1], 1.0, 1e-3, 12))
                if step == 90:
                    saved = json.loads(json.dumps(log.memory()))
            return saved if done < 90 else None

    saved = go(0, 110)
    there = (tmp_path / "metrics.jsonl").read_text()
    assert there.count("loss spike") == 1
    go(90, 120, saved)
    assert (tmp_path / "metrics.jsonl").read_text().count("loss spike") == 1
    assert [line for line in there.splitlines() if "event" in line] == [
        line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "event" in line
    ]


@pytest.fixture
def poisoned(monkeypatch):
    """Batches of the step that is asked for are a thousand times too bright."""
    real = running.batch_of

    def arrange(step, batch_size=8):
        def batch_of(parts, data, items, places, **rest):
            batch = real(parts, data, items, places, **rest)
            return (
                batch if places.start // batch_size + 1 != step else type(batch)(batch.x0 * 30, batch.cond, batch.draws)
            )

        monkeypatch.setattr(running, "batch_of", batch_of)

    return arrange


def test_a_run_tells_the_items_of_the_batch_that_made_its_loss_leap(tiny, poisoned, tmp_path, capsys, outcome):
    poisoned(70)
    config = tiny("--steps 75 --log.checkpoint_every 30 --log.every 5 --optim.schedule constant")
    train(config, tmp_path / "straight")
    err = capsys.readouterr().err
    (line,) = (line for line in err.splitlines() if "spike" in line)
    assert re.search(r"loss spike at step 70: .* is \d+\.\d robust deviations above the median", line)
    assert f"ditwright replay {tmp_path / 'straight'} --step 70" in line
    lines = [json.loads(line) for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()]
    (event,) = (line for line in lines if "event" in line)
    parts = running.assemble(config, running.World(running.torch.device("cpu")))
    _, items = running.batch_items(config.seed, parts.data.groups, 8, 69)
    assert event["spike"]["items"] == items.tolist()
    train(merge(config, {"steps": 65}), tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert [line for line in Path(tmp_path / "stopped/metrics.jsonl").read_text().splitlines() if "event" in line] == [
        json.dumps(event)
    ]


def test_the_checkpoint_before_a_leap_is_kept_for_a_replay(tiny, poisoned, tmp_path):
    poisoned(70)
    train(tiny("--steps 95 --log.checkpoint_every 10 --log.keep 1 --optim.schedule constant"), tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000060", "step-00000095"]
    found = replay(tmp_path / "run", 70)
    assert (found.checkpoint, found.loss) == (60, found.logged)


def test_spikes_are_switched_off_by_0(tiny, poisoned, tmp_path, capsys):
    poisoned(70)
    train(tiny("--steps 75 --log.spike 0"), tmp_path / "run")
    assert "loss spike" not in capsys.readouterr().err
    assert "event" not in (tmp_path / "run/metrics.jsonl").read_text()


def test_a_limit_below_0_is_refused():
    with pytest.raises(UserError, match=r"log\.spike must be at least 0; got -1"):
        LogConfig(spike=-1)
