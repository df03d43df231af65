"""Batches made ahead are the same batches, and an error reaches the one who asks."""

from __future__ import annotations

import threading

import pytest

from ditwright.data.ahead import ahead


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
