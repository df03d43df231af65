"""What a run takes: energy, measured where the machine tells or by power that somebody states, and CO2 from it.

Measured are counters of the hardware: CPU packages (RAPL, through Linux powercap) and NVIDIA GPUs (NVML, from Volta
on). Nothing is assumed that is not printed. No torch here.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"  # comes with the driver
GPUS, CPUS = "GPUs", "CPU packages"
JOULES = 3.6e6  # of a kWh
UNKNOWN = "not known: no meter here that may be read, and no power stated"


@dataclass(frozen=True)
class Counter:
    """Joules since some moment; OSError or ValueError where they cannot be read."""

    read: Callable[[], float]
    wraps: float = math.nan  # joules after which it starts at 0 again; NaN: never, so a step back is no reading

    def between(self, old: float, new: float) -> float:
        """Joules from one reading to the next, which comes before it has wrapped twice."""
        return new - old if new >= old else new - old + self.wraps


def cpu_packages(root: Path = POWERCAP) -> list[Counter] | None:
    """A counter for every CPU package; None where there is none, or one that this process may not read.

    Other zones are left out: they are parts of a package (core, uncore) or hold it (psys), memory's is not everywhere.
    """
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _text(zone / "name").startswith("package")]
    try:
        counters = [_zone(zone) for zone in zones]
        for counter in counters:
            counter.read()
    except (OSError, ValueError):
        return None
    return counters or None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _zone(zone: Path) -> Counter:
    """Microjoules in a file (kernel documentation, power/powercap)."""
    return Counter(
        lambda: int((zone / "energy_uj").read_text()) / 1e6, int((zone / "max_energy_range_uj").read_text()) / 1e6
    )


def gpu(uuid: str, library: Any = None) -> list[Counter] | None:
    """The counter of one NVIDIA GPU; None where it has none. `library`: NVML as ctypes loads it, None: the driver's."""
    try:
        nvml = ctypes.CDLL(NVML) if library is None else library
    except OSError:
        return None
    handle = ctypes.c_void_p()

    def read() -> float:
        millijoules = ctypes.c_ulonglong()
        if code := nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            raise OSError(f"NVML tells no energy of GPU-{uuid}: error {code}")
        return millijoules.value / 1e3

    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle)):
        return None
    try:
        read()
    except OSError:
        return None
    return [Counter(read)]


class Meter:
    """Joules of named counters since it was made. While it is entered, a thread looks before any wraps unseen.

    A name with None has no counter: its joules are NaN, as they are for ever once a counter could not be read. An empty
    list is 0: another process counts it.
    """

    def __init__(self, parts: Mapping[str, Sequence[Counter] | None], every: float = 10.0):
        """`every`: seconds between looks; a counter of 65 kJ under 1 kW wraps after a minute."""
        self.counters = {name: list(counters or ()) for name, counters in parts.items()}
        self.sums = {name: math.nan if counters is None else 0.0 for name, counters in parts.items()}
        self.every, self.lock, self.over = every, threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.last = {name: self._read(name) for name in parts}

    def joules(self) -> dict[str, float]:
        """Of each name until now."""
        with self.lock:
            for name, counters in self.counters.items():
                now = self._read(name)
                self.sums[name] += sum(c.between(*ab) for c, *ab in zip(counters, self.last[name], now, strict=True))
                self.last[name] = now
            return dict(self.sums)

    def _read(self, name: str) -> list[float]:
        try:
            return [counter.read() for counter in self.counters[name]]
        except (OSError, ValueError):
            return [math.nan] * len(self.counters[name])

    def _watch(self) -> None:
        while not self.over.wait(self.every):
            self.joules()

    def __enter__(self) -> Meter:
        if any(self.counters.values()):
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        if self.thread.ident is not None:
            self.thread.join()


def machine_meter(uuid: str | None, first: bool, root: Path = POWERCAP) -> Meter:
    """What a process counts: its own GPU, where `uuid` names one; the CPUs, where it is the machine's first process."""
    gpus = {} if uuid is None else {GPUS: gpu(uuid)}
    return Meter({**gpus, CPUS: cpu_packages(root) if first else []})


@dataclass(frozen=True)
class Span:
    """Some seconds of a run, the joules that they took, and how that is known."""

    seconds: float
    joules: float
    basis: str
    stated: bool = False  # by a person, not measured


def measured(joules: Mapping[str, float], seconds: float) -> tuple[Span, ...]:
    """A span of meters' sums; none where the device that trains, the first name, was not measured."""
    known = {name: value for name, value in joules.items() if not math.isnan(value)}
    if next(iter(joules)) not in known:
        return ()
    rest = "memory, disks and cooling" if CPUS in known else "CPUs, memory, disks and cooling"
    basis = f"measured: {' and '.join(known)} with all else that ran on them, {rest} not counted"
    return (Span(seconds, sum(known.values()), basis),)


def by_power(watts: float, seconds: float, basis: str = "") -> tuple[Span, ...]:
    """A span at a power that a person states, in watts of all devices."""
    return (Span(seconds, watts * seconds, basis or f"{watts:g} W for all devices as stated", stated=True),)


def spans_of(meter: Meter, watts: float, seconds: float, total: Callable[[float], float] = float) -> tuple[Span, ...]:
    """What a run took in the seconds since its meter was made: at `watts` where they are stated, else as measured.

    `total`: the sum of a number over processes, all of which call this.
    """
    if watts:
        return by_power(watts, seconds)
    return measured({name: total(joules) for name, joules in meter.joules().items()}, seconds)


def added(spans: Iterable[Span]) -> tuple[Span, ...]:
    """One span for each basis."""
    found: dict[str, Span] = {}
    for span in spans:
        old = found.get(span.basis, Span(0, 0, span.basis, span.stated))
        found[span.basis] = Span(old.seconds + span.seconds, old.joules + span.joules, span.basis, span.stated)
    return tuple(found.values())


@dataclass(frozen=True)
class Estimate:
    """The energy of so many seconds of training, and CO2 where the grid's carbon intensity is stated."""

    spans: tuple[Span, ...]
    seconds: float
    pue: float = 1.0  # what the building takes for every kWh of its computers
    grams_per_kwh: float = 0.0  # 0: not stated

    @property
    def kwh(self) -> float:
        """With the building's share."""
        return self.pue * sum(span.joules for span in self.spans) / JOULES

    @property
    def grams(self) -> float | None:
        """Of CO2."""
        return self.kwh * self.grams_per_kwh if self.grams_per_kwh else None

    def assumptions(self) -> list[str]:
        """All that the numbers rest on."""
        known = sum(span.seconds for span in self.spans)
        missing = [f"{_time(self.seconds - known)} of {_time(self.seconds)} not known"]
        each = len(self.spans) > 1
        bases = [span.basis + f" for {_time(span.seconds)}" * each for span in self.spans]
        return bases + missing * (known < 0.999 * self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        if not self.spans:
            return {"kwh": None, "grams_co2": None, "assumptions": [], "text": str(self)}
        building = "the building's overhead not counted" if self.pue == 1 else f"PUE {self.pue:g} as stated"
        grid = [f"{self.grams_per_kwh:g} g of CO2 per kWh as stated"] * bool(self.grams_per_kwh)
        return {
            "kwh": self.kwh,
            "grams_co2": self.grams,
            "pue": self.pue,
            "grams_per_kwh": self.grams_per_kwh or None,
            "assumptions": [*self.assumptions(), building, *grid],
            "text": str(self),
        }

    def __str__(self) -> str:
        if not self.spans:
            return UNKNOWN
        grid = "" if self.grams is None else f"; CO2: {_mass(self.grams)} at {self.grams_per_kwh:g} g/kWh as stated"
        return f"{_energy(self.kwh)} ({'; '.join(self.assumptions())}), PUE {self.pue:g} counted in{grid}"


def _energy(kwh: float) -> str:
    return f"{_number(kwh)} kWh" if kwh >= 0.001 or kwh == 0 else f"{_number(1000 * kwh)} Wh"


def _mass(grams: float) -> str:
    return f"{_number(grams)} g" if grams < 1000 else f"{_number(grams / 1000)} kg"


def _time(seconds: float) -> str:
    return f"{_number(seconds)} s" if seconds < 5400 else f"{_number(seconds / 3600)} h"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
