"""Whose a checkpoint is, and what a file tells beside its weights."""

import argparse
import json

import pytest
import torch
from checkpoints import flux, flux_stock, lightning, original, pixart, pixart_stock, same, sd3, sd3_stock, sit, stock
from safetensors.torch import save_file

from ditwright import convert
from ditwright.convert.load import detect
from ditwright.convert.source import source_of
from ditwright.diffusion.config import ProcessConfig, SampleConfig
from ditwright.diffusion.grid import shifted, uniform
from ditwright.errors import UserError
from ditwright.model.presets import PRESETS


def source(state, name="", **said):
    return source_of(state, name=name, said=said)


@pytest.mark.parametrize(
    ("state", "name", "said", "family"),
    [
        (original(), "DiT-XL-2-256x256.pt", {}, "dit"),
        (original(), "my_dit.safetensors", {}, "dit"),
        (sit(), "SiT-XL-2-256x256.pt", {}, "sit"),
        (original(), "0050000.pt", {"model": "DiT-XL/2", "lr": 1e-4}, "dit"),
        (sit(), "0050000.pt", {"model": "SiT-XL/2", "path_type": "Linear"}, "sit"),
        (original(), "from_sit.pt", {"model": "DiT-XL/2"}, "dit"),  # flags say more than a name
        (lightning(), "", {}, "lightningdit"),
        (lightning(rope=False, swiglu=False), "dit.pt", {}, "lightningdit"),
        (lightning(rope=False, rms=False), "dit.pt", {}, "lightningdit"),
        (lightning(swiglu=False, rms=False), "dit.pt", {}, "lightningdit"),
        (lightning(rope=False, swiglu=False, rms=False), "1.pt", {"transport": {}}, "lightningdit"),
        (stock(), "sit.bin", {}, "diffusers"),
        (flux(), "dit.pt", {}, "flux"),
        (flux_stock(), "sit.pt", {}, "flux-diffusers"),
        (pixart(), "dit.pt", {}, "pixart"),
        (pixart(sizes=False), "dit.pt", {"model": "PixArt_XL_2"}, "pixart"),
        (pixart_stock(), "sit.pt", {}, "pixart-diffusers"),
        (sd3(), "dit.pt", {}, "sd3"),
        (sd3_stock(), "sit.pt", {}, "sd3-diffusers"),
    ],
)
def test_keys_then_flags_then_the_name_tell_the_family(state, name, said, family):
    assert detect(source(state, name, **said)) == family


@pytest.mark.parametrize("name", ["", "model.pt", "dit_or_sit.pt"])
def test_between_dit_and_sit_nothing_is_guessed(name):
    with pytest.raises(UserError, match="same keys: pass family='dit' or family='sit'"):
        detect(source(original(), name))
    with pytest.raises(UserError, match="same keys"):
        convert.read(original(), heads=3)


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        ({"input_blocks.0.0.weight": torch.ones(1)}, "input_blocks"),
        ({"encoder.conv_in.weight": torch.ones(1), "decoder.conv_in.weight": torch.ones(1)}, "decoder.conv_in"),
        ({"x_embedder.proj.weight": torch.ones(1), "final_layer.linear.weight": torch.ones(1)}, "final_layer"),
    ],
)
def test_an_unknown_family_is_refused_with_the_known_ones_and_the_keys_seen(state, seen):
    with pytest.raises(UserError, match=rf"no known family \(dit, sit, lightningdit, diffusers, .*\): .*{seen}"):
        convert.read(state)


def test_our_own_weights_are_recognised():
    ours = convert.read(original(), family="dit", heads=3).state
    with pytest.raises(UserError, match=r"ditwright's own: Pipeline\.from_pretrained"):
        convert.read(ours)


def test_dit_is_sampled_as_its_own_script_does():
    portable = convert.read(original(side=16), family="dit", heads=3)
    assert portable.process == ProcessConfig("ddpm", "noise", learned_var=True)
    assert portable.sample == SampleConfig("ddpm", 250, guidance_scale=4.0, guidance_channels=3)
    assert portable.image_size == (256, 256)
    assert portable.codec == "stabilityai/sd-vae-ft-ema"
    assert portable.factor == 8


def test_sit_is_sampled_as_its_own_script_does():
    portable = convert.read(sit(side=32), family="sit", heads=3)
    assert portable.process == ProcessConfig("linear", "velocity", reversed_time=True)
    assert portable.sample == SampleConfig("euler", 250, guidance_scale=4.0, guidance_channels=3)
    assert portable.image_size == (512, 512)
    assert portable.codec == "stabilityai/sd-vae-ft-ema"


def test_the_size_is_unknown_without_positions_and_the_autoencoder_without_its_channels():
    state = original(channels=3, out=6)
    del state["pos_embed"]
    portable = convert.read(state, family="dit", heads=3)
    assert (portable.image_size, portable.codec, portable.sample.guidance_channels) == (None, "", None)


@pytest.mark.parametrize(
    ("flags", "process"),
    [
        ({"path_type": "Linear", "prediction": "velocity"}, ProcessConfig("linear", "velocity", reversed_time=True)),
        ({"path_type": "GVP"}, ProcessConfig("cosine", "velocity", reversed_time=True)),
        (
            {"path_type": "Linear", "prediction": "noise"},
            ProcessConfig("linear", "noise", reversed_time=True, span=(0.0, 0.999)),
        ),
        ({"path_type": "VP", "prediction": "score"}, ProcessConfig("vp", "score", reversed_time=True)),
    ],
)
def test_flags_of_sits_train_py_tell_its_process(flags, process, tmp_path):
    flags = argparse.Namespace(model="SiT-XL/2", vae="mse", num_classes=10, image_size=64, **flags)
    torch.save({"model": sit(seed=1), "ema": sit(), "opt": {}, "args": flags}, tmp_path / "0050000.pt")
    portable = convert.read(tmp_path / "0050000.pt", heads=3)
    assert portable.process == process
    assert same(portable.state, convert.read(sit(), family="sit", heads=3).state)
    assert portable.codec == "stabilityai/sd-vae-ft-mse"
    convert.load(tmp_path / "0050000.pt", heads=3)


def test_an_unknown_flag_is_refused(tmp_path):
    flags = argparse.Namespace(model="SiT-XL/2", path_type="Cubic")
    torch.save({"model": sit(), "args": flags}, tmp_path / "1.pt")
    with pytest.raises(UserError, match="unknown path_type 'Cubic'; known: GVP, Linear, VP"):
        convert.read(tmp_path / "1.pt", heads=3)


def test_a_network_trained_without_a_null_class_is_refused(tmp_path):
    torch.save({"model": original(classes=9), "args": argparse.Namespace(model="x", num_classes=10)}, tmp_path / "1.pt")
    with pytest.raises(UserError, match="10 classes and no null class"):
        convert.read(tmp_path / "1.pt", heads=3)


CONFIG = {  # as train.py of LightningDiT stores it
    "data": {"image_size": 64, "num_classes": 10},
    "vae": {"model_name": "vavae_f16d32", "downsample_ratio": 16},
    "model": {"model_type": "LightningDiT-XL/1", "use_rope": True},
    "transport": {"path_type": "GVP", "prediction": "velocity", "loss_weight": None, "sample_eps": None},
    "sample": {"num_sampling_steps": 50, "cfg_scale": 9.0, "cfg_interval_start": 0.25, "timestep_shift": 0},
}


def test_the_configuration_in_a_lightningdit_file_tells_its_process_and_size(tmp_path):
    torch.save({"model": lightning(seed=1), "ema": lightning(), "opt": {}, "config": CONFIG}, tmp_path / "1.pt")
    portable = convert.read(tmp_path / "1.pt", heads=3)
    assert portable.process == ProcessConfig("cosine", "velocity", reversed_time=True)
    assert (portable.image_size, portable.factor, portable.codec) == ((64, 64), 16, "")
    sample = SampleConfig("euler", 50, guidance_scale=9.0, guidance_interval=(0.0, 0.75), guidance_channels=3)
    assert portable.sample == sample
    assert portable.notes == ()
    assert same(portable.state, convert.read(lightning(), heads=3).state)


def test_a_bare_lightningdit_is_taken_for_the_released_one():
    portable = convert.read(lightning(), heads=3)
    assert portable.process == ProcessConfig("linear", "velocity", reversed_time=True)
    assert (portable.image_size, portable.factor) == ((64, 64), 16)
    sample = portable.sample
    assert (sample.sampler, sample.num_inference_steps, sample.guidance_channels) == ("euler", 250, 3)
    assert (sample.guidance_scale, sample.guidance_interval) == (6.7, (0.0, 0.875))
    assert portable.notes == ()
    ours, theirs = shifted(uniform(10), portable.sample.shift), 1 - uniform(10)
    torch.testing.assert_close(1 - ours, 0.3 * theirs / (1 + (0.3 - 1) * theirs))
    on_sd_latents = convert.read(lightning(channels=4), heads=3)
    assert (on_sd_latents.image_size, on_sd_latents.factor, on_sd_latents.notes) == ((32, 32), 8, ())


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({}, {"rope": (8, 8), "norm": "rms", "mlp": "swiglu", "mlp_ratio": 128 / 48, "qk_norm": False}),
        ({"rope": False}, {"rope": ()}),
        ({"swiglu": False}, {"mlp": "gelu", "mlp_ratio": 128 / 48}),
        ({"rms": False}, {"norm": "layer"}),
        ({"qk_norm": True}, {"qk_norm": True}),
    ],
    ids=str,
)
def test_the_options_of_lightningdit_are_told_by_its_keys(options, read):
    config = convert.read(lightning(**options), heads=3).model
    assert {name: getattr(config, name) for name in read} == read


def test_the_released_lightningdit_is_the_preset():
    """XL/1 with one block instead of 28."""
    state = lightning(width=1152, heads=16, depth=1, hidden=3072, classes=1000, side=16)
    model, preset = convert.read(state).model, PRESETS["LightningDiT-XL/1"]
    assert model.mlp_ratio == pytest.approx(preset.mlp_ratio)
    names = ("width", "heads", "patch", "channels", "out_channels", "num_classes", "rope", "norm", "mlp", "sincos")
    assert [getattr(model, name) for name in names] == [getattr(preset, name) for name in names]


def test_the_layer_norm_of_queries_and_keys_is_refused():
    state = lightning(rms=False, qk_norm=True) | {"blocks.0.attn.q_norm.bias": torch.zeros(16)}
    with pytest.raises(UserError, match="norms queries and keys by LayerNorm"):
        convert.read(state, heads=3)


def folder(path, state, **config):
    transformer = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 3, "sample_size": 8}
    (path / "transformer").mkdir(parents=True)
    (path / "transformer/config.json").write_text(json.dumps(transformer | config))
    save_file(state, path / "transformer/diffusion_pytorch_model.safetensors")
    return path


def test_a_folder_without_scheduler_is_sampled_as_the_published_pipeline(tmp_path):
    portable = convert.read(folder(tmp_path, stock()))
    assert portable.process == ProcessConfig("ddpm", "noise", learned_var=True)
    assert portable.sample == SampleConfig("ddim", 50, guidance_scale=4.0, timestep_spacing="leading")
    assert (portable.image_size, portable.codec, portable.class_names, portable.notes) == ((64, 64), "", (), ())
    assert (portable.model.mlp_norm_eps, portable.model.time_shift) == (1e-5, 1)


def test_class_names_come_from_the_index(tmp_path):
    path, names = folder(tmp_path, stock(classes=3)), {"0": "tench, Tinca tinca", "1": "crane", "2": "crane"}
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (path / "model_index.json").write_text(json.dumps(index | {"id2label": names}))
    assert convert.read(path).class_names == tuple(names.values())
    (path / "model_index.json").write_text(json.dumps(index | {"id2label": {"1": "crane"}}))
    portable = convert.read(path)
    assert portable.class_names == ()
    assert len(portable.notes) == 1
    assert "id2label" in portable.notes[0]


@pytest.mark.parametrize("part", ["vae", "scheduler", "transformer"])
def test_a_part_that_the_index_lists_must_be_there(part, tmp_path):
    path = folder(tmp_path, stock())
    if part == "transformer":
        (path / "transformer").rename(path / "elsewhere")
    (path / "model_index.json").write_text(json.dumps({part: ["diffusers", "Any"]}))
    with pytest.raises(UserError, match=rf"lacks {part}/.*json, which its model_index\.json lists"):
        convert.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "transformer/config.json").unlink(), "config.json is missing"),
        (lambda path: (path / "transformer/config.json").write_text("{"), "missing or damaged"),
        (lambda path: (path / "transformer/config.json").write_text("[]"), "must hold keys and values"),
        (lambda path: (path / "transformer/diffusion_pytorch_model.safetensors").unlink(), "lacks diffusion_pytorch"),
        (lambda path: (path / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b""), "truncated"),
    ],
)
def test_a_folder_with_a_missing_or_damaged_file_is_refused(change, message, tmp_path):
    path = folder(tmp_path, stock())
    change(path)
    with pytest.raises(UserError, match=message):
        convert.read(path)


def test_a_place_with_nothing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint file or folder .*absent"):
        convert.read(tmp_path / "absent")
    with pytest.raises(UserError, match="no folder of diffusers"):
        convert.read(tmp_path)
