"""Whole pipelines that stock diffusers saves draw the same pictures here: one folder, one generator, one array."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from ditwright.errors import UserError
from ditwright.pipeline import Pipeline

diffusers = pytest.importorskip("diffusers")

LABELS = [3, 7, 999]
NOISE = {"beta_start": 1e-4, "beta_end": 0.02}
SCHEDULES = [  # the largest difference seen over 1, 4, 7, 30, 50 and 600 steps was 6.3e-5, in pictures of 0 ... 1
    {"clip_sample": False},
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 2.0, "timestep_spacing": "trailing"},
    {"clip_sample": False, "timestep_spacing": "trailing", "set_alpha_to_one": False},
    {"clip_sample": False, "timestep_spacing": "linspace"},
    {"clip_sample": False, "steps_offset": 1},
    {"clip_sample": True, "steps_offset": 1, "set_alpha_to_one": False},
    {"clip_sample": False, "set_alpha_to_one": False},
]


def stock(*, out_channels=8, **schedule):
    """A DiTPipeline as diffusers makes it, small, its embedders copied as in every published one."""
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=out_channels,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).eval()
    first = net.transformer_blocks[0].norm1.emb
    for block in net.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first.state_dict())
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.5,
    ).eval()
    pipe = diffusers.DiTPipeline(net, vae, diffusers.DDIMScheduler(**NOISE, **schedule))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both(theirs, ours, *, seed=5, labels=LABELS, **settings):
    """The same call of two pipelines."""
    for pipe in (theirs, ours):
        generator = (
            [torch.Generator().manual_seed(s) for s in seed]
            if isinstance(seed, list)
            else torch.Generator().manual_seed(seed)
        )
        yield pipe(labels, generator=generator, **settings).images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stock") / "pipeline"
    stock().save_pretrained(path)
    index = json.loads((path / "model_index.json").read_text())
    names = {"id2label": {str(i): f"class {i}, number {i}" for i in range(1000)}}
    (path / "model_index.json").write_text(json.dumps(index | names))
    return path


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_same_generator_draws_the_same_pictures(schedule, tmp_path):
    theirs = stock(**schedule)
    theirs.save_pretrained(tmp_path)
    ours = Pipeline.from_pretrained(tmp_path)
    for steps in (1, 7, 20):
        want, got = both(theirs, ours, num_inference_steps=steps, guidance_scale=4.0, output_type="np")
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert want.std() > 0.1


@pytest.mark.parametrize("settings", [{"guidance_scale": 1.0}, {"seed": [1, 2, 3]}, {"labels": [5]}, {"seed": [4]}])
def test_other_calls_too(settings, folder):
    theirs = diffusers.DiTPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    want, got = both(theirs, Pipeline.from_pretrained(folder), num_inference_steps=6, output_type="np", **settings)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_a_network_without_variance(tmp_path):
    theirs = stock(out_channels=4)
    theirs.save_pretrained(tmp_path)
    want, got = both(theirs, Pipeline.from_pretrained(tmp_path), num_inference_steps=6, output_type="np")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_guidance_steps_and_pictures_are_theirs_by_default(folder):
    theirs, ours = diffusers.DiTPipeline.from_pretrained(folder), Pipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    want, got = both(theirs, ours, labels=[3])
    assert type(got) is type(want)
    assert np.abs(np.asarray(got[0], dtype=int) - np.asarray(want[0], dtype=int)).max() <= 1


def test_tensors_are_theirs(folder):
    theirs, ours = diffusers.DiTPipeline.from_pretrained(folder), Pipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    want, got = both(theirs, ours, num_inference_steps=3, output_type="pt")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_their_names_are_ours(folder):
    theirs, ours = diffusers.DiTPipeline.from_pretrained(folder), Pipeline.from_pretrained(folder)
    names = ["class 12", "number 7"]
    assert ours.labels(names) == theirs.get_label_ids(names) == [12, 7]


def test_a_half_precision_pipeline_starts_from_the_same_noise(folder):
    """Ours keeps the sampler's state in full precision, so pictures agree only as far as bfloat16 carries."""
    theirs = diffusers.DiTPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    theirs.set_progress_bar_config(disable=True)
    ours = Pipeline.from_pretrained(folder, dtype=torch.bfloat16)
    want, got = both(theirs, ours, num_inference_steps=4, guidance_scale=1.0, output_type="np")
    other = ours(LABELS, generator=torch.Generator().manual_seed(6), num_inference_steps=4, output_type="np").images
    assert np.abs(got - want).mean() < 0.2 * np.abs(other - want).mean()


def test_what_was_theirs_is_a_checkpoint_of_ours(folder, tmp_path):
    pipe = Pipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "ours")
    again = Pipeline.from_pretrained(tmp_path / "ours")
    assert again.card.sample == pipe.card.sample
    assert again.card.class_names == pipe.card.class_names
    one, other = (
        p(LABELS, generator=torch.Generator().manual_seed(1), num_inference_steps=3, output_type="pt").images
        for p in (pipe, again)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("vae", "lacks vae/config.json"),
        ("transformer", "lacks transformer/config.json"),
        ("scheduler", "lacks scheduler/scheduler_config.json"),
        ("transformer/diffusion_pytorch_model.safetensors", "lacks diffusion_pytorch_model.safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", "vae.* has no weights"),
    ],
)
def test_a_missing_part_is_named(part, said, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
    with pytest.raises(UserError, match=said) as caught:
        Pipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_without_an_autoencoder_there_are_latents(folder, tmp_path):
    shutil.copytree(folder / "transformer", tmp_path / "transformer")
    pipe = Pipeline.from_pretrained(tmp_path / "transformer")
    final = pipe([3], num_inference_steps=2, output_type="latent", height=64, width=64).images
    assert final.shape == (1, 4, 8, 8)
    with pytest.raises(UserError, match="codec"):
        pipe([3], num_inference_steps=2, height=64, width=64)
    whole = Pipeline.from_pretrained(tmp_path / "transformer", codec=str(folder))
    assert whole([3], num_inference_steps=2, height=16, width=16).images[0].size == (16, 16)


def test_what_is_not_followed_is_said(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "scheduler" / "scheduler_config.json").read_text())
    config["_class_name"] = "DPMSolverMultistepScheduler"
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="DPMSolverMultistepScheduler"):
        pipe = Pipeline.from_pretrained(copy)
    assert pipe.card.sample.sampler == "dpmpp_2m"
