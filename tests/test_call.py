"""The call speaks diffusers: its arguments, its randomness, its callbacks, its outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditwright.diffusion.path import coeffs_like
from ditwright.diffusion.sampler import SAMPLERS
from ditwright.errors import UserError
from ditwright.rng import Draws
from small_pipelines import pipeline

SHAPE = (3, 1, 8, 8)


def latents(pipe, labels=(0, 1, 2), **settings):
    return pipe(labels, output_type="latent", **settings).images


def test_every_output_shows_the_same_pictures():
    pipe = pipeline()
    final, pt, array, pil = (pipe([0, 1, 2], seed=5, output_type=kind).images for kind in ("latent", "pt", "np", "pil"))
    assert final.shape == pt.shape == SHAPE
    assert final.dtype == pt.dtype == torch.float32
    assert torch.equal(pt, (final / 2 + 0.5).clamp(0, 1))
    assert (array.shape, array.dtype) == ((3, 8, 8, 1), np.float32)
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert [(picture.mode, picture.size) for picture in pil] == [("L", (8, 8))] * 3
    eight_bits = np.stack([np.asarray(picture) for picture in pil])[..., None]
    assert np.array_equal(eight_bits, pipe.draw([0, 1, 2], seed=5))
    assert np.abs(eight_bits / 255 - array).max() <= 0.5 / 255 + 1e-6


def test_pictures_come_as_an_object_or_a_tuple():
    pipe = pipeline()
    (alone,) = pipe([0], output_type="np", return_dict=False)
    assert np.array_equal(alone, pipe([0], output_type="np").images)
    assert np.array_equal(alone, pipe([0], output_type="np")[0])
    assert pipe([0]).images[0].size == (8, 8)  # pil unless told


def test_the_seed_is_0_unless_given():
    pipe = pipeline()
    assert torch.equal(latents(pipe), latents(pipe, seed=0))
    assert not torch.equal(latents(pipe), latents(pipe, seed=1))


def test_pictures_of_one_label_stand_beside_each_other():
    pipe = pipeline()
    assert torch.equal(latents(pipe, [2, 0], num_images_per_prompt=3), latents(pipe, [2, 2, 2, 0, 0, 0]))


@pytest.mark.parametrize("given", [2, "two", np.int64(2), np.array([2]), torch.tensor([2]), torch.tensor(2), (2,)])
def test_labels_in_any_clothes(given):
    pipe = pipeline()
    assert torch.equal(latents(pipe, given), latents(pipe, [2]))


def test_a_name_may_be_any_of_its_synonyms():
    pipe = pipeline(names=("tench, Tinca tinca", "goldfish, tench", "0"))
    assert pipe.labels(["tench", "Tinca tinca", "goldfish", "goldfish, tench", "0", 0]) == [0, 0, 1, 1, 2, 0]


def test_without_classes_there_is_nothing_to_say():
    pipe = pipeline(classes=0)
    assert latents(pipe, None).shape == (1, 1, 8, 8)
    assert latents(pipe, None, num_images_per_prompt=4).shape == (4, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"class_labels": []}, "^nothing to sample: give a prompt or a class label for each picture"),
        ({"num_images_per_prompt": 0}, "^num_images_per_prompt must be at least 1; got 0"),
        ({"num_images_per_prompt": 1.5}, "^num_images_per_prompt must be a whole number; got 1.5"),
        ({"class_labels": 3.5}, "^give one prompt or class label, or a list of them; got 3.5"),
        ({"height": 8.0}, "^height must be a whole number; got 8.0"),
        ({"width": "8"}, "^width must be a whole number; got '8'"),
        ({"class_labels": None}, "class label None is not known"),
        ({"output_type": "pill"}, r"unknown output type 'pill'; known: latent, np, pil, pt \(did you mean 'pil'\?\)"),
        ({"generator": torch.Generator(), "seed": 1}, "a generator or a seed, not both"),
        ({"generator": 7}, r"torch.Generator or a list of them"),
        ({"generator": [torch.Generator()] * 2}, "one for each of 3 pictures; got 2"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"latents": torch.zeros(2, 1, 8, 8)}, r"latents must have the shape \(3, 1, 8, 8\); got \(2, 1, 8, 8\)"),
        ({"latents": torch.zeros(3, 1, 8, 7)}, "size 8x7 is not divisible"),
        ({"latents": torch.zeros(3, 64)}, r"latents must have the shape"),
        ({"height": 7}, "size 7x8 is not divisible by 2x2"),
        ({"guidance": 2.0}, "unknown setting 'guidance'.*did you mean 'guidance_"),
        ({"num_inference_steps": "many"}, "num_inference_steps must be a whole number; got 'many'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"timestep_spacing": "leading"}, "timestep_spacing 'leading' is for the tables of ddpm paths"),
        ({"callback_on_step_end_tensor_inputs": ("latent",)}, r"unknown callback tensor 'latent'.*'latents'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, said):
    with pytest.raises(UserError, match=said):
        pipeline()(**{"class_labels": [0, 1, 2], "callback_on_step_end": lambda *given: {}, **arguments})


def test_a_setting_of_none_is_the_checkpoints_own_where_none_is_no_value():
    pipe = pipeline()
    none = dict.fromkeys(("num_inference_steps", "guidance_scale", "guidance_interval", "sampler", "batch_size"))
    assert torch.equal(latents(pipe, **none, height=None, width=None, generator=None), latents(pipe))


def test_sizes_and_counts_may_be_of_numpy_or_torch():
    how = {"height": np.int64(4), "width": torch.tensor(12), "num_images_per_prompt": np.int32(2)}
    assert torch.equal(latents(pipeline(), [1], **how), latents(pipeline(), [1, 1], height=4, width=12))


def test_numbers_of_numpy_are_numbers():
    pipe = pipeline()
    same = latents(pipe, num_inference_steps=np.int64(3), guidance_scale=np.float32(2), guidance_interval=[0.0, 1.0])
    assert torch.equal(same, latents(pipe, num_inference_steps=3))


@pytest.mark.parametrize("size", [(4, 12), (16, 2)])
def test_height_and_width_are_pixels(size):
    assert latents(pipeline(), height=size[0], width=size[1]).shape == (3, 1, *size)
    assert latents(pipeline(), height=size[0]).shape == (3, 1, size[0], 8)


# randomness


def test_one_generator_draws_once_for_all():
    pipe, seen = pipeline(), []
    latents(pipe, generator=torch.Generator().manual_seed(3), **spying(pipe, seen))
    assert torch.equal(seen[0], torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))


def test_a_list_of_generators_draws_one_picture_each():
    pipe, seen = pipeline(), []
    latents(pipe, generator=[torch.Generator().manual_seed(i) for i in range(3)], **spying(pipe, seen))
    alone = [torch.randn(1, *SHAPE[1:], generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert torch.equal(seen[0], torch.cat(alone))


def test_numbers_are_drawn_in_the_networks_own_type():
    pipe, seen = pipeline().to(torch.bfloat16), []
    latents(pipe, generator=torch.Generator().manual_seed(3), **spying(pipe, seen))
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.bfloat16)
    assert torch.equal(seen[0], drawn.float())


@pytest.mark.parametrize("sampler", ["sde", "ddpm", "heun"])
def test_generators_serve_stochastic_samplers_in_any_batch(sampler):
    pipe = pipeline()
    one, split = (
        latents(pipe, sampler=sampler, generator=torch.Generator().manual_seed(3), batch_size=size) for size in (64, 2)
    )
    assert torch.equal(one, split)
    listed = latents(pipe, sampler=sampler, generator=[torch.Generator().manual_seed(i) for i in range(3)])
    alone = [latents(pipe, [i], sampler=sampler, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert torch.equal(listed, torch.cat(alone))


def test_a_generator_moves_on():
    pipe, generator = pipeline(), torch.Generator().manual_seed(3)
    assert not torch.equal(latents(pipe, generator=generator), latents(pipe, generator=generator))


def test_given_latents_take_the_place_of_drawn_ones_and_stay_as_they_are():
    pipe = pipeline()
    x = Draws(5, range(3), "sample").normal(torch.empty(SHAPE))
    before = x.clone()
    assert torch.equal(latents(pipe, latents=x), latents(pipe, seed=5))
    assert torch.equal(latents(pipe, latents=x, sampler="sde", seed=5, callback_on_step_end=zeros), torch.zeros(SHAPE))
    assert torch.equal(x, before)
    wide = torch.randn(3, 1, 4, 12, generator=torch.Generator().manual_seed(0))
    assert latents(pipe, latents=wide).shape == wide.shape


def test_latents_are_unit_noise_on_every_path():
    pipe, seen = pipeline("karras"), []
    latents(pipe, latents=torch.ones(SHAPE), sampler="heun", **spying(pipe, seen))
    assert seen[0].unique().tolist() == [80.0]


# callbacks


def zeros(pipe, i, t, tensors):
    return {"latents": torch.zeros_like(tensors["latents"])}


def spying(pipe, seen):
    """Settings under which `seen` gets every noisy batch that the network is asked about."""
    forward = type(pipe.denoiser).forward

    def spied(denoiser, x_t, *rest, **net):
        seen.append(x_t[:3].clone())
        return forward(denoiser, x_t, *rest, **net)

    pipe.denoiser.forward = spied.__get__(pipe.denoiser)
    return {"guidance_scale": 1.0}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_goes_on_from_what_the_callback_returns(sampler):
    """Each step's first question to the network is about the latents that the callback gave back."""
    pipe, seen, given, first = pipeline(), [], [], []
    pictures = [torch.full(SHAPE, 0.1 * i) for i in range(4)]

    def callback(pipe, i, t, tensors):
        first.append(len(seen))
        given.append(pictures[i])
        return {"latents": pictures[i]}

    out = latents(pipe, sampler=sampler, num_inference_steps=4, callback_on_step_end=callback, **spying(pipe, seen))
    assert torch.equal(out, pictures[-1])
    assert all(torch.equal(seen[place], after) for place, after in zip(first[:-1], given[:-1], strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_callback_that_only_looks_changes_nothing(sampler):
    def look(pipe, i, t, tensors):
        assert tensors.keys() == {"latents", "x0"}
        return tensors if i % 2 else {"latents": tensors["latents"].clone()}

    pipe, shown = pipeline(), ("latents", "x0")
    looked = latents(pipe, sampler=sampler, callback_on_step_end=look, callback_on_step_end_tensor_inputs=shown)
    assert torch.equal(looked, latents(pipe, sampler=sampler))


def test_the_preview_is_of_the_clean_sample():
    """Over a step of ddim the preview and the noise that it leaves stay what they are."""
    pipe, seen = pipeline(), []
    settings = {"sampler": "ddim", "num_inference_steps": 5}
    final = latents(
        pipe,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append((tensors["latents"].clone(), tensors["x0"])),
        callback_on_step_end_tensor_inputs=("x0", "latents"),
        **settings,
    )
    path, times = pipe.denoiser.process.path, pipe.plan(pipe.settings(settings)).times
    for i in range(1, 5):
        (before, _), (after, x0) = seen[i - 1 : i + 1]
        ct, cs = (coeffs_like(path, t, x0) for t in times[i : i + 2])
        torch.testing.assert_close(after, cs.alpha * x0 + cs.sigma * (before - ct.alpha * x0) / ct.sigma)
    assert torch.equal(seen[-1][0], final)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_a_callback_is_called_once_a_step_with_every_sample(size):
    calls = []

    def callback(pipe, i, t, tensors):
        calls.append((i, tensors["latents"].shape))
        return tensors

    latents(pipeline(), batch_size=size, num_inference_steps=3, callback_on_step_end=callback)
    assert calls == [(i, SHAPE) for i in range(3)]


@pytest.mark.parametrize(
    ("process", "settings", "told"),
    [
        ("ddpm", {"timestep_spacing": "leading", "num_inference_steps": 4}, [750, 500, 250, 0]),
        ("ddpm", {"timestep_spacing": "leading", "steps_offset": 1, "num_inference_steps": 2}, [501, 1]),
        ("ddpm", {"timestep_spacing": "trailing", "num_inference_steps": 4}, [999, 749, 499, 249]),
        ("flow", {"sampler": "heun", "num_inference_steps": 4}, [1000.0, 750.0, 500.0, 250.0]),
    ],
)
def test_a_callback_is_told_the_time_as_the_network_is(process, settings, told):
    heard = []
    latents(pipeline(process), **settings, callback_on_step_end=lambda pipe, i, t, tensors: heard.append(t.item()))
    assert heard == told
    assert all(type(t) is type(told[0]) for t in heard)


def test_a_callback_may_not_change_the_shape():
    with pytest.raises(UserError, match=r"must keep the shape \(3, 1, 8, 8\); got \(1, 1, 8, 8\)"):
        latents(pipeline(), callback_on_step_end=lambda pipe, i, t, tensors: {"latents": torch.zeros(1, 1, 8, 8)})


# devices and types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("process", ["flow", "ddpm", "karras"])
def test_a_half_precision_network_serves_a_sampler_in_full_precision(dtype, process):
    pipe, narrow = pipeline(process), pipeline(process).to("cpu", dtype)
    assert {p.dtype for p in narrow.denoiser.parameters()} == {dtype}
    assert narrow.dtype == dtype
    wide, out = (latents(p, seed=2, sampler="heun", guidance_scale=1.0) for p in (pipe, narrow))
    assert out.dtype == torch.float32
    assert 0 < (out - wide).abs().max() < 0.05 * wide.abs().max()


def test_to_moves_and_returns_the_pipeline():
    pipe = pipeline()
    assert pipe.to(dtype=torch.float64) is pipe
    assert pipe.dtype == torch.float64
    assert pipe.to(torch.float32).to("cpu").dtype == torch.float32
    assert pipe.device == torch.device("cpu")
