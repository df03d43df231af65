"""What stock diffusers' pipelines are told besides a prompt: further ones, lengths, true guidance, PixArt's sizes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright import convert
from ditwright.cli.main import main
from ditwright.convert.bins import SIDES, bins, nearest
from ditwright.pipeline import Pipeline
from small_encoders import t5
from small_published import T5_MARKS, flux, quiet, redrawn, sd3, tokenizer, vae

diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of stock's solver
PROMPTS = ["a small red circle", "a large green square right of a tree"]
OTHERS = {"prompt_2": ["a blue cross", "a tree"], "negative_prompt": ["", "a red square"]}
OTHERS |= {"negative_prompt_2": ["a small tree", "a circle"], "max_sequence_length": 24}
MORE = {
    "sd3": OTHERS
    | {"prompt_3": ["a square", "a large cross"], "negative_prompt_3": ["red", "blue"], "guidance_scale": 3.0},
    "flux": OTHERS | {"true_cfg_scale": 2.5, "guidance_scale": 1.7},
}
DRAWN = {"height": 16, "width": 24, "num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved("sd3") is stock's pipeline and ours of the folder that it saved."""
    made = {}

    def of(name):
        if name not in made:
            scratch = tmp_path_factory.mktemp("words")
            stock = {"sd3": sd3, "flux": flux}[name](diffusers, transformers, scratch / "tokenizers")
            stock.save_pretrained(scratch / "pipeline")
            made[name] = stock, Pipeline.from_pretrained(scratch / "pipeline")
        return made[name]

    return of


def drawn(pipe, stock=False, **told):
    """Latents (2, C, h, w) of one seed."""
    images = pipe(PROMPTS, generator=torch.Generator().manual_seed(0), **DRAWN, **told).images
    return pipe._unpack_latents(images, 16, 24, pipe.vae_scale_factor) if stock and images.ndim == 3 else images


def agree(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("name", MORE)
def test_everything_that_is_said_is_heard_as_there(name, saved):
    stock, pipe = saved(name)
    told = MORE[name]
    ours = drawn(pipe, **told)
    agree(ours, drawn(stock, stock=True, **told))
    for left in told.keys() - {"max_sequence_length", "true_cfg_scale"}:  # a length moves little
        if (left, name) == ("negative_prompt", "flux"):
            continue  # without one diffusers does not guide at all
        rest = {key: value for key, value in told.items() if key != left}
        assert (drawn(pipe, **rest) - ours).abs().max() > 1e-3, left


def test_true_guidance_is_asked_for_by_a_negative_prompt_and_a_scale(saved):
    stock, pipe = saved("flux")
    plain = drawn(pipe)
    agree(plain, drawn(stock, stock=True))
    with pytest.warns(UserWarning, match="^true_cfg_scale has no effect without a negative_prompt"):
        assert torch.equal(drawn(pipe, true_cfg_scale=2.5), plain)
    agree(plain, drawn(stock, stock=True, true_cfg_scale=2.5))
    agree(plain, drawn(stock, stock=True, negative_prompt=["", ""]))
    turned = drawn(pipe, negative_prompt="", true_cfg_scale=2.5)  # given, though empty
    agree(turned, drawn(stock, stock=True, negative_prompt=["", ""], true_cfg_scale=2.5))
    assert (turned - plain).abs().max() > 0.01
    embeds = pipe.encode_prompt(PROMPTS, ["a", "b"])
    away = {name: x for name, x in embeds.items() if name.startswith("negative_")}
    agree(
        drawn(pipe, **away, true_cfg_scale=2.5),
        drawn(stock, stock=True, negative_prompt=["a", "b"], true_cfg_scale=2.5),
    )


@pytest.mark.parametrize("length", [5, 24, 80])
def test_a_length_is_of_t5_and_cuts_where_theirs_does(saved, length):
    stock, pipe = saved("flux")
    with torch.no_grad():
        text, pooled, _ = stock.encode_prompt(PROMPTS, ["a tree", PROMPTS[1]], max_sequence_length=length)
    if length == 5:
        with pytest.warns(UserWarning, match="the prompt was cut after 5 tokens by text_encoder_2"):
            found = pipe.encode_prompt(PROMPTS, prompt_2=["a tree", PROMPTS[1]], max_sequence_length=length)
    else:
        found = pipe.encode_prompt(PROMPTS, prompt_2=["a tree", PROMPTS[1]], max_sequence_length=length)
    assert found["prompt_embeds"].shape == (2, length, 40)
    torch.testing.assert_close(found["prompt_embeds"], text, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["pooled_prompt_embeds"], pooled, rtol=0, atol=1e-6)


def test_the_command_line_says_all_of_it_too(saved, tmp_path, capsys):
    _, pipe = saved("flux")
    told = {"prompt": ["a circle", "a tree"], "prompt_2": ["red"], "negative_prompt": "a cross"}
    told |= {"negative_prompt_2": "blue", "max_sequence_length": 24, "true_cfg_scale": 2.5}
    words = [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = [str(part) for word in words for part in (word if isinstance(word, list) else [word])]
    how = ["--size", "16", "24", "--num-inference-steps", "2", "--output", str(tmp_path)]
    assert main(["sample", pipe.card.text.source, *words, *how]) == 0
    assert capsys.readouterr().err == ""
    wanted = pipe(**told, seed=0, height=16, width=24, num_inference_steps=2).images
    for i in range(2):
        with Image.open(tmp_path / f"seed0-0000{i}.png") as opened:
            assert np.array_equal(np.asarray(opened), np.asarray(wanted[i]))
            facts = json.loads(opened.text["parameters"])
        assert (facts["prompt"], facts["negative_prompt"]) == ([told["prompt"][i], "red"], [["a cross", "blue"]])
        assert (facts["max_sequence_length"], facts["true_cfg_scale"]) == (24, 2.5)
    alone = ["--prompt", "a circle", "--true-cfg-scale", "2.5", *how]
    assert main(["sample", pipe.card.text.source, *alone]) == 0
    assert "note: --true-cfg-scale has no effect without a --negative-prompt" in capsys.readouterr().err
    assert main(["sample", pipe.card.text.source, "--prompt", "a", "--prompt-3", "b", *how]) == 2
    assert "a FLUX pipeline has 2 text encoders" in capsys.readouterr().err


# PixArt's sizes.


def tables():
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma

    small = {side: getattr(alpha, f"ASPECT_RATIO_{side}_BIN") for side in SIDES[:3]}
    return small | {2048: sigma.ASPECT_RATIO_2048_BIN}


@pytest.mark.parametrize("side", SIDES)
def test_the_sizes_are_theirs(side):
    theirs = tables()[side]
    assert bins(side) == tuple((int(height), int(width)) for height, width in theirs.values())
    assert [round(height / width, 2) for height, width in bins(side)] == [float(ratio) for ratio in theirs]
    classify = diffusers.image_processor.PixArtImageProcessor.classify_height_width_bin
    for height in range(1, 2 * side, max(1, side // 29)):
        for width in range(1, 2 * side, max(1, side // 31)):
            assert nearest(height, width, side) == classify(height, width, theirs)


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    """Stock's PixArt of 256 pixels, eight of them per latent along a side, and ours of it."""
    scratch = tmp_path_factory.mktemp("pixart")
    net = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=1,
        sample_size=32,
        in_channels=4,
        out_channels=8,
        caption_channels=40,
        cross_attention_dim=48,
        use_additional_conditions=False,
        interpolation_scale=0.5,
    )
    torch.manual_seed(7)
    eight = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.5,
    ).eval()
    stock = diffusers.PixArtAlphaPipeline(
        transformer=redrawn(net, 0),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02),
        vae=eight,
        text_encoder=redrawn(t5(transformers), 1),
        tokenizer=tokenizer(transformers, T5_MARKS, scratch / "1"),
    )
    quiet(stock).save_pretrained(scratch / "pipeline")
    return stock, Pipeline.from_pretrained(scratch / "pipeline")


@pytest.mark.parametrize(
    ("size", "drawn_at"), [((200, 300), (208, 304)), ((300, 100), (432, 144)), ((256, 256), (256, 256))]
)
def test_pictures_of_any_size_are_drawn_at_a_trained_one_and_resized(size, drawn_at, pixart):
    stock, pipe = pixart
    assert pipe.card.sample.use_resolution_binning
    told = {"height": size[0], "width": size[1], "num_inference_steps": 2}

    def both(kind, **more):
        return (
            made(PROMPTS[0], generator=torch.Generator().manual_seed(0), output_type=kind, **told, **more).images
            for made in (pipe, stock)
        )

    agree(*both("latent"))
    ours, theirs = both("np")
    assert ours.shape == (1, *size, 3)
    assert theirs.std() > 0.01
    assert abs(ours - theirs).max() < 1e-4
    latents = next(both("latent"))
    assert tuple(8 * side for side in latents.shape[2:]) == drawn_at
    if all(side % 16 == 0 for side in size):
        agree(*both("latent", use_resolution_binning=False))


def test_an_autoencoder_of_another_factor_makes_other_sides(pixart, tmp_path):
    vae(diffusers, 4).save_pretrained(tmp_path / "vae")
    pipe = Pipeline.from_pretrained(pixart[1].card.text.source, codec=str(tmp_path / "vae"))
    assert (pipe.card.image_size, pipe.card.sample.use_resolution_binning) == ((64, 64), False)
    assert pipe(PROMPTS[0], height=32, width=48, num_inference_steps=1).images[0].size == (48, 32)


def test_a_network_of_another_side_is_drawn_at_any_size(tmp_path):
    shape = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 1, "cross_attention_dim": 48}
    shape |= {"caption_channels": 40, "use_additional_conditions": False}
    for side, told in ((24, False), (32, True)):
        net = diffusers.PixArtTransformer2DModel(sample_size=side, **shape)
        net.save_pretrained(tmp_path / str(side) / "transformer")
        assert convert.read(tmp_path / str(side)).sample.use_resolution_binning == told
