"""Bad input is one line that says what came and what is allowed; the exit code is 2, and no file is touched."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
import safetensors.torch
from safetensors import SafetensorError

from ditwright.train.state import checkpoints

SHORT = "train digits --steps 1 --model.width 16 --model.heads 2 --data.batch_size 2 --precision fp32"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian digits", ["'trian'", "train, sample", "did you mean 'train'?"]),
        ("train", ["recipe", "--help"]),
        ("train digit", ["unknown recipe 'digit'", "known: digits", "did you mean 'digits'?"]),
        ("train digits --optim.lrr 1", ["unknown key 'optim.lrr'", "did you mean 'lr'?"]),
        ("train digits --optin.lr 1", ["unknown key 'optin'", "did you mean 'optim'?"]),
        ("train digits --step 5", ["unknown key 'step'", "did you mean 'steps'?"]),
        ("train digits --optim.lr", ["--optim.lr needs a value"]),
        ("train digits --optim.lr fast", ["optim.lr must be a number", "'fast'"]),
        ("train digits --optim.lr nan", ["optim.lr must be a number", "'nan'"]),
        ("train digits --steps 0", ["steps must be at least 1", "0"]),
        ("train digits --steps -5", ["steps must be at least 1", "-5"]),
        ("train digits --steps=1.5", ["steps must be a whole number", "'1.5'"]),
        ("train digits --steps many", ["steps must be a whole number", "'many'"]),
        ("train digits --seed -1", ["seed must be a whole number from 0"]),
        ("train digits --data.batch_size 0", ["data.batch_size must be at least 1"]),
        ("train digits --data.batch_size -8", ["data.batch_size must be at least 1", "-8"]),
        ("train digits --sample.guidance_scale -1", ["guidance_scale must be 0 or more"]),
        (f"{SHORT} --sample.sampler eular", ["unknown sampler 'eular'", "did you mean 'euler'?"]),
        ("train digits --data.source mnist", ["no data set or folder 'mnist'", "known: digits"]),
        (f"{SHORT} --model.patch 3,3", ["8x8", "3x3"]),
        ("train digits --precision fp16", ["precision must be one of auto, fp32, bf16", "'fp16'"]),
        ("train digits --config nowhere.yaml", ["there is no config file", "nowhere.yaml"]),
        ("info", ["preset", "--help"]),
        ("info DiT-XL/3", ["unknown preset 'DiT-XL/3'", "DiT-B/2", "did you mean 'DiT-XL/"]),
        (
            "info DiT-S/2 --conditioning adaln_zero",
            ["unknown conditioning", "in-context", "did you mean 'adaln-zero'?"],
        ),
        ("info DiT-S/2 --image-size 100", ["multiples of 8", "100"]),
        ("info DiT-S/2 --image-size 264", ["33x33", "2x2"]),
        ("info DiT-S/2 --image-size 0", ["--image-size"]),
        ("info DiT-S/2 --image-size 256 256 256", ["--image-size"]),
        ("info DiT-S/2 --image-size big", ["--image-size", "'big'"]),
        ("info DiT-S/2 --num-classes -1", ["num_classes"]),
        ("info DiT-S/2 --fast", ["--fast"]),
        ("sample", ["checkpoint", "--help"]),
        ("sample nowhere", ["there is no run or checkpoint folder", "'nowhere'"]),
        ("sample .", ["neither a checkpoint", "card.yaml"]),
    ],
)
def test_what_was_wrong_is_said_and_nothing_is_made(words, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(*words.split())
    assert [part for part in said if part not in line] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--class-labels 10", ["class label '10'", "0 to 9"]),
        ("--class-labels 3 -1", ["class label '-1'", "0 to 9"]),
        ("--class-labels seven", ["class label 'seven'", "0 to 9"]),
        ("--class-labels 1.5", ["class label '1.5'"]),
        ("--class-labels", ["--class-labels"]),
        ("--sampler eular", ["unknown sampler 'eular'", "ddpm", "did you mean 'euler'?"]),
        ("--size 7 8", ["7x8", "not divisible by 2x2"]),
        ("--size 0 8", ["0x8"]),
        ("--size -8 8", ["-8x8"]),
        ("--size 8", ["--size"]),
        ("--num-inference-steps 0", ["num_inference_steps must be at least 1", "0"]),
        ("--num-inference-steps -3", ["num_inference_steps must be at least 1", "-3"]),
        ("--num-inference-steps 2.5", ["num_inference_steps must be a whole number"]),
        ("--batch-size 0", ["batch_size must be at least 1"]),
        ("--batch-size -4", ["batch_size must be at least 1", "-4"]),
        ("--guidance-scale -1", ["guidance_scale must be 0 or more", "-1"]),
        ("--guidance-scale nan", ["guidance_scale must be a number", "'nan'"]),
        ("--guidance-scale inf", ["guidance_scale must be a number", "'inf'"]),
        ("--guidance-scale=-inf", ["guidance_scale must be a number"]),
        ("--guidance-scale strong", ["guidance_scale must be a number", "'strong'"]),
        ("--guidance-interval 0.9 0.1", ["guidance_interval", "0.9 0.1"]),
        ("--guidance-interval 0 7", ["guidance_interval", "0 7"]),
        ("--guidance-rescale 2", ["guidance_rescale must be between 0 and 1"]),
        ("--guidance-channels 0", ["guidance_channels must be at least 1"]),
        ("--guidance-channels 4", ["guidance_channels must be at most 1"]),
        ("--skip-guidance-layers 1,2", ["skip_guidance_layers of this network are 0 to 1; got 2"]),
        ("--skip-guidance-layers one", ["skip_guidance_layers.0 must be a whole number", "'one'"]),
        ("--skip-layer-guidance-scale 3", ["skip_layer_guidance_scale", "go with skip_guidance_layers"]),
        ("--seed -1", ["--seed"]),
        ("--seed x", ["--seed", "'x'"]),
        ("--num-images 3", ["--num-images is for networks without classes"]),
        ("--steps 3", ["--steps"]),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_not_begun(words, said, refused, tiny_run, tmp_path):
    line = refused("sample", tiny_run, "--output", tmp_path / "out", *words.split())
    assert [part for part in said if part not in line] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: {lr: fast}", "optim.lr must be a number; got 'fast'"),
        ("optim: {lr: [1]}", "optim.lr must be a number"),
        ("steps: true", "steps must be a whole number; got True"),
        ("data: 5", "data must be a group of keys; got 5"),
        ("data: {batchsize: 5}", "unknown key 'data.batchsize'"),
        ("- steps", "must hold keys and values"),
        ("steps: [", "is not YAML"),
    ],
)
def test_a_wrong_config_file_is_one_line(text, said, refused, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    assert said in refused("train", "digits", "--config", tmp_path / "c.yaml", "--output", tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_1e_4_in_a_config_file_is_a_number(command, tmp_path):
    (tmp_path / "c.yaml").write_text("optim:\n  lr: 1e-4\n")
    code, out, _ = command("train", "digits", "--config", tmp_path / "c.yaml", "--print-config")
    assert code == 0
    assert "lr: 0.0001" in out


def test_another_runs_folder_is_left_as_it_was(refused, tiny_run, tiny_words, contents, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before = contents(folder)
    line = refused("train", "digits", "--steps", 9, "--output", folder, *tiny_words, "--optim.lr", "1e-3")
    assert "holds another run: optim.lr is 0.002 there and 0.001 now" in line
    assert contents(folder) == before


@pytest.mark.parametrize("verb", ["train", "sample"])
def test_an_output_that_is_a_file_is_refused_and_kept(verb, refused, tiny_run, tiny_words, tmp_path):
    (tmp_path / "file").write_text("mine")
    words = ["digits", *tiny_words] if verb == "train" else [tiny_run]
    assert "file" in refused(verb, *words, "--output", tmp_path / "file")
    assert "file" in refused(verb, *words, "--output", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["card.yaml", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_sampling_a_damaged_checkpoint_names_the_file(name, damage, refused, tiny_run, tmp_path):
    folder = shutil.copytree(checkpoints(tiny_run)[-1], tmp_path / "checkpoint")
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "truncated":
        (folder / name).write_bytes(content[: len(content) // 2])
    assert name in refused("sample", folder, "--output", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", ["train.safetensors", "train.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_going_on_where_all_checkpoints_are_damaged_names_the_files(
    name, damage, refused, tiny_run, tiny_words, contents, tmp_path
):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    for checkpoint in checkpoints(folder):
        broken = checkpoint / name
        content = broken.read_bytes()
        broken.unlink()
        if damage == "truncated":
            broken.write_bytes(content[: len(content) // 2])
    before = contents(folder)
    line = refused("train", "digits", "--steps", 6, "--output", folder, *tiny_words)
    assert f"step-00000006/{name} is " in line
    assert f"step-00000003/{name} is " in line
    assert contents(folder) == before


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_its_own_words(*args: object, **kwargs: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("where", ["fsync", "replace", "weights"])
@pytest.mark.parametrize("late", [True, False], ids=["at the last moment", "at once"])
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(
    where, late, command, tiny_run, tiny_words, outcome, contents, tmp_path, monkeypatch
):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    longer = ["train", "digits", "--output", folder, *tiny_words, "--steps", 9, "--log.checkpoint_every"]
    assert command("train", "digits", "--output", tmp_path / "straight", *tiny_words, "--steps", 6)[0] == 0
    straight = ["train", "digits", "--output", tmp_path / "straight", *longer[4:]]
    assert command(*straight, 2)[0] == 0
    good = contents(folder / "checkpoints")

    def break_disk() -> None:
        if where == "weights":
            monkeypatch.setattr(safetensors.torch, "save_file", no_space_in_its_own_words)
        else:
            monkeypatch.setattr(os, where, no_space)

    if late:  # after the run has begun
        from ditwright.train.log import Log

        write = Log.write
        monkeypatch.setattr(Log, "write", lambda log, tick: (write(log, tick), break_disk()))
    else:
        break_disk()
    code, _, err = command(*longer, 2)
    assert code == 2
    line = err.splitlines()[-1]
    assert line.startswith("ditwright: error: ")
    assert "No space left on device" in line
    assert "Traceback" not in err
    assert contents(folder / "checkpoints") == good
    assert list(folder.rglob("*.half")) == []
    monkeypatch.undo()
    assert command(*longer, 2)[0] == 0
    assert outcome(folder) == outcome(tmp_path / "straight")
