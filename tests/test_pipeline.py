"""A sample depends on its seed, its number and its condition, and on nothing else; a checkpoint knows the rest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ditwright.config import dump_yaml, from_dict, load_yaml, to_dict
from ditwright.diffusion.sampler import SAMPLERS, last
from ditwright.errors import UserError
from ditwright.model.baseline import UNetConfig
from ditwright.pipeline import Card, Pipeline, find_checkpoint
from ditwright.pipeline.plan import check_layers
from ditwright.train.state import checkpoints
from small_pipelines import PROCESSES, pipeline

LABELS = [0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 1]
SETTINGS = [
    ("flow", {"sampler": "euler"}),
    ("flow", {"sampler": "heun", "guidance_interval": (0.2, 0.8), "guidance_rescale": 0.5}),
    ("flow", {"sampler": "ddim", "guidance_scale": 1.0}),
    ("flow", {"sampler": "heun", "skip_guidance_layers": (1,), "skip_layer_guidance_stop": 0.6}),
    ("flow", {"sampler": "dpmpp_2m"}),
    ("flow", {"sampler": "sde"}),
    ("ddpm", {"sampler": "ddpm"}),
    ("ddpm", {"sampler": "ddim"}),
    ("karras", {"sampler": "heun"}),
]


def test_every_sampler_is_tried():
    assert {settings["sampler"] for _, settings in SETTINGS} == SAMPLERS.keys()


@pytest.mark.parametrize(("process", "settings"), SETTINGS, ids=lambda value: str(value))
def test_a_picture_is_the_same_in_any_batch(process, settings):
    pipe = pipeline(process)
    one_by_one, few, all_at_once = (pipe.draw(LABELS, seed=5, batch_size=size, **settings) for size in (1, 3, 64))
    alone = [pipe.draw([label], seed=5, first=i, **settings)[0] for i, label in enumerate(LABELS)]
    assert all_at_once.shape == (11, 8, 8, 1)
    assert len(np.unique(all_at_once)) > 50
    assert np.array_equal(one_by_one, all_at_once)
    assert np.array_equal(few, all_at_once)
    assert np.array_equal(alone, all_at_once)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_part_of_the_samples_is_that_part(size):
    pipe = pipeline()
    whole = last(pipe.steps(LABELS, seed=5))
    for start in range(0, len(LABELS), size):
        part = last(pipe.steps(LABELS[start : start + size], seed=5, first=start))
        torch.testing.assert_close(part, whole[start : start + size], rtol=0, atol=1e-5)


def test_seeds_and_numbers_and_labels_all_matter():
    pipe = pipeline()
    pictures = [pipe.draw([0, 0, 1], seed=seed)[i].tobytes() for seed in (0, 1, 2**63 - 1) for i in range(3)]
    pictures += [pipe.draw([0, 0, 2])[2].tobytes()]
    assert len(set(pictures)) == 10


def test_neighbours_do_not_matter():
    pipe = pipeline()
    assert np.array_equal(pipe.draw([0, 1, 2])[1], pipe.draw([2, 1, 0])[1])


def test_names_are_numbers():
    pipe = pipeline()
    assert pipe.labels(["two", 1, "0", np.int64(2), "zero"]) == [2, 1, 0, 2, 0]
    assert np.array_equal(pipe.draw(["two", "one"]), pipe.draw([2, 1]))


@pytest.mark.parametrize("label", [3, -1, "3", "-1", "--1", "tow", "", "1.5", 1.5, None])
def test_a_label_that_is_none_is_refused(label):
    with pytest.raises(UserError, match=r"class label .* is not known; allowed: 0 to 2, or names such as zero, one"):
        pipeline().draw([0, label])


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'two'\?"):
        pipeline().draw(["tow"])


def test_a_network_without_classes_needs_none_and_takes_none():
    pipe = pipeline(classes=0)
    pictures = pipe.draw([None] * 5, seed=1)
    assert pictures.shape == (5, 8, 8, 1)
    assert len({picture.tobytes() for picture in pictures}) == 5
    with pytest.raises(UserError, match="takes no class labels"):
        pipe.draw([0])
    with pytest.raises(UserError, match="guidance"):
        pipe.draw([None], guidance_scale=2.0)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 2)])
def test_any_size_that_the_patch_divides(size):
    pipe = pipeline(patch=(4, 2)) if size[1] != 2 else pipeline()
    assert pipe.draw([0, 1], size=size).shape == (2, *size, 1)


@pytest.mark.parametrize("size", [(6, 8), (8, 7), (0, 8), (8, -2), (9, 9)])
def test_other_sizes_are_refused_before_any_work(size):
    with pytest.raises(UserError, match=rf"size {size[0]}x{size[1]} is not divisible by 4x2"):
        pipeline(patch=(4, 2)).draw([0], size=size)


def test_frames_are_the_way_to_the_picture():
    pipe = pipeline()
    frames = list(pipe.frames([0, 1], seed=3))
    assert len(frames) == 4
    assert [frame.t for frame in frames] == sorted((frame.t for frame in frames), reverse=True)
    assert frames[-1].t == 0
    assert all(frame.images.shape == frame.clean.shape == (2, 8, 8, 1) for frame in frames)
    assert np.array_equal(frames[-1].images, pipe.draw([0, 1], seed=3))


def test_progress_counts_every_step():
    counted = []
    pipeline().draw(LABELS, progress=counted.append, batch_size=3, num_inference_steps=5)
    assert counted == [1] * 5


def test_a_setting_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"unknown setting 'guidance'; known: sampler, .*did you mean 'guidance_"):
        pipeline().draw([0], guidance=2.0)
    with pytest.raises(UserError, match=r"unknown sampler 'eular'.*did you mean 'euler'\?"):
        pipeline().draw([0], sampler="eular")


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_guidance_that_makes_no_sense_is_refused(scale):
    with pytest.raises(UserError, match=r"guidance_scale must be (0 or more|a number)"):
        pipeline().draw([0], guidance_scale=scale)


def test_more_guided_channels_than_there_are_is_refused():
    with pytest.raises(UserError, match="guidance_channels must be at most 1; got 3"):
        pipeline().draw([0], guidance_channels=3)


def test_layers_that_are_not_there_cannot_be_left_out():
    with pytest.raises(UserError, match="skip_guidance_layers of this network are 0 to 1; got 5"):
        pipeline().draw([0], skip_guidance_layers=[1, 5])
    unet = UNetConfig(width=16, levels=(1,), depth=1, attention=0, head_width=16, groups=8, channels=1, out_channels=1)
    with pytest.raises(UserError, match="skip_guidance_layers are blocks of a transformer"):
        check_layers(unet, [0])


EIGHT = [
    {"sampler": "sde", "num_inference_steps": 3},
    {"sampler": "sde", "num_inference_steps": 7, "guidance_scale": 1.0},
    {"sampler": "ddim", "num_inference_steps": 5, "size": (4, 12), "batch_size": 1},
    {"sampler": "dpmpp_2m", "num_inference_steps": 9, "guidance_scale": 4.0, "clip": 1.0},
    {"sampler": "heun", "num_inference_steps": 2, "size": (16, 16), "guidance_interval": (0.3, 0.7)},
    {"sampler": "euler", "num_inference_steps": 12, "guidance_rescale": 0.7},
    {"sampler": "ddpm", "num_inference_steps": 6, "size": (2, 2)},
    {"sampler": "dpmpp_2m", "num_inference_steps": 4, "seed": 3, "batch_size": 2},
]


def test_eight_threads_with_settings_of_their_own_draw_what_each_draws_alone():
    pipe = pipeline()

    def work(settings):
        return [pipe.draw([0, 1, 2], **settings) for _ in range(3)]

    alone = [pipe.draw([0, 1, 2], **settings) for settings in EIGHT]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, EIGHT))
    for one, three in zip(alone, together, strict=True):
        assert all(np.array_equal(one, again) for again in three)


def test_sampling_leaves_the_network_and_the_global_randomness_alone():
    pipe = pipeline()
    before = {name: tensor.clone() for name, tensor in pipe.denoiser.state_dict().items()}
    state = torch.get_rng_state()
    pipe.draw([0], sampler="sde")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.denoiser.state_dict().items())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("process", PROCESSES)
def test_a_checkpoint_draws_the_same_without_being_told_anything(process, tmp_path):
    pipe = pipeline(process)
    pipe.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert again.card == pipe.card
    assert np.array_equal(again.draw(["two", 0], seed=4), pipe.draw(["two", 0], seed=4))
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["README.md", "card.yaml", "model.safetensors"]
    assert not again.denoiser.training


def test_a_card_survives_yaml():
    card = pipeline("karras").card
    assert from_dict(Card, to_dict(card)) == card


def test_saving_replaces_what_was_there_and_may_add_to_it(tmp_path):
    pipeline().save_pretrained(tmp_path / "saved", also=lambda folder: (folder / "more").write_text("x"))
    assert (tmp_path / "saved" / "more").exists()
    pipeline().save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "more").exists()


def test_a_run_means_its_newest_checkpoint(tiny_run):
    assert find_checkpoint(tiny_run) == checkpoints(tiny_run)[-1]
    older = checkpoints(tiny_run)[0]
    assert find_checkpoint(older) == older
    pictures = Pipeline.from_pretrained(tiny_run).draw([3])
    assert np.array_equal(Pipeline.from_pretrained(checkpoints(tiny_run)[-1]).draw([3]), pictures)


def test_folders_without_a_checkpoint_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"there is no run or checkpoint folder .*nowhere"):
        Pipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither a checkpoint \(card.yaml is missing\) nor a run"):
        Pipeline.from_pretrained(tmp_path)


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        lines = b"".join(content.splitlines(keepends=True)[:2])
        damaged = {"empty": b"", "cut": content[: len(content) // 2], "two lines": lines, "noise": b"\x93\xff\x00"}
        path.write_bytes(damaged[damage])


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "two lines", "noise"])
@pytest.mark.parametrize("name", ["card.yaml", "model.safetensors"])
def test_a_damaged_checkpoint_is_one_line_that_names_the_file(name, damage, tmp_path):
    pipeline().save_pretrained(tmp_path / "saved")
    spoil(tmp_path / "saved" / name, damage)
    with pytest.raises(UserError, match=name) as caught:
        Pipeline.from_pretrained(tmp_path / "saved")
    assert str(tmp_path / "saved") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_card_of_another_network_names_the_key(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    card = load_yaml(tmp_path / "saved" / "card.yaml")
    card["model"]["width"] = 32
    (tmp_path / "saved" / "card.yaml").write_text(dump_yaml(card))
    with pytest.raises(
        UserError, match=r"'net\.patchify\.proj\.weight' has shape \(16, 4\); the network needs \(32, 4\)"
    ):
        Pipeline.from_pretrained(tmp_path / "saved")
