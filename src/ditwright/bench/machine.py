"""What the numbers depend on: the machine, and what is installed on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of a CPU, that decide how fast its matrix products are
PACKAGES = ("torch", "diffusers", "numpy")
CPUINFO = Path("/proc/cpuinfo")


def machine(device: torch.device) -> dict[str, Any]:
    """For JSON, as it is before anything is measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "processor": processor(),
        "cpu_flags": list(flags()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fp32_products": torch.get_float32_matmul_precision(),  # "highest": without TF32
        "load_before": os.getloadavg()[0],  # processes that want a core, a mean over the last minute
        "python": platform.python_version(),
        "versions": {"ditwright": __version__, **{name: version_of(name) for name in PACKAGES}},
    }


def device_name(device: torch.device) -> str:
    """What it is called."""
    return device.type if device.type == "cpu" or absent(device) else torch.cuda.get_device_name(device)


def absent(device: torch.device) -> str:
    """Why there is no such device here; empty where there is."""
    if device.type != "cuda":
        return ""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return "" if (device.index or 0) < count else f"there is no device {str(device)!r} here"


def version_of(package: str) -> str | None:
    """The version of a package that is installed; None where it is not. It is not imported."""
    if package == "torch":
        return torch.__version__  # with what it is built for
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name."""
    return next(_told(cpuinfo, "model name"), platform.machine())


def flags(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of FLAGS that the CPU has."""
    there = next(_told(cpuinfo, "flags"), "").split()
    return tuple(flag for flag in FLAGS if flag in there)


def _told(cpuinfo: Path, key: str) -> Iterator[str]:
    lines: Sequence[str] = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key)
