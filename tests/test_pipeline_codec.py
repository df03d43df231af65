"""Where a pipeline's autoencoder is found, what goes with a checkpoint, and what is said where it is gone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditwright import convert
from ditwright.codec.base import codec_from, find_codec
from ditwright.convert import Portable
from ditwright.diffusion.config import ProcessConfig
from ditwright.errors import UserError
from ditwright.pipeline import Pipeline
from small_pipelines import autoencoder, latent_pipeline

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return autoencoder(tmp_path_factory.mktemp("vae") / "own")


@pytest.fixture(scope="module")
def pictures(vae):
    return latent_pipeline(vae).draw([0, 1], seed=3)


def test_latents_are_decoded_by_the_codec_with_its_scale(vae, pictures):
    pipe = latent_pipeline(vae)
    final = pipe([0, 1], seed=3, output_type="latent").images
    assert final.shape == (2, 4, 8, 8)
    stock = diffusers.AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        decoded = stock.decode(final / stock.config.scaling_factor).sample
    np.testing.assert_allclose(
        pipe([0, 1], seed=3, output_type="pt").images, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-6
    )
    assert pictures.shape == (2, 16, 16, 3)


def test_a_checkpoint_takes_its_codec_along(vae, pictures, tmp_path):
    moved = shutil.copytree(vae, tmp_path / "vae")
    latent_pipeline(moved).save_pretrained(tmp_path / "saved")
    shutil.rmtree(moved)
    shutil.move(tmp_path / "saved", tmp_path / "elsewhere")
    assert sorted(p.name for p in (tmp_path / "elsewhere" / "codec").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    again = Pipeline.from_pretrained(tmp_path / "elsewhere")
    assert str(moved) not in (tmp_path / "elsewhere" / "card.yaml").read_text()  # no path of this machine
    assert str(moved) not in (tmp_path / "elsewhere" / "README.md").read_text()
    again.save_pretrained(tmp_path / "named", with_codec=False)
    assert np.array_equal(Pipeline.from_pretrained(tmp_path / "named").draw([0, 1], seed=3), pictures)
    assert np.array_equal(again.draw([0, 1], seed=3), pictures)
    diffusers.AutoencoderKL.from_pretrained(tmp_path / "elsewhere" / "codec")


def test_a_checkpoint_may_only_name_its_codec(vae, pictures, tmp_path):
    latent_pipeline(vae).save_pretrained(tmp_path / "saved", with_codec=False)
    assert not (tmp_path / "saved" / "codec").exists()
    assert np.array_equal(Pipeline.from_pretrained(tmp_path / "saved").draw([0, 1], seed=3), pictures)


def test_a_codec_that_is_gone_is_named_before_any_work_and_latents_do_without(vae, tmp_path):
    moved = shutil.copytree(vae, tmp_path / "vae")
    latent_pipeline(moved).save_pretrained(tmp_path / "saved", with_codec=False)
    shutil.rmtree(moved)
    pipe = Pipeline.from_pretrained(tmp_path / "saved")
    assert pipe([0], output_type="latent").images.shape == (1, 4, 8, 8)
    assert len(list(pipe.steps([0]))) == 3
    steps = []

    def work():
        yield lambda: pipe([0], callback_on_step_end=lambda *given: steps.append(given))
        yield lambda: pipe.draw([0], progress=steps.append)
        yield lambda: next(pipe.frames([0]))

    for draw in work():
        with pytest.raises(UserError, match=f"{moved}.*codec=.*'latent'") as caught:
            draw()
        assert "\n" not in str(caught.value)
    assert steps == []


@pytest.mark.parametrize("part", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_half_a_codec_is_one_line_that_names_it(part, vae, tmp_path):
    latent_pipeline(vae).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "codec" / part).unlink()
    with pytest.raises(UserError, match=part) as caught:
        Pipeline.from_pretrained(tmp_path / "saved").draw([0])
    assert str(tmp_path / "saved" / "codec") in str(caught.value)


def test_other_weights_in_the_place_of_the_codec_are_refused(vae, tmp_path):
    latent_pipeline(vae).save_pretrained(tmp_path / "saved")
    autoencoder(tmp_path / "saved" / "codec", seed=1)
    with pytest.raises(UserError, match="other weights"):
        Pipeline.from_pretrained(tmp_path / "saved").draw([0])


def test_another_codec_may_take_its_place_but_not_its_scale(vae, pictures, tmp_path):
    latent_pipeline(vae).save_pretrained(tmp_path / "saved")
    same = Pipeline.from_pretrained(tmp_path / "saved", codec=str(autoencoder(tmp_path / "same", scale=7.0)))
    assert same.card.codec.scale == (0.5,)
    assert np.array_equal(same.draw([0, 1], seed=3), pictures)
    other = Pipeline.from_pretrained(tmp_path / "saved", codec=str(autoencoder(tmp_path / "other", seed=1)))
    assert not np.array_equal(other.draw([0, 1], seed=3), pictures)
    with pytest.raises(UserError, match="has 8 channels and factor 2; the network needs 4 and 2"):
        Pipeline.from_pretrained(tmp_path / "saved", codec=str(autoencoder(tmp_path / "wide", channels=8)))
    with pytest.raises(UserError, match="nowhere"):
        Pipeline.from_pretrained(tmp_path / "saved", codec=str(tmp_path / "nowhere"))


def test_previews_may_be_of_a_smaller_codec(vae, tmp_path):
    pipe, small = latent_pipeline(vae), codec_from(find_codec(str(autoencoder(tmp_path / "small", seed=2))))
    ours, theirs = (list(pipe.frames([0], codec=codec)) for codec in (None, small))
    assert [frame.t for frame in ours] == [frame.t for frame in theirs]
    assert theirs[-1].images.shape == (1, 16, 16, 3)
    assert not np.array_equal(ours[-1].images, theirs[-1].images)


def test_moving_the_pipeline_moves_the_codec(vae):
    pipe = latent_pipeline(vae).to(torch.bfloat16)
    assert pipe.codec.ready().net.dtype == torch.bfloat16
    array = pipe([0], output_type="np").images
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1


# weights of other projects


@pytest.fixture(scope="module")
def original(vae, tmp_path_factory):
    """A file as the original SiT writes it."""
    pipe = latent_pipeline(vae)
    state = {key.removeprefix("net."): tensor for key, tensor in pipe.denoiser.state_dict().items()}
    portable = Portable(pipe.card.model, ProcessConfig(reversed_time=True), state, image_size=(64, 64))
    path = tmp_path_factory.mktemp("original") / "SiT-tiny.pt"
    convert.write(portable, path, to="sit")
    return path


def test_a_foreign_file_draws_latents_at_once_and_pictures_with_its_codec(original, vae):
    settings = {"num_inference_steps": 2, "sampler": "euler", "seed": 1}
    pipe = Pipeline.from_pretrained(original, family="sit", heads=2)
    final = pipe([1], output_type="latent", **settings).images
    assert final.shape == (1, 4, 8, 8)
    whole = Pipeline.from_pretrained(original, family="sit", heads=2, codec=str(vae))
    assert torch.equal(whole([1], output_type="latent", **settings).images, final)
    assert whole([1], **settings).images[0].size == (16, 16)


def test_a_foreign_file_becomes_a_checkpoint(original, vae, tmp_path):
    pipe = Pipeline.from_pretrained(original, family="sit", heads=2, codec=str(vae))
    pipe.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert again.card.process == pipe.card.process
    drawn = [p.draw([2], num_inference_steps=2) for p in (pipe, again)]
    assert np.array_equal(*drawn)


def test_a_codec_of_other_channels_is_refused(original, tmp_path):
    with pytest.raises(UserError, match="has 8 channels; the network takes 4"):
        Pipeline.from_pretrained(original, family="sit", heads=2, codec=str(autoencoder(tmp_path / "w", channels=8)))


@pytest.mark.parametrize("argument", [{"family": "dit"}, {"heads": 2}])
def test_what_is_for_foreign_weights_is_refused_for_ours(argument, vae, tmp_path):
    latent_pipeline(vae).save_pretrained(tmp_path / "saved", with_codec=False)
    with pytest.raises(UserError, match="family and heads are for weights of other projects"):
        Pipeline.from_pretrained(tmp_path / "saved", **argument)


def test_the_file_of_a_checkpoints_weights_is_that_checkpoint(vae, tmp_path):
    pipe = latent_pipeline(vae)
    pipe.save_pretrained(tmp_path / "saved", with_codec=False)
    assert Pipeline.from_pretrained(tmp_path / "saved" / "model.safetensors").card == pipe.card
    assert str(vae) in (tmp_path / "saved" / "README.md").read_text()


def test_a_file_of_no_known_family_lists_them(tmp_path):
    save_file({"unet.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"no known family.*dit, sit, lightningdit, diffusers.*unet\.weight"):
        Pipeline.from_pretrained(tmp_path / "x.safetensors")


def test_a_tiny_autoencoder_in_its_place_sees_latents_as_the_network_does(vae, tmp_path):
    """It was trained on scaled latents: another scale on top would be one too many."""
    latent_pipeline(vae).save_pretrained(tmp_path / "saved")
    torch.manual_seed(0)
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    diffusers.AutoencoderTiny(latent_channels=4, **sizes, **blocks).save_pretrained(tmp_path / "tiny")
    pipe = Pipeline.from_pretrained(tmp_path / "saved", codec=str(tmp_path / "tiny"))
    latents = pipe([0], seed=3, output_type="latent").images
    stock = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "tiny")
    with torch.no_grad():
        decoded = (stock.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    np.testing.assert_allclose(pipe([0], seed=3, output_type="pt").images, decoded, rtol=0, atol=1e-6)
