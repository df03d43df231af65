"""Pictures that are drawn at a size of PixArt's and then brought to the one that was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright.cli.main import main
from ditwright.errors import UserError
from ditwright.pipeline import Pipeline
from ditwright.pipeline.output import fitted
from small_pipelines import pipeline

SIZES = [(16, 16), (200, 300), (300, 200), (131, 512), (77, 78), (1000, 30)]


@pytest.fixture
def pipe():
    """Of 256 x 256 pixels, in patches of 16."""
    made = pipeline(patch=(16, 16))
    return Pipeline(made.denoiser, replace(made.card, image_size=(256, 256)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [(208, 304), (256, 256), (128, 512), (17, 19)])
def test_what_is_resized_and_cropped_is_diffusers(size, side):
    diffusers = pytest.importorskip("diffusers")
    x = torch.rand(2, 3, *side, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    theirs = diffusers.image_processor.PixArtImageProcessor.resize_and_crop_tensor(x, size[1], size[0])
    found = fitted(x, size)
    assert found.shape == (2, 3, *size)
    assert torch.equal(found, theirs)


def test_no_row_is_lost_where_a_ratio_is_rounded_down():
    lost = [(side, want) for side in (144, 176, 208, 304) for want in range(1, 900) if int(side * (want / side)) < want]
    assert lost
    for side, want in lost:
        assert fitted(torch.zeros(1, 1, side, 16), (want, 1)).shape[2:] == (want, 1)


def test_what_is_asked_for_comes_out_and_another_size_is_drawn(pipe):
    asked = {"height": 200, "width": 300, "use_resolution_binning": True, "num_inference_steps": 2}
    assert pipe([1, 2], output_type="latent", **asked).images.shape == (2, 1, 208, 304)
    found = {kind: pipe([1, 2], output_type=kind, **asked).images for kind in ("pt", "np", "pil")}
    at = {"height": 208, "width": 304, "num_inference_steps": 2}
    whole = pipe([1, 2], output_type="latent", **at).images
    assert torch.equal(found["pt"], (fitted(whole, (200, 300)) / 2 + 0.5).clamp(0, 1))
    assert found["np"].shape == (2, 200, 300, 1)
    assert [picture.size for picture in found["pil"]] == [(300, 200)] * 2
    how = {"size": (200, 300), "use_resolution_binning": True, "num_inference_steps": 2}
    images = pipe.draw([1, 2], **how)
    assert np.array_equal(images, np.stack([np.asarray(picture) for picture in found["pil"]])[..., None])
    *_, last = pipe.frames([1, 2], **how)
    assert np.array_equal(last.images, images)
    assert last.clean.shape == images.shape
    assert [step.x.shape for step in pipe.steps([1, 2], **how)] == [(2, 1, 208, 304)] * 2


def test_without_it_or_at_such_a_size_nothing_is_resized(pipe):
    size = {"height": 208, "width": 304}
    plain, binned = (pipe([1], output_type="pt", **size, use_resolution_binning=on).images for on in (False, True))
    assert torch.equal(plain, binned)
    assert torch.equal(pipe([1], output_type="pt").images, pipe([1], output_type="pt", use_resolution_binning=True)[0])
    with pytest.raises(UserError, match="picture size 200x300 is not divisible by 16x16"):
        pipe([1], height=200, width=300, use_resolution_binning=False)


def test_a_checkpoint_may_say_so(pipe, tmp_path):
    """As those of PixArt do; None is as it says."""
    own = replace(pipe.card.sample, use_resolution_binning=True)
    Pipeline(pipe.denoiser, replace(pipe.card, sample=own)).save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path)
    for told in ({}, {"use_resolution_binning": None}):
        assert again([1], height=200, width=300, output_type="pt", **told).images.shape == (1, 1, 200, 300)
    with pytest.raises(UserError, match="is not divisible"):
        again([1], height=200, width=300, use_resolution_binning=False)
    words = ["--class-labels", "1", "--size", "200", "300", "--film-strip", "2", "--output", str(tmp_path / "out")]
    assert main(["sample", str(tmp_path), *words]) == 0
    with Image.open(tmp_path / "out" / "seed0-00000-class1.png") as opened:
        assert np.array_equal(np.asarray(opened)[..., None], again.draw([1], size=(200, 300))[0])


def test_given_latents_are_of_some_size_already(pipe):
    latents = torch.randn(1, 1, 160, 48, generator=torch.Generator().manual_seed(0))
    kept = pipe([1], latents=latents, output_type="pt", use_resolution_binning=True).images
    assert torch.equal(kept, pipe([1], latents=latents, output_type="pt").images)
    told = {"height": 250, "width": 390, "use_resolution_binning": True, "output_type": "pt"}
    latents = torch.randn(1, 1, 208, 304, generator=torch.Generator().manual_seed(0))
    assert pipe([1], latents=latents, **told).images.shape == (1, 1, 250, 390)
    with pytest.raises(UserError, match=r"latents must have the shape \(1, 1, 208, 304\)"):
        pipe([1], latents=latents[..., :16], **told)


@pytest.mark.parametrize("size", [None, (8, 8), (256, 512), (300, 300)])
def test_a_network_of_another_side_has_no_such_sizes(size, pipe):
    card = replace(pipe.card, image_size=size)
    with pytest.raises(UserError, match="use_resolution_binning is for networks of 256, 512, 1024, 2048 pixels") as no:
        Pipeline(pipe.denoiser, card)([1], height=256, width=256, use_resolution_binning=True)
    assert "\n" not in str(no.value)
    with pytest.raises(UserError, match="height and width must be at least 1; got 0 and 300"):
        pipe([1], height=0, width=300, use_resolution_binning=True)
