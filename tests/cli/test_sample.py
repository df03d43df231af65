"""`ditwright sample` writes pictures that say how they were made."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditwright import convert
from ditwright.cli.main import main
from ditwright.config import from_dict
from ditwright.convert import Portable
from ditwright.diffusion.config import ProcessConfig, SampleConfig
from ditwright.diffusion.sampler import SAMPLERS
from ditwright.pipeline import Pipeline
from small_pipelines import autoencoder, latent_pipeline, pipeline


def read(path: Path) -> tuple[np.ndarray, dict]:
    with Image.open(path) as opened:
        return np.asarray(opened), json.loads(opened.text["parameters"])


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: read(p)[0] for p in folder.glob("seed*.png")}


def test_without_options_every_class_is_drawn_as_the_checkpoint_says(command, tiny_run, tmp_path):
    code, out, err = command("sample", tiny_run, "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out == f"10 pictures and grid.png in {tmp_path / 'out'}\n"
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["grid.png", *(f"seed0-{i:05d}-class{i}.png" for i in range(10))]
    drawn = Pipeline.from_pretrained(tiny_run).draw(range(10))
    for i in range(10):
        assert np.array_equal(read(tmp_path / "out" / names[i + 1])[0], drawn[i, ..., 0])


def test_help_names_every_sampler_and_setting(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in SAMPLERS)
    assert all(f"--{name.replace('_', '-')}" in said for name in SampleConfig.__dataclass_fields__)


def test_the_settings_of_a_picture_are_in_it_and_draw_it_again(command, tiny_run, tmp_path):
    words = "--class-labels 3 7 3 --seed 11 --num-inference-steps 5 --guidance-scale 1.5 --sampler ddim --batch-size 2"
    more = "--guidance-interval 0.1 0.9 --guidance-rescale 0.25 --guidance-channels 1 --size 8 12"
    assert command("sample", tiny_run, "--output", tmp_path, *words.split(), *more.split()).code == 0
    image, facts = read(tmp_path / "seed11-00002-class3.png")
    config = SampleConfig("ddim", 5, 1.5, (0.1, 0.9), 0.25, 1, batch_size=2)
    settings = {name: facts[name] for name in SampleConfig.__dataclass_fields__}
    assert from_dict(SampleConfig, settings) == config
    assert (facts["seed"], facts["index"], facts["class_label"], facts["class_name"]) == (11, 2, 3, "3")
    assert facts["size"] == [8, 12]
    pipe = Pipeline.from_pretrained(facts["checkpoint"])
    again = pipe.draw([0, 0, facts["class_label"]], seed=facts["seed"], size=facts["size"], **settings)
    assert np.array_equal(again[facts["index"], ..., 0], image)
    _, of_the_grid = read(tmp_path / "grid.png")
    assert of_the_grid["class_labels"] == [3, 7, 3]
    assert {name: of_the_grid[name] for name in settings} == settings


def test_skipped_layers_and_a_shift_by_size_are_asked_for_by_commas(command, tiny_run, tmp_path):
    asked = {
        "plain": "",
        "skipping": "--skip-guidance-layers 0,1 --skip-layer-guidance-stop 0.9",
        "shifted": "--dynamic-shift 0.5,1.15,4,64",
    }
    for name, more in asked.items():
        words = f"--class-labels 3 --num-inference-steps 5 {more}"
        assert command("sample", tiny_run, "--output", tmp_path / name, *words.split()).code == 0
    drawn = {name: read(tmp_path / name / "seed0-00000-class3.png") for name in asked}
    assert len({image.tobytes() for image, _ in drawn.values()}) == 3
    assert (drawn["skipping"][1]["skip_guidance_layers"], drawn["plain"][1]["skip_guidance_layers"]) == ([0, 1], [])
    assert drawn["shifted"][1]["dynamic_shift"] == [0.5, 1.15, 4, 64]


def test_without_its_autoencoder_nothing_is_begun_and_the_option_is_named(command, refused, tmp_path):
    vae = autoencoder(tmp_path / "vae")
    latent_pipeline(vae).save_pretrained(tmp_path / "saved", with_codec=False)
    elsewhere = vae.rename(tmp_path / "elsewhere")
    words = ("sample", tmp_path / "saved", "--class-labels", 1, "--output", tmp_path / "out")
    line = refused(*words)
    assert f"there is no codec folder {str(vae)!r}" in line
    assert "`ditwright sample` as --codec" in line
    assert not (tmp_path / "out").exists()
    assert command(*words, "--codec", elsewhere).code == 0


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_sample_is_the_same_in_any_batch(size, command, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--class-labels", *"31415926", "--guidance-scale", 3, "--seed", 2]
    assert command(*words, "--output", tmp_path / "one", "--batch-size", 64).code == 0
    assert command(*words, "--output", tmp_path / "other", "--batch-size", size).code == 0
    one, other = pictures(tmp_path / "one"), pictures(tmp_path / "other")
    assert one.keys() == other.keys()
    assert len(one) == 8
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert len({image.tobytes() for image in one.values()}) == 8


def test_a_checkpoint_folder_will_do_for_a_run(command, tiny_run, tmp_path):
    older = tiny_run / "checkpoints" / "step-00000003"
    assert command("sample", older, "--output", tmp_path, "--class-labels", 0).code == 0
    assert read(tmp_path / "grid.png")[1]["checkpoint"] == str(older)


def test_a_network_without_classes_draws_as_many_as_asked(command, tiny_words, tmp_path):
    words = ["--steps", 1, "--model.num_classes", 0, "--output", tmp_path / "run"]
    assert command("train", "digits", *tiny_words, *words).code == 0
    assert command("sample", tmp_path / "run", "--output", tmp_path / "out", "--num-images", 3).code == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["grid.png", *(f"seed0-{i:05d}.png" for i in range(3))]
    assert read(tmp_path / "out" / names[1])[1]["class_label"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--class-labels 3", "takes no class labels"),
        ("--num-images 0", "--num-images must be at least 1"),
        ("--guidance-scale 2", "unconditional"),
    ],
)
def test_a_network_without_classes_takes_none(words, said, refused, command, tiny_words, tmp_path):
    train = ["train", "digits", *tiny_words, "--steps", 1, "--model.num_classes", 0, "--output", tmp_path / "run"]
    assert command(*train).code == 0
    assert said in refused("sample", tmp_path / "run", "--output", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_whole_pictures_or_none(command, tiny_run, tmp_path, monkeypatch):
    assert command("sample", tiny_run, "--output", tmp_path, "--class-labels", 4).code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    code, out, err = command("sample", tiny_run, "--output", tmp_path, "--class-labels", 4, 5, "--seed", 0)
    assert (code, out) == (2, "")
    assert err.startswith("ditwright: error: ")
    assert "No space left on device" in err
    assert err.count("\n") == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_number_of_images_beside_labels_is_refused(command, tiny_run, tmp_path):
    code, _, err = command("sample", tiny_run, "--class-labels", "1", "--num-images", "3", "--output", tmp_path / "o")
    assert code == 2
    assert "--num-images" in err
    assert not (tmp_path / "o").exists()


def test_height_and_width_are_size(command, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--class-labels", 4]
    assert command(*words, "--height", 8, "--width", 12, "--output", tmp_path / "one").code == 0
    assert command(*words, "--size", 8, 12, "--output", tmp_path / "two").code == 0
    assert command(*words, "--width", 12, "--output", tmp_path / "three").code == 0
    one, *others = (pictures(tmp_path / name) for name in ("one", "two", "three"))
    assert next(iter(one.values())).shape == (8, 12)
    for other in others:
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_several_pictures_of_each_label(command, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--class-labels", 4, 7, "--num-images-per-prompt", 2, "--output", tmp_path]
    assert command(*words).out == f"4 pictures and grid.png in {tmp_path}\n"
    drawn = Pipeline.from_pretrained(tiny_run).draw([4, 4, 7, 7])
    assert sorted(pictures(tmp_path)) == [f"seed0-{i:05d}-class{label}.png" for i, label in enumerate([4, 4, 7, 7])]
    assert all(
        np.array_equal(a, b[..., 0])
        for a, b in zip(dict(sorted(pictures(tmp_path).items())).values(), drawn, strict=True)
    )


def test_a_film_strip_shows_the_way_to_each_picture(command, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--class-labels", 4, 7, "--num-inference-steps", 6, "--output", tmp_path]
    code, out, _ = command(*words, "--film-strip", 4)
    assert (code, out) == (0, f"2 pictures with their film strips and grid.png in {tmp_path}\n")
    strip, facts = read(tmp_path / "seed0-00001-class7-film.png")
    picture, of_picture = read(tmp_path / "seed0-00001-class7.png")
    assert facts == of_picture
    assert strip.shape[1] > 3.5 * strip.shape[0] / 2  # four of them beside each other
    frames = list(Pipeline.from_pretrained(tiny_run).frames([4, 7], num_inference_steps=6))
    assert np.array_equal(frames[-1].images[1, ..., 0], picture)
    for image, i in zip(cells(strip), (0, 2, 3, 5), strict=True):
        assert np.array_equal(image, frames[i].clean[1, ..., 0])


def cells(strip: np.ndarray) -> list[np.ndarray]:
    """The 8 x 8 pictures in a film strip of cells of 64 pixels with gaps of 4, at the bottom of the paper."""
    rows = strip[-68:-4]
    return [rows[4::8, 4 + k * 68 : 68 + k * 68 : 8][..., 0] for k in range(4)]


def test_a_half_precision_network_draws_nearly_the_same(command, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--class-labels", *range(8), "--sampler", "euler"]
    for dtype in ("fp32", "bf16"):
        assert command(*words, "--dtype", dtype, "--output", tmp_path / dtype).code == 0
    wide, narrow = (np.stack(list(pictures(tmp_path / d).values())).astype(int) for d in ("fp32", "bf16"))
    assert 0 < np.abs(wide - narrow).max() < 32
    assert read(tmp_path / "bf16" / "grid.png")[1]["dtype"] == "bf16"


def test_precision_is_of_the_products_and_is_noted(command, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--class-labels", "1", "--num-inference-steps", "2"]
    for precision in ("fp32", "bf16", "auto"):
        assert command(*words, "--precision", precision, "--output", tmp_path / precision).code == 0
    noted = [read(tmp_path / name / "grid.png")[1]["precision"] for name in ("fp32", "bf16", "auto")]
    assert noted[:2] == ["fp32", "bf16"]
    assert noted[2] in noted[:2]


def test_weights_of_another_project(command, tmp_path):
    pipe = pipeline()
    state = {key.removeprefix("net."): tensor for key, tensor in pipe.denoiser.state_dict().items()}
    portable = Portable(pipe.card.model, ProcessConfig(reversed_time=True), state, image_size=(64, 64))
    convert.write(portable, tmp_path / "x.pt", to="sit")
    words = ["sample", tmp_path / "x.pt", "--family", "sit", "--heads", 2, "--codec", "pixels"]
    assert command(*words, "--class-labels", 2, "--output", tmp_path / "out", "--num-inference-steps", 2).code == 0
    _, facts = read(tmp_path / "out" / "seed0-00000-class2.png")
    told = {name: facts[name] for name in ("checkpoint", "family", "heads", "codec")}
    assert told == {"checkpoint": str(tmp_path / "x.pt"), "family": "sit", "heads": 2, "codec": "pixels"}


def test_a_large_picture_may_be_decoded_in_tiles(command, tiny_run, refused, tmp_path):
    pytest.importorskip("diffusers")
    latent_pipeline(autoencoder(tmp_path / "vae")).save_pretrained(tmp_path / "saved")
    words = ["sample", tmp_path / "saved", "--class-labels", 0, "--size", 64, 64, "--output"]
    assert command(*words, tmp_path / "whole").code == 0
    assert command(*words, tmp_path / "tiled", "--vae-tiling").code == 0
    whole, tiled = (pictures(tmp_path / name)["seed0-00000-class0.png"] for name in ("whole", "tiled"))
    assert whole.shape == tiled.shape == (64, 64, 3)
    assert not np.array_equal(whole, tiled)
    assert "--vae-tiling is for autoencoders" in refused(
        "sample", tiny_run, "--vae-tiling", "--output", tmp_path / "no"
    )


def test_two_processes_draw_the_set_that_one_draws(command, tiny_run, tmp_path):
    words = ["sample", str(tiny_run), "--num-fid-samples", "21", "--fid-batch-size", "4", "--seed", "3"]
    code, out, err = command(*words, "--output", tmp_path / "one")
    assert (code, out, err) == (0, f"21 samples in {tmp_path / 'one' / 'samples_21.npz'}\n", "")
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "ditwright", *words, "--output", str(tmp_path / "two")],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert sorted(out for out, _ in printed) == ["", f"21 samples in {tmp_path / 'two' / 'samples_21.npz'}\n"]
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert one.keys() == {"samples_21.npz", "samples_21.json"}
    said = json.loads(one["samples_21.json"])
    assert said["checkpoint"].endswith("step-00000006")
    assert (said["seed"], said["batch_size"], said["num_samples"]) == (3, 4, 21)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--size 8 8 --height 8", "give --size, or --height and --width"),
        ("--height 7", "size 7x8 is not divisible"),
        ("--film-strip 1", "--film-strip needs at least 2 previews; got 1"),
        ("--num-images-per-prompt 0", "num_images_per_prompt must be at least 1; got 0"),
        ("--dtype int8", "--dtype"),
        ("--dtype bf16 --precision bf16", "--precision, --compile and --graphs"),
        ("--graphs", "graphs are of a GPU with CUDA, and this network is on the CPU"),
        ("--sequence-parallel 2 --compile", "processes share plain ones"),
        ("--family dit", "family and heads are for weights of other projects"),
        ("--revision v1", "revision is for names on the hub"),
        ("--codec nowhere", "'nowhere'"),
        ("--timestep-spacing leading", "timestep_spacing 'leading' is for the tables of ddpm paths"),
        ("--dynamic-shift 0.5,1.15", "dynamic_shift must have 4 values; got 2"),
        ("--dynamic-shift 0.5,1.15,256,4096 --shift 3", "shift 3 and dynamic_shift exclude each other"),
        ("--set-alpha-to-one false", "set_alpha_to_one"),
        ("--true-cfg-scale 2", "true_cfg_scale is for networks that hear text and imitate guidance"),
        ("--use-resolution-binning true", "use_resolution_binning is for networks of 256, 512, 1024, 2048 pixels"),
        ("--prompt a", "--prompt is for networks that hear text; give --class-labels"),
        ("--negative-prompt-2 a", "--negative-prompt-2 is for networks that hear text; give --class-labels"),
        ("--max-sequence-length 20", "--max-sequence-length is for networks that hear text"),
        ("--set-alpha-to-one perhaps", "set_alpha_to_one must be true or false"),
        ("--fid-batch-size 4", "--fid-batch-size goes with --num-fid-samples"),
        ("--num-fid-samples 0", "at least 1"),
        ("--num-fid-samples 5 --fid-batch-size 0", "batch_size must be at least 1"),
        ("--num-fid-samples 5 --class-labels 3", "--class-labels is for pictures"),
        ("--num-fid-samples 5 --film-strip 3", "--film-strip is for pictures"),
        ("--num-fid-samples 5 --prompt-2 a", "--prompt-2 is for pictures"),
        ("--num-fid-samples 5 --num-images-per-prompt 3", "--num-images-per-prompt is for pictures"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said, refused, tiny_run, tmp_path):
    assert said in refused("sample", tiny_run, "--output", tmp_path / "out", *words.split())
    assert list(tmp_path.iterdir()) == []


def test_several_processes_without_a_set_are_refused(refused, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several processes draw a set" in refused("sample", tiny_run, "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_set_begun_otherwise_is_refused(command, refused, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--num-fid-samples", 5, "--output", tmp_path]
    assert command(*words).code == 0
    assert command(*words).out == f"5 samples in {tmp_path / 'samples_5.npz'}\n"
    assert "guidance_scale is 1.0 there and 2.0 now" in refused(*words, "--guidance-scale", 2)


def test_a_set_of_before_a_setting_was_there_is_known_again(command, refused, tiny_run, tmp_path):
    words, path = ["sample", tiny_run, "--num-fid-samples", 5, "--output", tmp_path], tmp_path / "samples_5.json"
    assert command(*words).code == 0
    told = json.loads(path.read_text())
    assert [told.pop(name) for name in ("true_cfg_scale", "use_resolution_binning")] == [1.0, False]
    path.write_text(json.dumps(told))
    assert command(*words).code == 0
    path.write_text(json.dumps(told | {"true_cfg_scale": 3.0}))
    assert "true_cfg_scale is 3.0 there and 1.0 now" in refused(*words)


def test_a_set_of_another_autoencoder_is_known_again_wherever_that_lies(command, refused, tmp_path):
    pytest.importorskip("diffusers")
    latent_pipeline(autoencoder(tmp_path / "vae")).save_pretrained(tmp_path / "saved")
    autoencoder(tmp_path / "other", seed=1).rename(tmp_path / "moved")
    words = ["sample", tmp_path / "saved", "--num-fid-samples", 2, "--output", tmp_path / "out", "--codec"]
    shutil.copytree(tmp_path / "moved", tmp_path / "again")
    for place in ("moved", "moved", "again"):
        assert command(*words, tmp_path / place).code == 0
    assert "codec.fingerprint is" in refused(*words, tmp_path / "vae")
