"""A run guards its folder, tells its story there, and refuses what does not fit before it begins."""

from __future__ import annotations

import json
import re
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright.config import from_dict, load_yaml
from ditwright.data.base import item
from ditwright.data.sources import SOURCES
from ditwright.errors import UserError
from ditwright.experiment import TrainConfig
from ditwright.pipeline import Pipeline
from ditwright.recipes import RECIPES
from ditwright.run import assemble, batches, train
from ditwright.train import job
from ditwright.train.fit import NonFinite
from ditwright.train.job import claimed
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints

ALONE = World(torch.device("cpu"))


def test_seeds_make_runs(tiny, outcome, tmp_path):
    for seed in (0, 1, 2**63 - 1):
        train(tiny(f"--steps 2 --seed {seed}"), tmp_path / str(seed))
    losses = {tuple(line["loss"] for line in outcome(folder)["metrics"]) for folder in tmp_path.iterdir()}
    assert len(losses) == 3


def test_a_finished_run_has_nothing_to_do(tiny, tiny_run, contents, tmp_path, capsys):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before = contents(folder)
    assert train(tiny("--steps 6"), folder) == checkpoints(folder)[-1]
    assert "nothing to do" in capsys.readouterr().err
    assert contents(folder) == before
    train(tiny("--steps 4"), folder)  # it has gone further than that
    assert "is at step 6 of 4: nothing to do" in capsys.readouterr().err
    assert contents(folder).keys() == before.keys()


def test_a_run_folder_tells_its_story(tiny_run, tiny):
    assert sorted(p.name for p in tiny_run.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl", "samples"]
    assert from_dict(TrainConfig, load_yaml(tiny_run / "config.yaml")) == tiny("--steps 6")
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["samples"] for line in lines] == [8, 16, 24, 32, 40, 48]
    assert [p.name for p in checkpoints(tiny_run)] == ["step-00000003", "step-00000006"]
    with Image.open(tiny_run / "samples" / "step-00000006.png") as picture:
        assert picture.height > picture.width  # ten rows, a class each, of eight samples


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_checkpoints_are_kept(keep, tiny, tmp_path):
    train(tiny(f"--steps 5 --log.checkpoint_every 1 --log.keep {keep}"), tmp_path / "run")
    assert [int(p.name[5:]) for p in checkpoints(tmp_path / "run")] == list(range(6 - keep, 6))


def test_zero_switches_previews_off_and_checkpoints_but_for_the_last(tiny, tmp_path):
    train(tiny("--steps 4 --log.checkpoint_every 0 --log.preview_every 0"), tmp_path / "run")
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-00000004"]
    assert not (tmp_path / "run" / "samples").exists()


def test_metrics_and_previews_come_as_often_as_asked(tiny, tmp_path):
    train(tiny("--steps 7 --log.every 3 --log.preview_every 2"), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 7]
    previews = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert previews == [f"step-{step:08d}.png" for step in (2, 4, 6, 7)]


def test_the_parts_of_the_digits_recipe_fit():
    config = RECIPES["digits"]()
    parts = assemble(config, ALONE)
    batch = next(batches(parts, 0))
    assert batch.x0.shape[:2] == (config.data.batch_size, config.model.channels)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_command_and_what_came_of_it(name):
    said = RECIPES[name].__doc__ or ""
    assert f"ditwright train {name}" in said
    assert re.search(r"\d", said)


def test_batches_are_a_pure_function_of_the_place(tiny):
    config = tiny("--data.label_drop 0.5")
    parts = assemble(config, ALONE)
    first, second, third = islice(batches(parts, 0), 3)
    again = next(batches(parts, 2))
    assert torch.equal(third.x0, again.x0)
    assert torch.equal(third.cond["label"], again.cond["label"])
    assert torch.equal(third.draws.normal(third.x0), again.draws.normal(again.x0))
    wide = next(batches(assemble(tiny("--data.label_drop 0.5 --data.batch_size 16"), ALONE), 0))
    assert torch.equal(wide.x0, torch.cat((first.x0, second.x0)))
    assert torch.equal(wide.cond["label"], torch.cat((first.cond["label"], second.cond["label"])))
    assert torch.equal(wide.draws.uniform(), torch.cat((first.draws.uniform(), second.draws.uniform())))


def test_batches_pair_images_with_their_labels(tiny):
    config = tiny("--data.label_drop 0")
    parts, data = assemble(config, ALONE), SOURCES["digits"]()
    batch = next(batches(parts, 224))  # over the end of an epoch
    index = np.array([item(0, 1797, place) for place in range(1792, 1800)])
    assert np.array_equal(parts.codec.decode(batch.x0), data.images[index])
    assert batch.cond["label"].tolist() == data.labels(index).tolist()


def test_an_unconditional_network_sees_no_labels(tiny):
    config = tiny("--model.num_classes 0")
    assert next(batches(assemble(config, ALONE), 0)).cond == {}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--optim.lr 1e-3", "holds another run: optim.lr is 0.002 there and 0.001 now"),
        ("--seed 1", "holds another run: seed is 0 there and 1 now"),
        ("--model.width 32", "holds another run: model.width is 16 there and 32 now"),
        ("--precision bf16", "holds another run: precision is fp32 there and bf16 now"),
    ],
)
def test_a_folder_with_another_run_is_left_alone(words, error, tiny, tiny_run, contents, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before = contents(folder)
    with pytest.raises(UserError, match=error):
        train(tiny(f"--steps 9 {words}"), folder)
    assert contents(folder) == before


def test_what_may_change_is_said_and_kept(tiny, tiny_run, tmp_path, capsys):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    config = tiny("--steps 7 --log.keep 1 --sample.sampler euler")
    train(config, folder)
    said = capsys.readouterr().err
    assert all(line in said for line in ("steps: 6 -> 7", "log.keep: 2 -> 1", "sample.sampler: heun -> euler"))
    assert from_dict(TrainConfig, load_yaml(folder / "config.yaml")) == config
    assert [p.name for p in checkpoints(folder)] == ["step-00000007"]
    assert Pipeline.from_pretrained(folder).card.sample.sampler == "euler"


def test_the_measured_precision_is_kept_for_the_whole_run(tiny, tmp_path, monkeypatch):
    train(tiny("--steps 1 --precision auto"), tmp_path / "run")
    first = load_yaml(tmp_path / "run" / "config.yaml")["precision"]
    assert first in ("fp32", "bf16")
    other = "fp32" if first == "bf16" else "bf16"
    monkeypatch.setattr("ditwright.train.folder.resolve", lambda name, device: name.replace("auto", other))
    train(tiny("--steps 2 --precision auto"), tmp_path / "run")
    assert load_yaml(tmp_path / "run" / "config.yaml")["precision"] == first


def before_checksums(folder: Path) -> None:
    """Make a run one that was written when checkpoints had no checksums, and no configuration or data in them."""
    for checkpoint in checkpoints(folder):
        (checkpoint / "checksums.json").unlink()
        facts = json.loads((checkpoint / "train.json").read_text())
        kept = {name: fact for name, fact in facts.items() if name not in ("sealed", "config", "data")}
        (checkpoint / "train.json").write_text(json.dumps(kept))


def test_runs_without_their_config_are_not_guessed_at(tiny, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before_checksums(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"holds a run without its config.yaml"):
        train(tiny("--steps 6"), folder)


NO_CONFIGS = ["", "steps: 6\n", "steps: [", "nonsense: 1\n"]


@pytest.mark.parametrize("text", NO_CONFIGS)
def test_a_damaged_config_of_a_run_is_named(text, tiny, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before_checksums(folder)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        train(tiny("--steps 9"), folder)


@pytest.mark.parametrize("text", [*NO_CONFIGS, None, "another seed"])
def test_a_lost_config_is_written_again_from_the_newest_checkpoint(text, tiny, tiny_run, tmp_path, capsys):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    path = folder / "config.yaml"
    if text == "another seed":
        path.write_text(path.read_text().replace("seed: 0", "seed: 4", 1))
    elif text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(UserError, match=r"holds another run: optim.lr is 0.002 there and 0.5 now"):
        train(tiny("--steps 7 --optim.lr 0.5"), folder)
    train(tiny("--steps 7"), folder)
    assert "config.yaml" in capsys.readouterr().err.splitlines()[0]
    assert from_dict(TrainConfig, load_yaml(path)) == tiny("--steps 7")


def test_two_processes_do_not_share_a_folder(tiny, tmp_path):
    with claimed(tmp_path / "run", ALONE), pytest.raises(UserError, match="another process"):
        train(tiny("--steps 1"), tmp_path / "run")
    train(tiny("--steps 1"), tmp_path / "run")


def test_what_blocks_within_a_run_is_not_taken_for_another_process(tmp_path):
    """Such as a full pipe of a terminal that nobody reads."""

    def blocked() -> None:
        with claimed(tmp_path / "run", ALONE):
            raise BlockingIOError("write could not complete without blocking")

    with pytest.raises(BlockingIOError, match="without blocking"):
        blocked()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--data.source digit", r"no data set or folder 'digit' \(did you mean 'digits'\?\)"),
        ("--process.path liner", r"unknown path 'liner'.*did you mean 'linear'\?"),
        ("--process.target speed", "unknown target 'speed'"),
        ("--objective.times uniformly", r"unknown times .*did you mean 'uniform'\?"),
        ("--objective.weight min_snr", r"unknown weight .*did you mean 'min-snr'\?"),
        ("--objective.importance true", "importance sampling and learned variance need"),
        ("--sample.sampler huen", r"unknown sampler 'huen'.*did you mean 'heun'\?"),
        ("--model.num_classes 7", "model.num_classes is 7; 'digits' has 10 classes"),
        ("--model.channels 3 --model.out_channels 3", "model.channels is 3; the codec gives 1"),
        ("--codec.channels 3 --model.channels 3 --model.out_channels 3", "channels"),
        ("--model.patch 3,3", "8x8 is not divisible by.*3x3"),
        ("--model.patch 2 --model.sincos 0", "shape|patch"),
        ("--process.path ddpm-cosine --process.steps 4 --sample.num_inference_steps 5", "5 of .* 4 steps"),
        ("--model.num_classes 0 --sample.guidance_scale 2", "guidance"),
    ],
)
def test_parts_that_do_not_fit_leave_no_trace(words, error, tiny, tmp_path):
    """Else the right command would meet the wrong one's folder, or the end of a long run its first error."""
    with pytest.raises(UserError, match=error):
        train(tiny(f"--steps 2 {words}"), tmp_path / "run")
    assert list((tmp_path / "run").glob("*")) == []


def test_a_run_that_leaves_the_numbers_keeps_its_last_good_checkpoint(tiny, contents, tmp_path):
    words = "--optim.lr 1e38 --optim.warmup 0 --log.checkpoint_every 1"
    with pytest.raises(NonFinite, match=r"step 2 .*net\."):
        train(tiny(f"--steps 9 {words}"), tmp_path / "run")
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-00000001"]
    before = contents(tmp_path / "run")
    with pytest.raises(NonFinite, match="step 2 "):
        train(tiny(f"--steps 9 {words}"), tmp_path / "run")
    assert contents(tmp_path / "run") == before


DAMAGES = ["missing", "truncated", "flipped"]
PARTS = ["model.safetensors", "train.safetensors", "train.json", "card.yaml", "README.md", "checksums.json"]


def harm(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()
    content[len(content) // 3] ^= 16
    if damage != "missing":
        path.write_bytes(content[:-7] if damage == "truncated" else content)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_serves(
    name, damage, tiny, tiny_run, outcome, tmp_path, capsys
):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    harm(folder / "checkpoints" / "step-00000006" / name, damage)
    capsys.readouterr()
    train(tiny("--steps 6"), folder)
    first, *_ = said = capsys.readouterr().err.splitlines()
    assert first.startswith("step-00000006/" if name == "checksums.json" else f"step-00000006/{name} is ")
    assert first.endswith("set aside as damaged-00000006; the checkpoint before it is step-00000003")
    assert any(line.startswith("going on at step 3 ") for line in said)
    assert outcome(folder) == outcome(tiny_run)
    assert (folder / "checkpoints" / "damaged-00000006").is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "train.safetensors", "train.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_one_of_before_checksums_is_judged_by_what_its_files_tell(
    name, damage, tiny, tiny_run, outcome, tmp_path, capsys
):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before_checksums(folder)
    harm(folder / "checkpoints" / "step-00000006" / name, damage)
    train(tiny("--steps 6"), folder)
    assert f"step-00000006/{name} is missing or damaged" in capsys.readouterr().err
    assert outcome(folder) == outcome(tiny_run)


def test_where_no_checkpoint_is_whole_nothing_is_touched(tiny, tiny_run, contents, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    harm(folder / "checkpoints" / "step-00000003" / "train.json", "flipped")
    harm(folder / "checkpoints" / "step-00000006" / "model.safetensors", "missing")
    before = contents(folder)
    with pytest.raises(UserError, match=r"no checkpoint .* step-00000006/model.* missing; step-00000003/train.json is"):
        train(tiny("--steps 7"), folder)
    assert contents(folder) == before


def test_a_disk_that_lies_keeps_the_older_checkpoints(tiny, tiny_run, tmp_path, monkeypatch):
    folder, real = shutil.copytree(tiny_run, tmp_path / "run"), job.damage

    def lying(path: Path, **how: bool) -> str:
        harm(path / "model.safetensors", "flipped")
        return real(path, **how)

    monkeypatch.setattr(job, "damage", lying)
    with pytest.raises(OSError, match=r"does not give back what was written \(model.safetensors is damaged"):
        train(tiny("--steps 9"), folder)
    assert [path.name for path in checkpoints(folder)][:2] == ["step-00000003", "step-00000006"]


def test_tensorboard_gets_what_metrics_get(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    train(tiny("--steps 2 --log.tensorboard true"), tmp_path / "run")
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert all(name in events.read_bytes() for name in (b"loss", b"grad_norm", b"lr"))


def test_a_run_is_quiet_where_nobody_watches(tiny, tmp_path, capsys):
    """No progress bar into a file: one line at the start."""
    train(tiny("--steps 2"), tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"training on cpu in fp32: {Path(tmp_path / 'run')}\n"


def test_a_terminal_sees_how_far_it_is(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(tiny("--steps 4"), tmp_path / "run")
    _, err = capsys.readouterr()
    last = err.replace("\r", "\n").strip().splitlines()[-1]
    assert all(part in last for part in ("4/4", "100%", "loss ", " samples/s"))
    assert "training on cpu" in err
