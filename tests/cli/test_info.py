"""`ditwright info` counts as the paper does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ditwright.cli.info import WAYS
from ditwright.config import dump_yaml, read_yaml
from ditwright.experiment import CodecTrainConfig, CropsConfig, TrainConfig
from ditwright.files import CHECKSUMS, seal
from ditwright.model.presets import PRESETS
from ditwright.train.config import ParallelConfig
from ditwright.train.cost import training_flops
from ditwright.train.state import checkpoints

PARAMETERS = {"DiT-S/2": 32_963_360, "DiT-B/2": 130_512_416, "DiT-L/2": 458_102_816, "DiT-XL/2": 675_129_632}
GFLOPS = {  # Peebles & Xie, Tables 1, 3 and 4: multiply-adds
    ("DiT-S/8",): 0.36,
    ("DiT-S/4",): 1.41,
    ("DiT-S/2",): 6.06,
    ("DiT-B/8",): 1.42,
    ("DiT-B/4",): 5.56,
    ("DiT-B/2",): 23.01,
    ("DiT-L/8",): 5.01,
    ("DiT-L/4",): 19.70,
    ("DiT-L/2",): 80.71,
    ("DiT-XL/8",): 7.39,
    ("DiT-XL/4",): 29.05,
    ("DiT-XL/2",): 118.64,
    ("DiT-XL/2", "--image-size", "512"): 524.60,
    ("DiT-XL/2", "--conditioning", "in-context"): 119.37,
    ("DiT-XL/2", "--conditioning", "cross"): 137.62,
    ("DiT-XL/2", "--conditioning", "adaln"): 118.56,
}


def facts(command, *words):
    code, out, err = command("info", *words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("words", GFLOPS, ids=" ".join)
def test_macs_are_the_papers_gflops(words, command):
    found = facts(command, *words)
    digits = 0.005  # the paper rounds to two of them
    assert found["macs"] / 1e9 == pytest.approx(GFLOPS[words], rel=0.005, abs=digits)
    assert found["flops"] == 2 * found["macs"]
    assert sum(found["macs_by_part"].values()) == found["macs"]


def test_every_preset_is_in_the_papers_table():
    assert {words[0] for words in GFLOPS if len(words) == 1} == {name for name in PRESETS if name.startswith("DiT-")}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_to_the_unit(name, command):
    found = facts(command, name)
    assert found["parameters"] == PARAMETERS[name]
    assert found["trained_parameters"] + found["position_table"] == found["parameters"]


def test_the_picture_may_have_any_shape(command):
    wide = facts(command, "DiT-S/2", "--image-size", "128", "512")
    square = facts(command, "DiT-S/2", "--image-size", "256")
    assert wide["latent_size"] == [16, 64]
    assert wide["tokens"] == square["tokens"] == 256
    assert wide["macs"] == square["macs"]


def test_classes_cost_a_row_each(command):
    more, fewer = (facts(command, "DiT-S/4", "--num-classes", str(n)) for n in (100, 10))
    assert more["parameters"] - fewer["parameters"] == 90 * 384
    none = facts(command, "DiT-S/4", "--num-classes", "0")
    assert fewer["parameters"] - none["parameters"] == 11 * 384


def test_text_costs_its_tokens(command):
    """Those that a preset is for, or as many as are asked for; the network has as many weights."""
    dev, short = facts(command, "FLUX.1-dev"), facts(command, "FLUX.1-dev", "--text-tokens", "256")
    schnell, one = facts(command, "FLUX.1-schnell"), facts(command, "FLUX-S", "--text-tokens", "1")
    assert [f["text_tokens"] for f in (dev, short, schnell, one)] == [512, 256, 256, 1]
    assert dev["parameters"] == short["parameters"] == 11_901_408_320
    assert dev["tokens"] == schnell["tokens"] == 256
    assert dev["macs"] > short["macs"] > schnell["macs"]  # which is told no guidance
    assert facts(command, "FLUX-S")["text_tokens"] == 77
    assert facts(command, "ProjectedDiT-XL/2")["text_tokens"] == facts(command, "DiT-S/2")["text_tokens"] == 0
    more, less = (facts(command, "FLUX-S", "--train-steps", "9", "--text-tokens", n)["training"] for n in ("77", "1"))
    for key in ("flops", "bytes_per_device"):
        assert more[key] > less[key]


def test_the_table_of_a_network_that_reads_text_is_no_parameter_of_it(command):
    for name, count in {"PixArt-alpha-XL/2-1024": 611_349_152, "SD3-medium": 2_028_328_000}.items():
        found = facts(command, name)
        assert (found["parameters"], found["position_table"]) == (count, 0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_told_in_words(name, command):
    code, out, _ = command("info", name)
    assert code == 0
    assert ("of text" in out) == name.startswith(("FLUX", "PixArt", "SD3"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("FLUX-S --conditioning cross", "--conditioning is for transformers told a class; FLUX-S reads text"),
        ("FLUX-S --text-tokens 0", "--text-tokens is 1 or more, of a network that reads text; got 0 for FLUX-S"),
        ("DiT-S/2 --text-tokens 3", "of a network that reads text; got 3 for DiT-S/2"),
        ("ADM-256 --text-tokens 3", "of a network that reads text; got 3 for ADM-256"),
    ],
)
def test_what_does_not_go_with_text_is_refused(words, message, command):
    code, out, err = command("info", *words.split())
    assert (code, out) == (2, "")
    assert message in err


def test_text_says_which_flops_are_which(command):
    code, out, err = command("info", "DiT-XL/2")
    assert (code, err) == (0, "")
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert lines["MACs (the paper's Gflops)"].strip().startswith("118.6")
    assert lines["FLOPs (2 per MAC)"].strip().startswith("237.")
    assert "675,129,632" in lines["parameters"]
    assert lines["tokens"].strip() == "256"


TRAINED = "DiT-S/2 --train-steps 1000 --batch-size 64 --devices 8 --tflops 100 --watts 700"


def test_a_computed_bill_is_operations_by_speed_by_power(command):
    plain = facts(command, *TRAINED.split())["training"]
    hours = plain["flops"] / 8 / 100e12 / 3600
    assert plain["hours"] == pytest.approx(hours)
    assert plain["energy"]["kwh"] == pytest.approx(8 * 0.7 * hours)
    assert plain["energy"]["grams_co2"] is None
    more = facts(command, *TRAINED.split(), "--pue", "1.5", "--grams-per-kwh", "400")["training"]["energy"]
    assert more["kwh"] == pytest.approx(1.5 * plain["energy"]["kwh"])
    assert more["grams_co2"] == pytest.approx(400 * more["kwh"])
    assert [part in " ".join(more["assumptions"]) for part in ("700 W for each of 8", "PUE 1.5", "400 g")] == [True] * 3
    text = command("info", *TRAINED.split(), "--pue", "1.5", "--grams-per-kwh", "400").out
    assert f"energy (computed)          {more['text']}" in text
    assert more["text"].endswith("at 400 g/kWh as stated")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tflops 3", "--tflops would change nothing without --train-steps"),
        ("--batch-size 3", "--batch-size would change nothing without --train-steps"),
        ("--devices 1", "--devices would change nothing without --train-steps"),
        ("--train-steps 5 --watts 3", "--watts would change nothing without --tflops"),
        ("--train-steps 5 --tflops 3 --pue 1", "--pue would change nothing without --watts"),
        ("--train-steps 5 --tflops 3 --grams-per-kwh 1", "--grams-per-kwh would change nothing without --watts"),
        (
            "--train-steps 5 --parallel.data 2 --devices 2",
            "--devices are copies of the weights, as --parallel.data is; give one of them",
        ),
        ("--parallel.data 0", ": --parallel.data must be at least 1; got 0"),
        ("--parallel.data 2 --parallel.shard -1", ": --parallel.shard must be at least 1; got -1"),
        ("--parallel.data 2 --parallel.sequence 0", ": --parallel.sequence must be at least 1; got 0"),
        ("--devices 0 --train-steps 5", ": --devices must be at least 1; got 0"),
        ("--parallel.data 1 --batch-size 0", ": --batch-size must be at least 1; got 0"),
        ("--parallel.data 3", ": --batch-size 256 is not a multiple of --parallel.data 3, the parts of a batch"),
        ("--parallel.shard 2 --batch-size 3", ": --batch-size 3 is not a multiple of --parallel.shard 2, the parts"),
        ("--parallel.data 8 --parallel.shard 3", "not a multiple of --parallel.data 8 times --parallel.shard 3, the"),
        ("--devices 3 --train-steps 5", ": --batch-size 256 is not a multiple of --devices 3, the parts of a batch"),
        ("--parallel.sequence 4", ": --parallel.sequence 4 shares 6 heads, which 4 does not divide"),
        ("--parallel.shard two", "--parallel.shard: invalid int value: 'two'"),
        ("--parallel.offload 1", "--parallel.offload: invalid choice: '1' (choose from"),
        ("--parallel.offload true --memory-gb 9", "--parallel.offload keeps them off: give one of them"),
        ("--parallel.shard 2 --tflops 3", "--tflops would change nothing without --train-steps"),
        ("--train-steps 0", "--train-steps is at least 1"),
        ("--train-steps 5 --tflops 0", "--tflops must be a number above 0; got 0"),
        ("--watts nan", "--watts must be a number above 0; got nan"),
        ("--grams-per-kwh -1", "--grams-per-kwh must be a number above 0; got -1"),
        ("--pue 0.9", "--pue must be a number of at least 1; got 0.9"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(words, said, refused):
    assert said in refused("info", "DiT-S/2", *words.split())


SPREAD = "--parallel.data 8 --parallel.shard 4 --parallel.sequence 2"


def test_memory_of_a_spread_run_is_told_by_part(command):
    """A sharded copy: a quarter of all that is like the weights on each; half of the tokens of 8 samples."""
    alone = facts(command, "DiT-XL/2", "--parallel.data", "1", "--batch-size", "8")["memory"]
    spread = facts(command, "DiT-XL/2", *SPREAD.split())["memory"]
    assert (alone["devices"], spread["devices"], spread["batch_size"]) == (1, 64, 256)
    assert spread["parallel"] == {"data": 8, "shard": 4, "sequence": 2}
    for part in ("weights", "gradients", "optimizer", "average"):
        assert 4 * spread["bytes_by_part"][part] == pytest.approx(alone["bytes_by_part"][part], rel=1e-6)
    assert 2 * spread["bytes_by_part"]["activations"] == alone["bytes_by_part"]["activations"]
    assert spread["bytes_per_device"] == sum(spread["bytes_by_part"].values()) < alone["bytes_per_device"]
    code, out, _ = command("info", "DiT-XL/2", *SPREAD.split())
    assert code == 0
    assert f"{spread['bytes_per_device'] / 1e9:.1f} GB on each of 64 device(s) training batches of 256" in out
    assert all(f"{part} " in out for part in spread["bytes_by_part"])


def test_a_bill_is_for_as_many_devices_as_the_run_is_spread_over(command):
    words = ["DiT-S/2", "--train-steps", "10", "--tflops", "100"]
    spread, plain = (facts(command, *words, *more.split()) for more in (SPREAD, "--devices 64"))
    assert spread["training"]["hours"] == pytest.approx(plain["training"]["hours"])
    assert spread["training"]["bytes_by_part"] == spread["memory"]["bytes_by_part"]
    assert plain["memory"]["parallel"] == {"data": 64, "shard": 1, "sequence": 1}


def test_a_run_is_spread_in_the_words_of_training():
    assert WAYS.keys() <= ParallelConfig.__dataclass_fields__.keys()


def test_a_u_net_has_no_tokens_to_share(refused):
    assert "for transformers" in refused("info", "ADM-256", "--parallel.sequence", "2")


@pytest.fixture
def spent(tiny_run, tmp_path):
    """spent(...) is the folder of a run that took 200 s and the spans that are given; None: of before they were."""

    def make(*spans):
        folder = shutil.copytree(tiny_run, tmp_path / "run")
        path = checkpoints(folder)[-1] / "train.json"
        told = json.loads(path.read_text()) | {"seconds": 200.0, "energy": spans}
        path.write_text(json.dumps({key: value for key, value in told.items() if value != (None,)}))
        seal(path.parent)
        return folder

    return make


METER = {"seconds": 150.0, "joules": 36_000.0, "basis": "measured: a meter", "stated": False}
STATED = {"seconds": 50.0, "joules": 3600.0, "basis": "72 W for all devices as stated", "stated": True}


def test_a_run_tells_what_it_took(spent, command):
    folder = spent(METER, STATED)
    found = facts(command, str(folder))
    config = read_yaml(TrainConfig, folder / "config.yaml")
    assert (found["steps"], found["steps_asked"], found["samples"], found["seconds"]) == (6, 6, 48, 200)
    assert found["flops"] == training_flops(config.model, (8, 8), 48)
    assert found["tflops"] == pytest.approx(found["flops"] / 200 / 1e12)
    assert found["energy"]["kwh"] == pytest.approx(0.011)
    assert found["energy"]["grams_co2"] is None
    text = command("info", folder, "--grams-per-kwh", 100, "--pue", 2).out
    assert "48" in text
    assert "0.022 kWh (measured: a meter for 150 s; 72 W for all devices as stated for 50 s), PUE 2 counted in" in text
    assert text.endswith("CO2: 2.2 g at 100 g/kWh as stated\n")


def test_what_the_run_stated_of_its_grid_holds_until_something_else_is_stated(spent, command):
    folder = spent(METER, STATED)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("grams_per_kwh: 0", "grams_per_kwh: 50").replace("pue: 1.0", "pue: 3.0"))
    assert facts(command, str(folder))["energy"]["grams_co2"] == pytest.approx(3 * 0.011 * 50)
    other = facts(command, str(folder), "--grams-per-kwh", "100", "--pue", "1")["energy"]
    assert other["grams_co2"] == pytest.approx(1.1)


@pytest.mark.parametrize("old", [(None,), (), (STATED,)], ids=["before it was noted", "no meter", "stated"])
def test_power_stated_afterwards_is_for_all_that_was_not_measured(old, spent, command):
    folder = spent(*old)
    assert facts(command, str(folder))["energy"]["kwh"] == (pytest.approx(0.001) if old == (STATED,) else None)
    assert facts(command, str(folder), "--watts", "180")["energy"]["kwh"] == pytest.approx(0.01)


def test_what_was_measured_stays(spent, command):
    found = facts(command, str(spent(METER, STATED)), "--watts", "720")["energy"]
    assert found["kwh"] == pytest.approx((36_000 + 50 * 720) / 3.6e6)


@pytest.mark.parametrize(
    ("spans", "words", "said"),
    [
        ([METER | {"seconds": 200.0}], "--watts 5", "--watts would change nothing: all of the run's energy was"),
        ([], "--grams-per-kwh 400", "--grams-per-kwh needs the run's energy, which is not known: state --watts too"),
        ([], "--pue 1.2", "--pue needs the run's energy"),
        ([METER], "--tflops 3", "--tflops is for a preset"),
        ([METER], "--image-size 8", "--image-size is for a preset"),
        ([METER], "--text-tokens 8", "--text-tokens is for a preset"),
        ([METER], "--conditioning adaln", "--conditioning is for a preset"),
        ([METER], "--parallel.shard 2", "--parallel.shard is for a preset"),
        ([METER], "--parallel.offload true", "--parallel.offload is for a preset"),
        ([METER], "--memory-gb 2", "--memory-gb is for a preset"),
    ],
)
def test_an_option_that_changes_nothing_of_a_run_is_refused(spans, words, said, spent, refused):
    assert said in refused("info", spent(*spans), *words.split())


def test_a_folder_without_a_run_is_said_to_be_one(refused, tmp_path):
    assert "holds no run with a checkpoint" in refused("info", tmp_path)


def hostile(text):
    return lambda path: path.write_text(text)


def slower(path):
    path.write_text(path.read_text().replace('"seconds": 200.0', '"seconds": 900.0'))


@pytest.mark.parametrize("damage", [hostile("[]"), hostile("{}"), hostile("[" * 100_000), slower, Path.unlink])
def test_facts_that_are_not_as_they_were_written_are_not_told(damage, spent, command, refused):
    folder = spent(METER)
    older, newest = checkpoints(folder)
    damage(newest / "train.json")
    code, out, err = command("info", folder)
    assert (code, "step 3 of 6" in out, err.count("\n")) == (0, True, 1)
    assert err.startswith(f"note: '{newest}' is damaged (train.json is ")
    assert err.endswith("told until step-00000003\n")
    damage(older / "train.json") if damage is not slower else hostile("{}")(older / "train.json")
    assert "and no other checkpoint is whole" in refused("info", folder)


@pytest.mark.parametrize("text", ["{}", '{"step": 6, "seconds": "long"}'])
def test_facts_without_checksums_are_read_with_care(text, spent, refused):
    folder = spent(METER)
    for checkpoint in checkpoints(folder):
        (checkpoint / CHECKSUMS).unlink()
        (checkpoint / "train.json").write_text(text)
    assert "does not say its step and its seconds; its train.json is damaged" in refused("info", folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (hostile("["), "is damaged ("),
        (Path.unlink, "is missing"),
        (
            lambda path: path.write_text(path.read_text().replace("batch_size: 8", "batch_size: 9")),
            "has data.batch_size 9",
        ),
    ],
)
def test_a_runs_configuration_is_that_of_its_checkpoint_where_its_file_is_not(damage, said, spent, command):
    folder = spent(METER)
    damage(folder / "config.yaml")
    code, out, err = command("info", folder, "--json")
    assert (code, json.loads(out)["samples"], err.count("\n")) == (0, 48, 1)
    assert f"note: {folder / 'config.yaml'} {said}" in err
    assert err.endswith(f"taken as {checkpoints(folder)[-1]} has it\n")


def test_a_damaged_card_gives_no_operations(spent, refused):
    folder = spent(METER)
    card = checkpoints(folder)[-1] / "card.yaml"
    card.write_text(card.read_text().replace("width: 1", "width: 2"))
    assert "is not as it was written: card.yaml is damaged" in refused("info", folder)


def test_an_autoencoders_run_tells_all_but_its_operations(command, tmp_path):
    config = CodecTrainConfig(steps=10, data=CropsConfig(batch_size=4))
    checkpoint = tmp_path / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    (checkpoint / "train.json").write_text(json.dumps({"step": 5, "seconds": 150.0, "energy": [METER]}))
    found = facts(command, str(tmp_path))
    assert (found["samples"], found["steps_asked"], found["flops"]) == (20, 10, None)
    assert found["energy"]["kwh"] == pytest.approx(0.01)
    assert "FLOP" not in command("info", tmp_path).out


def test_the_u_net_baseline_is_counted_too(command):
    code, out, _ = command("info", "ADM-256", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["latent_size"] == [256, 256]  # it has no codec
    assert round(facts["macs"] / 1e9) == 1120
    assert facts["position_table"] == 0
    assert "position table" not in command("info", "ADM-256").out
    code, _, err = command("info", "ADM-256", "--conditioning", "cross")
    assert code == 2
    assert "--conditioning is for transformers; ADM-256 is a U-Net" in err
