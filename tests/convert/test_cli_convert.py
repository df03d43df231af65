"""ditwright convert."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import lightning, original, pixart, same, sit
from safetensors.torch import load_file

from ditwright import Pipeline, convert
from ditwright.cli.convert import KINDS
from ditwright.cli.main import main
from ditwright.codec.config import CodecConfig
from ditwright.config import read_yaml
from ditwright.pipeline import Card

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A tiny autoencoder of four channels; two levels, so a latent is two pixels wide."""
    torch.manual_seed(0)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    net = diffusers.AutoencoderKL(**kinds, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4)
    folder = tmp_path_factory.mktemp("vae")
    net.register_to_config(scaling_factor=0.5)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stock(vae, tmp_path_factory):
    """A pipeline of stock diffusers, of 1000 classes."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "out_channels": 8}
    net = diffusers.DiTTransformer2DModel(**sizes)
    net.transformer_blocks[1].norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(transformer=net, vae=diffusers.AutoencoderKL.from_pretrained(vae), scheduler=scheduler)
    folder = tmp_path_factory.mktemp("stock") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


def run(*words):
    return main(["convert", *map(str, words)])


def refused(capsys, *words):
    """The one line that a refusal prints."""
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def test_from_stock_to_us_and_back_to_the_bit(stock, vae, tmp_path, capsys):
    assert run(stock, tmp_path / "ours", "--to", "ditwright") == 0
    assert run(tmp_path / "ours", tmp_path / "back", "--to", "diffusers") == 0
    assert "note" not in capsys.readouterr().out
    assert same(load_file(tmp_path / "back" / WEIGHTS), load_file(stock / WEIGHTS))
    name = "vae/diffusion_pytorch_model.safetensors"
    assert same(load_file(tmp_path / "back" / name), load_file(stock / name))
    assert read_yaml(Card, tmp_path / "ours/card.yaml").image_size == (16, 16)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_same_picture_here_and_in_stock_diffusers(stock, scale, tmp_path):
    run(stock, tmp_path / "ours", "--to", "ditwright")
    run(tmp_path / "ours", tmp_path / "back", "--to", "diffusers")
    theirs = diffusers.DiTPipeline.from_pretrained(tmp_path / "back")
    theirs.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "guidance_scale": scale, "output_type": "np"}
    ours = Pipeline.from_pretrained(tmp_path / "ours")([3, 7], generator=torch.Generator().manual_seed(1), **settings)
    want = theirs([3, 7], generator=torch.Generator().manual_seed(1), **settings)
    assert want.images.std() > 0.01
    np.testing.assert_allclose(np.asarray(ours.images), want.images, atol=1e-4)


def test_the_originals_layout_there_and_back(vae, tmp_path, capsys):
    torch.save(original(), tmp_path / "DiT.pt")
    options = ("--heads", 3, "--codec", vae)
    assert run(tmp_path / "DiT.pt", tmp_path / "ours", "--to", "ditwright", *options) == 0
    assert run(tmp_path / "ours", tmp_path / "back.safetensors", "--to", "dit") == 0
    assert same(load_file(tmp_path / "back.safetensors"), original())
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"{tmp_path}/DiT.pt as ditwright: {tmp_path}/ours",
        f"{tmp_path}/ours as dit: {tmp_path}/back.safetensors",
    ]


def test_an_export_tells_what_stock_computes_differently(vae, tmp_path, capsys):
    torch.save(original(), tmp_path / "dit.pt")
    assert run(tmp_path / "dit.pt", tmp_path / "out", "--to", "diffusers", "--heads", 3, "--codec", vae) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 3
    assert "the code of diffusers spreads the time's frequencies over 127 steps, not 128: its prediction" in notes[0]
    assert "10 classes" in notes[1]
    assert diffusers.DiTPipeline.from_pretrained(tmp_path / "out").vae.config.scaling_factor == 0.5


def test_padded_classes_are_guided_in_stock_as_here(vae, tmp_path, capsys):
    torch.save(original(), tmp_path / "dit.pt")
    portable = convert.read(tmp_path / "dit.pt", heads=3)
    portable = replace(portable, model=replace(portable.model, time_shift=1, mlp_norm_eps=1e-5))
    convert.write(portable, tmp_path / "ten", to="diffusers", also=lambda f: (f / "vae").mkdir())
    assert run(tmp_path / "ten", tmp_path / "out", "--to", "diffusers", "--codec", vae, "--pad-classes") == 0
    assert "class 1000" not in capsys.readouterr().out
    theirs = diffusers.DiTPipeline.from_pretrained(tmp_path / "out")
    theirs.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"}
    want = theirs([3, 7], generator=torch.Generator().manual_seed(1), **settings).images
    ours = Pipeline.from_pretrained(tmp_path / "ten", codec=str(vae))
    got = ours([3, 7], height=16, width=16, generator=torch.Generator().manual_seed(1), **settings).images
    np.testing.assert_allclose(np.asarray(got), want, atol=1e-4)


@pytest.mark.parametrize(("to", "state"), [("sit", sit()), ("lightningdit", lightning(channels=4))])
def test_reversed_time_there_and_back(to, state, tmp_path):
    torch.save(state, tmp_path / f"{to}.pt")
    assert run(tmp_path / f"{to}.pt", tmp_path / "ours", "--to", "ditwright", "--heads", 3, "--codec", "none") == 0
    assert run(tmp_path / "ours", tmp_path / "back.pt", "--to", to) == 0
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), state)


def test_the_family_may_be_told(tmp_path, capsys):
    torch.save(original(), tmp_path / "0050000.pt")
    options = ("--to", "ditwright", "--heads", 3, "--codec", "none")
    assert "pass family='dit' or family='sit'" in refused(capsys, tmp_path / "0050000.pt", tmp_path / "out", *options)
    assert run(tmp_path / "0050000.pt", tmp_path / "out", *options, "--family", "sit") == 0
    assert read_yaml(Card, tmp_path / "out/card.yaml").process.reversed_time


def test_a_run_becomes_a_file_where_its_process_allows(tiny_run, tmp_path, capsys):
    """The digits recipe counts time its own way: no conversion changes what a network was told in training."""
    assert "sit needs process.reversed_time = True" in refused(capsys, tiny_run, tmp_path / "out.pt", "--to", "sit")
    assert "dit needs process.path = 'ddpm'" in refused(capsys, tiny_run, tmp_path / "out.pt", "--to", "dit")
    assert list(tmp_path.iterdir()) == []
    assert run(tiny_run, tmp_path / "checkpoint", "--to", "ditwright") == 0
    assert read_yaml(Card, tmp_path / "checkpoint/card.yaml").codec == CodecConfig("pixels", channels=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "dit2"], "unknown family 'dit2'; known: diffusers, dit, ditwright, flux,"),
        ([], "the following arguments are required: --to"),
        (["--to", "sit"], r"sit is written to a .pt or .safetensors file"),
        (["--to", "dit", "--pad-classes"], "--pad-classes is for --to diffusers"),
        (["--to", "ditwright", "--heads", "many"], "invalid int value: 'many'"),
    ],
)
def test_words_that_do_not_fit_are_refused(words, message, tmp_path, capsys):
    assert message in refused(capsys, tmp_path / "in.pt", tmp_path / "out", *words)


@pytest.mark.parametrize("to", ["ditwright", "dit", "diffusers"])
def test_what_lies_at_the_place_stays(to, tmp_path, capsys):
    torch.save(original(), tmp_path / "dit.pt")
    out = tmp_path / ("out.pt" if to == "dit" else "out")
    if to == "dit":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "mine").write_text("precious")
    options = ("--to", to, "--heads", 3, "--codec", "none")
    assert "choose another place" in refused(capsys, tmp_path / "dit.pt", out, *options)
    assert (out if to == "dit" else out / "mine").read_text() == "precious"


def test_an_autoencoder_that_is_not_there_is_refused_with_the_way_round(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.save(original(), tmp_path / "dit.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        line = refused(capsys, tmp_path / "dit.pt", tmp_path / "out", "--to", "diffusers", "--heads", 3)
    assert "sd-vae-ft-ema" in line
    assert "--codec none leaves it out" in line
    assert [path.name for path in tmp_path.iterdir()] == ["dit.pt"]
    assert run(tmp_path / "dit.pt", tmp_path / "out", "--to", "diffusers", "--heads", 3, "--codec", "none") == 0
    assert "there is no autoencoder" in capsys.readouterr().out


def test_text_networks_go_there_and_back(tmp_path, capsys):
    """PixArt's null caption, which no network holds, comes along."""
    state = pixart(width=144, sizes=False) | {"y_embedder.y_embedding": torch.randn(6, 20)}
    torch.save({"state_dict": state}, tmp_path / "PixArt.pth")
    options = ("--to", "pixart", "--codec", "none", "--heads", "2")
    assert run(tmp_path / "PixArt.pth", tmp_path / "again.safetensors", *options) == 0
    assert same(load_file(tmp_path / "again.safetensors"), state)
    capsys.readouterr()
    said = refused(capsys, tmp_path / "PixArt.pth", tmp_path / "sd3.safetensors", *options[2:], "--to", "sd3")
    assert "sd3" in said


def test_every_family_can_be_asked_for():
    assert set(KINDS) == {"ditwright", *convert.FAMILIES}
