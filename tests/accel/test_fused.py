"""The Triton kernel of a modulated norm is the formula; Triton interprets it where it is and no GPU is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from ditwright.accel import modulation
from ditwright.accel.modulation import Share, can_fuse
from ditwright.nn.modulation import AdaLN, AdaLNZero
from ditwright.nn.norm import rms_norm

PROGRAM = """
import torch
import torch.nn.functional as F
from ditwright.accel.fused import modulated

device = "cuda" if torch.cuda.is_available() else "cpu"
draws = torch.Generator().manual_seed(0)
for batch, tokens, width in ((2, 5, 24), (3, 7, 16), (1, 4, 1152), (2, 3, 96)):
    for strides in ("rows", "across"):
        x = 3 * torch.randn(batch, tokens, width, generator=draws) + 1
        x = x.transpose(0, 1).contiguous().transpose(0, 1) if strides == "across" else x
        vec = torch.randn(batch, 9 * width, generator=draws)
        for rows in (batch, 1):
            shift, scale, _ = vec[:rows, None, 3 * width : 6 * width].chunk(3, -1)
            want = F.layer_norm(x.double(), (width,), eps=1e-6) * (1 + scale.double()) + shift.double()
            # half formats: a unit of the last place, since the interpreter cuts off where a GPU rounds
            for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
                parts = vec.to(device)[:rows, None, 3 * width : 6 * width].chunk(3, -1)
                found = modulated(x.to(device), *parts[:2], 1e-6, dtype)
                assert found.dtype == dtype
                off = ((found.cpu().double() - want).abs() / want.abs().clamp(min=1)).max()
                assert off <= limit, (batch, tokens, width, strides, rows, dtype, off)
print("all the same")
"""


def test_the_kernel_is_the_formula():
    pytest.importorskip("triton", reason="Triton comes with a torch that is built for GPUs")
    told = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=told, capture_output=True, text=True, check=False)
    assert done.stdout == "all the same\n", done.stderr


@pytest.mark.parametrize("there", [True, False], ids=["triton", "no triton"])
def test_where_it_is_used(there, monkeypatch):
    """Of the paper's norms, on a GPU; all else is computed by torch."""
    monkeypatch.setattr(modulation, "find_spec", lambda name: object() if there else None)
    gpu = torch.device("cuda")
    assert can_fuse(AdaLNZero(8).norm, gpu) is there
    assert not can_fuse(AdaLNZero(8).norm, torch.device("cpu"))
    assert not can_fuse(AdaLN(8, rms_norm).norm, gpu)
    assert not can_fuse(nn.LayerNorm(8), gpu)
    assert not Share(AdaLNZero(8), 0, torch.float32).fuses
