"""What a run takes: meters read rightly, nothing told that is not known, every assumption printed."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from itertools import count

import pytest
import torch

from ditwright.cli.main import main
from ditwright.errors import UserError
from ditwright.files import seal
from ditwright.train import job
from ditwright.train.config import LogConfig
from ditwright.train.energy import (
    CPUS,
    GPUS,
    Counter,
    Estimate,
    Meter,
    Span,
    added,
    by_power,
    cpu_packages,
    gpu,
    machine_meter,
    measured,
    spans_of,
)
from ditwright.train.log import Log
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints, read_facts

WRAPS = 262_143_328_850  # microjoules, a common range


def zone(root, number, name, energy, wraps=WRAPS):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", wraps)):
        (folder / file).write_text(f"{content}\n")
    return folder / "energy_uj"


def test_packages_are_counted_and_no_part_of_them_twice(tmp_path):
    first, second = (zone(tmp_path, i, f"package-{i}", 5_000_000) for i in (0, 1))
    others = [zone(tmp_path, "0:0", "core", 0), zone(tmp_path, "0:1", "dram", 0), zone(tmp_path, 2, "psys", 0)]
    meter = machine_meter(None, True, tmp_path)
    assert meter.joules() == {CPUS: 0}
    first.write_text("7500000\n")
    second.write_text("6000000\n")
    for other in others:
        other.write_text("99000000\n")
    assert meter.joules() == {CPUS: pytest.approx(3.5)}


def test_a_counter_that_starts_again_at_0_goes_on(tmp_path):
    file = zone(tmp_path, 0, "package-0", WRAPS - 2_000_000)
    meter = machine_meter(None, True, tmp_path)
    file.write_text("3000000")
    assert meter.joules()[CPUS] == pytest.approx(5.0)
    file.write_text("4000000")
    assert meter.joules()[CPUS] == pytest.approx(6.0)


@pytest.mark.parametrize("damage", ["no folder", "not readable", "no number", "no package"])
def test_what_cannot_be_read_is_not_known(damage, tmp_path):
    root = tmp_path / "powercap"
    if damage != "no folder":
        file = zone(root, 0, "psys" if damage == "no package" else "package-0", 1)
        zone(root, 1, "psys" if damage == "no package" else "package-1", 1)
        if damage == "not readable":
            file.unlink()
            file.mkdir()  # for root too
        elif damage == "no number":
            file.write_text("")
    assert cpu_packages(root) is None
    meter = machine_meter(None, True, root)
    assert math.isnan(meter.joules()[CPUS])
    assert spans_of(meter, 0, 10) == ()
    assert "not known" in str(Estimate((), 10))


def test_a_meter_that_fails_on_the_way_tells_nothing_from_then_on(tmp_path):
    file = zone(tmp_path, 0, "package-0", 0)
    meter = machine_meter(None, True, tmp_path)
    file.unlink()
    assert math.isnan(meter.joules()[CPUS])
    file.write_text("5000000")
    assert math.isnan(meter.joules()[CPUS])


def test_a_counter_without_a_range_that_steps_back_is_not_known():
    readings = iter((5.0, 3.0))
    assert math.isnan(Meter({GPUS: [Counter(lambda: next(readings))]}).joules()[GPUS])


def test_a_thread_looks_between_so_that_no_wrap_is_missed():
    readings, enough = count(0, 7), threading.Event()

    def read():
        reading = next(readings)
        if reading >= 70:
            enough.set()
        return reading % 10  # two looks without one between would lose a wrap

    with Meter({CPUS: [Counter(read, wraps=10)]}, every=0.001) as meter:
        assert enough.wait(60)
    assert not meter.thread.is_alive()
    assert meter.joules()[CPUS] == next(readings) - 7


class Driver:
    """NVML as far as it is asked."""

    def __init__(self, found=0, told=0):
        self.millijoules, self.found, self.told = 10_000, found, told

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        assert uuid == b"GPU-1234"
        return self.found

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, value):
        value._obj.value = self.millijoules
        return self.told


def test_a_gpus_own_counter_is_read():
    driver = Driver()
    meter = Meter({GPUS: gpu("1234", driver)})
    driver.millijoules += 2500
    assert meter.joules() == {GPUS: 2.5}
    driver.told = 15  # the GPU is lost
    assert math.isnan(meter.joules()[GPUS])


@pytest.mark.parametrize("driver", [Driver(found=6), Driver(told=3)], ids=["not found", "not supported"])
def test_a_gpu_without_a_counter_has_none(driver):
    assert gpu("1234", driver) is None


def test_the_device_that_trains_must_be_measured():
    (both,) = measured({GPUS: 7.0, CPUS: 3.0}, 2)
    assert (both.joules, both.stated) == (10, False)
    assert both.basis.startswith("measured: GPUs and CPU packages with")
    (alone,) = measured({GPUS: 7.0, CPUS: math.nan}, 2)
    assert alone.joules == 7
    assert "CPUs, memory, disks and cooling not counted" in alone.basis
    assert measured({GPUS: math.nan, CPUS: 3.0}, 2) == ()


def test_processes_add_up_and_a_machine_counts_once(tmp_path):
    file = zone(tmp_path, 0, "package-0", 0)
    meters = [machine_meter(None, local == 0, tmp_path) for local in (0, 1)]
    file.write_text("6000000")
    assert [meter.joules()[CPUS] for meter in meters] == [6, 0]
    (span,) = spans_of(meters[0], 0, 2, lambda mine: mine + meters[1].joules()[CPUS])
    assert span.joules == 6
    assert spans_of(meters[0], 0, 2, lambda mine: mine + math.nan) == ()  # of another machine it is not known
    assert job.meter_of(World(torch.device("cpu"), rank=3, size=4, local=1)).joules() == {CPUS: 0}


def test_stated_power_goes_before_a_meter():
    (span,) = spans_of(Meter({CPUS: [Counter(count(0, 100).__next__)]}), 50, 10)
    assert (span.joules, span.stated) == (500, True)


def test_the_arithmetic_is_that_of_a_bill():
    estimate = Estimate(by_power(700, 3600), 3600, pue=1.2, grams_per_kwh=400)
    assert estimate.kwh == pytest.approx(0.84)
    assert estimate.grams == pytest.approx(336)
    assert (
        str(estimate)
        == "0.84 kWh (700 W for all devices as stated), PUE 1.2 counted in; CO2: 336 g at 400 g/kWh as stated"
    )
    assert Estimate(by_power(700, 3600), 3600).grams is None
    assert "CO2" not in str(Estimate(by_power(700, 3600), 3600))


def test_assumptions_of_a_run_of_several_kinds_are_all_told():
    spans = added([Span(60, 600, "measured: x"), *by_power(10, 30), Span(40, 400, "measured: x")])
    assert [(span.seconds, span.joules) for span in spans] == [(100, 1000), (30, 300)]
    text = str(Estimate(spans, 200))
    assert "measured: x for 100 s; 10 W for all devices as stated for 30 s; 70 s of 200 s not known" in text
    found = Estimate(spans, 200, 1.5, 100).as_dict()
    assert found["kwh"] == pytest.approx(1.5 * 1300 / 3.6e6)
    assert "PUE 1.5 as stated" in found["assumptions"]
    assert "100 g of CO2 per kWh as stated" in found["assumptions"]
    assert "the building's overhead not counted" in Estimate(spans, 200).as_dict()["assumptions"]


@pytest.mark.parametrize("wrong", [{"watts": -1}, {"pue": 0.9}, {"grams_per_kwh": -1}])
def test_impossible_statements_are_refused(wrong):
    with pytest.raises(UserError, match=f"log.{next(iter(wrong))} must be at least"):
        LogConfig(**wrong)


def train(words, output, steps, *more):
    return main(["train", "digits", "--output", str(output), *words, "--steps", str(steps), *more])


def energy_lines(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("energy: ")]


@pytest.fixture
def metered(monkeypatch):
    """Runs are measured by a counter that moves by 100 J at every look."""
    monkeypatch.setattr(job, "meter_of", lambda world: Meter({CPUS: [Counter(count(0, 100).__next__)]}, every=3600))


def test_a_run_adds_up_over_its_stops(metered, tiny_words, tmp_path, capsys):
    assert train(tiny_words, tmp_path, 3) == 0
    (line,) = energy_lines(capsys)
    assert line.startswith("energy: 0.0278 Wh (measured: CPU packages with all else that ran on them")  # 100 J
    assert line.endswith("PUE 1 counted in")
    assert train(tiny_words, tmp_path, 9, "--log.grams_per_kwh", "360") == 0  # looks at steps 6 and 9
    (line,) = energy_lines(capsys)
    assert line.endswith("CO2: 0.03 g at 360 g/kWh as stated")
    facts = read_facts(checkpoints(tmp_path)[-1])
    (span,) = facts["energy"]
    assert span["joules"] == 300
    assert span["seconds"] == pytest.approx(facts["seconds"])
    assert train(tiny_words, tmp_path, 12, "--log.watts", "36") == 0
    (line,) = energy_lines(capsys)
    assert "CPU packages" in line
    assert "36 W for all devices as stated for" in line


def test_a_run_of_before_goes_on_and_says_what_is_not_known(metered, tiny_words, tmp_path, capsys):
    assert train(tiny_words, tmp_path, 3) == 0
    path = checkpoints(tmp_path)[-1] / "train.json"
    facts = json.loads(path.read_text())
    del facts["energy"]
    path.write_text(json.dumps(facts | {"seconds": 1e6}))
    seal(path.parent)
    capsys.readouterr()
    assert train(tiny_words, tmp_path, 6) == 0
    (line,) = energy_lines(capsys)
    assert "278 h of 278 h not known" in line
    assert read_facts(checkpoints(tmp_path)[-1])["energy"][0]["joules"] == 100


def test_a_run_that_is_stopped_tells_what_it_took(metered, tiny_words, tmp_path, capsys, monkeypatch):
    write = Log.write
    monkeypatch.setattr(Log, "write", lambda log, tick: (write(log, tick), os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(SystemExit) as left:
        train(tiny_words, tmp_path, 1000)
    assert left.value.code == 128 + signal.SIGTERM
    assert len(energy_lines(capsys)) == 1
    assert read_facts(checkpoints(tmp_path)[-1])["energy"][0]["joules"] == 100


@pytest.mark.parametrize("asked", [(), ("--log.grams_per_kwh", "400")], ids=["not asked", "asked"])
def test_no_number_is_made_up(asked, tiny_words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "meter_of", lambda world: Meter({CPUS: None}))
    assert train(tiny_words, tmp_path, 3, *asked) == 0
    told = ["energy: not known: no meter here that may be read, and no power stated"]
    assert energy_lines(capsys) == told * bool(asked)
    assert read_facts(checkpoints(tmp_path)[-1])["energy"] == []
