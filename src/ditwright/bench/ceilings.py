"""What a device can do at all: large matrix products, and copying of memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..train.precision import in_software, peak_flops
from .rounds import seconds_of

PRECISIONS = ("fp32", "bf16")  # of matrix products


def missing(precision: str, device: torch.device) -> str:
    """Why a device has no products of a precision; empty where it has."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return "this GPU has no bf16"
    return in_software(precision, device)


def copy_rate(device: torch.device, size: int = 2**28) -> float:
    """Bytes a second, read and written, in copying a buffer of `size` bytes: the best of a few tries."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / min(seconds_of(lambda: target.copy_(source), device) for _ in range(4))


@dataclass
class Ceilings:
    """The best that was seen so far."""

    device: torch.device
    products: dict[str, float] = field(default_factory=dict)  # FLOP/s by precision
    copying: float = 0.0  # bytes a second, read and written

    def look(self) -> None:
        """Measure once more."""
        for precision in PRECISIONS:
            if not missing(precision, self.device):
                seen = peak_flops(precision, self.device)
                self.products[precision] = max(seen, self.products.get(precision, 0.0))
        self.copying = max(self.copying, copy_rate(self.device))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        products = {f"{precision}_tflops": flops / 1e12 for precision, flops in self.products.items()}
        return {**products, "copy_gb_per_second": self.copying / 1e9}
