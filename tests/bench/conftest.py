"""What is tested of a benchmark is tested in bf16 too, also on a CPU that computes it in software."""

import pytest

from ditwright.bench import ceilings


@pytest.fixture(autouse=True)
def _has_bf16(monkeypatch):
    monkeypatch.setattr(ceilings, "in_software", lambda precision, device: "")
