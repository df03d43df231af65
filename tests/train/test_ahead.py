"""Batches made ahead are the same batches, and an error reaches the one who asks."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch

from ditwright.rng import Draws
from ditwright.train.ahead import Made, ahead, loaded
from ditwright.train.fit import Batch


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_order_stays(depth):
    assert list(ahead(iter(range(50)), depth)) == list(range(50))


def test_only_so_many_are_made_ahead():
    made = []
    asked = threading.Event()

    def count():
        for i in range(100):
            made.append(i)
            if len(made) == 4:
                asked.set()
            yield i

    batches = ahead(count(), 2)
    assert next(batches) == 0
    assert asked.wait(10)  # one taken, two waiting, one in hand
    assert len(made) == 4
    batches.close()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_where_its_batch_is_asked_for(depth):
    def broken():
        yield 1
        raise ValueError("a broken picture")

    batches = ahead(broken(), depth)
    assert next(batches) == 1
    with pytest.raises(ValueError, match="a broken picture"):
        next(batches)


def test_leaving_ends_the_thread():
    before = threading.active_count()
    batches = ahead(iter(range(10**9)), 2)
    next(batches)
    batches.close()
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    "asked",
    [
        "uniform normal uniform normal",
        "normal uniform",
        "uniform uniform normal",
        "uniform other normal",
        "other normal",
    ],
)
def test_draws_made_ahead_are_the_same_whatever_is_asked_for(asked):
    like = torch.zeros(2, 3, 4, dtype=torch.float64)
    made, plain = Made(Draws(0, [7, 3], "train"), like), Draws(0, [7, 3], "train")
    for what in asked.split():
        one, other = (
            draws.uniform() if what == "uniform" else draws.normal(like if what == "normal" else like[:, :2])
            for draws in (made, plain)
        )
        assert torch.equal(one, other)
    assert torch.equal(made.again().uniform(), plain.again().uniform())


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="copies to a GPU"))],
)
def test_batches_of_a_device_are_the_same_batches(depth, device):
    """Large ones, and work between them: on a GPU a copy that is not waited for would be seen."""

    def made(number):
        x0 = torch.full((4, 2**20), float(number)).to(device)
        draws = Made(Draws(0, range(4), "train"), x0[:, :8])
        return Batch(x0, {"label": torch.full((4,), number).to(device)}, draws)

    seen = 0
    for number, batch in enumerate(loaded(map(made, range(6)), depth, torch.device(device))):
        like = batch.x0[:, :8]
        assert (batch.x0.cos().square() - batch.x0.new_tensor(number).cos().square()).abs().max() < 1e-6
        assert batch.cond["label"].tolist() == [number] * 4
        plain = Draws(0, range(4), "train")
        assert torch.equal(batch.draws.uniform(), plain.uniform())
        assert torch.equal(batch.draws.normal(like), plain.normal(like))
        seen += 1
    assert seen == 6


def test_on_a_gpu_a_batch_is_waited_for_by_the_stream_that_trains(monkeypatch):
    """With stand-ins for CUDA's streams, which write down what comes on them."""
    log = []

    class Stream:
        def __init__(self, name="batches"):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for all of {other.name}")

        def record_event(self):
            log.append(f"{self.name}: event")
            return f"event {sum('event' in line for line in log)}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    training = Stream("training")

    @contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield
        log.append(f"off {stream.name}")

    for name, stand_in in (("Stream", lambda device: Stream()), ("current_stream", lambda device: training)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "stream", on)
    made = [Batch(torch.zeros(1, 1), {}, Draws(0, [0], "train")) for _ in range(2)]
    for batch, want in zip(loaded(iter(made), 0, torch.device("cuda")), made, strict=True):
        assert batch is want
        log.append("a step")
    each = ["on batches", "off batches", "batches: event"]
    first, second = (f"training waits for event {number}" for number in (1, 3))
    assert log == [
        "batches waits for all of training", *each, first, "a step", *each, second, "a step", *each[:2]
    ]  # fmt: skip
