"""A precision that this CPU computes in software is taken where it was asked for, and a note says so."""

from __future__ import annotations

import pytest

from ditwright.train import precision

SECONDS = {"fp32": 1.0, "bf16": 20.0, "fp16": 2.0}


@pytest.fixture(autouse=True)
def _cpu_without_bf16(monkeypatch):
    """A CPU that has instructions for fp16 alone."""
    times = {precision.DTYPES[name]: seconds for name, seconds in SECONDS.items()}
    monkeypatch.setattr(precision, "product_seconds", lambda *dtypes, **how: [times[dtype] for dtype in dtypes])
    precision.in_software.cache_clear()
    yield
    precision.in_software.cache_clear()


@pytest.mark.parametrize("name", ["auto", "fp32", "bf16", "fp16"])
def test_sampling_says_it(name, command, tiny_run, tmp_path):
    words = ["--class-labels", "1", "--num-inference-steps", "2", "--precision", name, "--output", tmp_path]
    code, _, err = command("sample", tiny_run, *words)
    assert code == 0
    assert ("note: this CPU computes bf16 in software" in err) == (name == "bf16")


@pytest.mark.parametrize("name", ["auto", "fp32", "bf16"])
def test_training_says_it(name, command, tiny_words, tmp_path):
    told = command("train", "digits", *tiny_words, "--steps", 1, "--precision", name, "--output", tmp_path / "run")
    assert told.code == 0
    assert ("note: this CPU computes bf16 in software" in told.out + told.err) == (name == "bf16")
