"""Whole text-to-image pipelines that stock diffusers saves draw the same here, text encoders and all, in one call."""

from __future__ import annotations

import shutil

import pytest
import torch

from ditwright.cli.main import main
from ditwright.errors import UserError
from ditwright.pipeline import Pipeline
from small_published import flux, pixart, sd3

diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of stock's solver
PROMPTS = ["a small red circle", " A large GREEN square right of a tree "]
SIDE = {"height": 16, "width": 24}
MAKE = {
    "sd3": (sd3, {}),
    "sd3 without t5": (sd3, {"with_t5": False}),
    "flux dev": (flux, {}),
    "flux schnell": (flux, {"guidance": False}),
    "pixart alpha": (pixart, {}),
    "pixart sigma": (pixart, {"name": "PixArtSigmaPipeline"}),
    "pixart ddim": (pixart, {"scheduler": "DDIMScheduler"}),
}
THEIRS = {"flux schnell": {"max_sequence_length": 256, "guidance_scale": 0.0}}  # as its card says
ALIKE = {"sd3": {"guidance_scale": 4.5}, "flux": {}, "pixart": {"use_resolution_binning": False}}
TEXTS = {
    "sd3": ("sd3", 77, 256, (), False),
    "sd3 without t5": ("sd3", 77, 256, ("t5",), False),
    "flux dev": ("flux", 77, 512, (), False),
    "flux schnell": ("flux", 77, 256, (), False),
    "pixart alpha": ("t5", 120, 256, (), True),
    "pixart sigma": ("t5", 300, 256, (), True),
    "pixart ddim": ("t5", 120, 256, (), True),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(name) is stock's pipeline and the folder that it saved."""
    made = {}

    def of(name):
        if name not in made:
            scratch, (make, options) = tmp_path_factory.mktemp("published"), MAKE[name]
            stock = make(diffusers, transformers, scratch / "tokenizers", **options)
            stock.save_pretrained(scratch / "pipeline")
            made[name] = stock, scratch / "pipeline"
        return made[name]

    return of


def drawn(name, stock, **more):
    """What stock draws: latents (N, C, h, w)."""
    settings = ALIKE[name.split()[0]] | THEIRS.get(name, {}) | SIDE | more
    latents = stock(num_inference_steps=4, output_type="latent", **settings).images
    if not name.startswith("flux"):
        return latents
    return stock._unpack_latents(latents, SIDE["height"], SIDE["width"], stock.vae_scale_factor)


def agree(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("name", MAKE)
def test_one_call_draws_the_same(name, saved):
    stock, folder = saved(name)
    pipe = Pipeline.from_pretrained(folder)
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    theirs = drawn(name, stock, prompt=PROMPTS, generator=seeds)
    for seed, generator in zip((3, 4), seeds, strict=True):
        generator.manual_seed(seed)
    ours = pipe(PROMPTS, num_inference_steps=4, output_type="latent", generator=seeds, **SIDE).images
    agree(ours, theirs)
    other = pipe(PROMPTS[::-1], num_inference_steps=4, output_type="latent", seed=0, **SIDE).images
    same = pipe(PROMPTS, num_inference_steps=4, output_type="latent", seed=0, **SIDE).images
    assert (other - same).abs().max() > 0.01  # prompts are heard


@pytest.mark.parametrize("name", MAKE)
def test_the_text_encoders_are_those_of_the_folder(name, saved):
    text = Pipeline.from_pretrained(saved(name)[1]).card.text
    assert (text.kind, text.length, text.t5_length, text.drop, text.lower) == TEXTS[name]
    assert text.source == str(saved(name)[1])
    assert text.masked == (text.kind == "t5")


@pytest.mark.parametrize("name", ["sd3", "flux dev", "pixart alpha"])
def test_pictures_are_the_same(name, saved):
    stock, folder = saved(name)
    settings = ALIKE[name.split()[0]] | SIDE | {"num_inference_steps": 2, "output_type": "np"}
    theirs = stock(PROMPTS[0], generator=torch.Generator().manual_seed(0), **settings).images
    settings.pop("use_resolution_binning", None)
    ours = Pipeline.from_pretrained(folder)(PROMPTS[0], generator=torch.Generator().manual_seed(0), **settings).images
    assert theirs.std() > 0.01
    assert abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("name", ["sd3", "sd3 without t5", "pixart alpha", "pixart sigma"])
def test_negative_prompts_turn_the_same_way(name, saved):
    stock, folder = saved(name)
    pipe, latents = Pipeline.from_pretrained(folder), torch.randn(2, 4, 8, 12, generator=torch.Generator())
    negative = ["a blue cross", "a tree"]
    theirs = drawn(name, stock, prompt=PROMPTS, negative_prompt=negative, latents=latents.clone(), guidance_scale=3.0)
    settings = {"num_inference_steps": 4, "output_type": "latent", "latents": latents, "guidance_scale": 3.0}
    agree(pipe(PROMPTS, negative_prompt=negative, **settings).images, theirs)
    assert (pipe(PROMPTS, **settings).images - theirs).abs().max() > 0.01


def stock_embeds(name, stock):
    """What stock's own encoders give, by the names of a call."""
    with torch.no_grad():
        if name == "sd3":
            text, null, pooled, no_pooled = stock.encode_prompt(PROMPTS, None, None, negative_prompt=["", "a tree"])
            told = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": no_pooled}
            return {"prompt_embeds": text, "negative_prompt_embeds": null} | told
        if name == "flux dev":
            text, pooled, _ = stock.encode_prompt(PROMPTS)
            return {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
        text, mask, null, no_mask = stock.encode_prompt(PROMPTS, negative_prompt=["", "a tree"])
    told = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": no_mask, "negative_prompt": None}
    return {"prompt_embeds": text, "negative_prompt_embeds": null} | told


@pytest.mark.parametrize("name", ["sd3", "flux dev", "pixart alpha"])
def test_what_stock_encoded_is_heard_without_any_text_encoder(name, saved, tmp_path):
    stock, folder = saved(name)
    for part in ("transformer", "vae", "scheduler"):
        shutil.copytree(folder / part, tmp_path / part)
    shutil.copy(folder / "model_index.json", tmp_path)
    embeds = stock_embeds(name, stock)
    twice = {key: None if x is None else x.repeat_interleave(2, 0) for key, x in embeds.items()}
    theirs = drawn(name, stock, generator=torch.Generator().manual_seed(1), **twice)
    pipe, settings = Pipeline.from_pretrained(tmp_path), SIDE | {"num_inference_steps": 4, "output_type": "latent"}
    more = embeds | {"num_images_per_prompt": 2, "generator": torch.Generator().manual_seed(1)}
    agree(pipe(**settings, **more).images, theirs)
    ours = Pipeline.from_pretrained(folder).encode_prompt(PROMPTS, "" if name == "flux dev" else ["", "a tree"])
    for key, value in embeds.items():
        if value is None:
            continue
        torch.testing.assert_close(ours[key].float(), value.float(), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"text_encoder.*from_pretrained takes another place as encoder=") as refused:
        pipe(PROMPTS, **settings)
    assert "\n" not in str(refused.value)
    elsewhere = Pipeline.from_pretrained(tmp_path, encoder=str(folder))
    same, there = (p(PROMPTS, seed=0, **settings).images for p in (elsewhere, Pipeline.from_pretrained(folder)))
    assert torch.equal(same, there)


@pytest.mark.parametrize("name", ["sd3 without t5", "flux schnell", "pixart sigma"])
def test_the_command_line_takes_the_folder(name, saved, tmp_path, capsys):
    words = ["--size", "16", "16", "--num-inference-steps", "2", "--output", str(tmp_path)]
    assert main(["sample", str(saved(name)[1]), "--prompt", "a red circle", *words]) == 0
    said = capsys.readouterr()
    assert "1 pictures and grid.png" in said.out
    assert "error" not in said.err


def test_a_saved_copy_keeps_its_text_encoders_place(saved, tmp_path):
    folder, settings = saved("sd3")[1], {"seed": 0, "num_inference_steps": 2, "output_type": "latent"}
    pipe = Pipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "ours")
    again = Pipeline.from_pretrained(tmp_path / "ours")
    assert again.card.text == pipe.card.text
    assert torch.equal(again("a tree", **settings).images, pipe("a tree", **settings).images)


def test_of_a_hub_name_the_text_encoders_are_the_hubs(saved, tmp_path, monkeypatch):
    hub, asked = pytest.importorskip("huggingface_hub"), []
    snapshot = tmp_path / "snapshots" / "abc123"
    shutil.copytree(saved("flux schnell")[1], snapshot)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or snapshot)
    pipe = Pipeline.from_pretrained("someone/flux")
    assert (pipe.card.text.source, pipe.card.text.revision) == ("someone/flux", "abc123")
    assert len(asked) == 1
    pipe("a tree", height=16, width=16, num_inference_steps=1, output_type="latent")
    assert asked[1][0] == "someone/flux"
    wanted = {"text_encoder_2/model*.safetensors", "tokenizer_2/*.model", "tokenizer/*.txt", "text_encoder/*.json"}
    assert wanted <= set(asked[1][1]["allow_patterns"])
