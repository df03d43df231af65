"""Autoencoders are found by folder or name, told apart by their weights, and written as stock diffusers reads them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ditwright.codec.base import codec_from, find_codec
from ditwright.codec.config import AutoencoderConfig, CodecConfig
from ditwright.codec.folder import CLASSES, FILES, WEIGHTS, _inverse
from ditwright.errors import UserError
from ditwright.files import seal

NAMES = ["kl", "kl16", "statistics", "tiny", "dc"]


@pytest.fixture
def folder(folders, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(folders["kl"], tmp_path / "copy"))


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_found(folders):
    kl, kl16, tiny, dc = (find_codec(str(folders[name])) for name in ("kl", "kl16", "tiny", "dc"))
    assert kl == CodecConfig("kl", 4, 4, (0.18215,), (0.0,), str(folders["kl"]), "", kl.fingerprint)
    assert (kl16.channels, kl16.scale, kl16.shift) == (16, (1.5305,), (0.0609,))
    assert (tiny.kind, tiny.channels, tiny.factor, tiny.scale, tiny.shift) == ("tiny", 4, 8, (1.0,), (0.0,))
    assert (dc.kind, dc.channels, dc.factor, dc.scale) == ("dc", 8, 2, (0.41407,))
    assert len({c.fingerprint for c in (kl, kl16, tiny, dc)}) == 4
    assert find_codec("pixels") == CodecConfig("pixels")


def test_statistics_by_channel_are_read(folders):
    found = find_codec(str(folders["statistics"]))
    assert found.shift == (0.1, -1.6, 0.4, -2.0)
    np.testing.assert_allclose(found.scale, [0.18215 / s for s in (8.4, 5.9, 5.1, 6.2)], rtol=1e-7)


@pytest.mark.parametrize("place", ["vae", "codec", "checkpoints/step-00000020"])
def test_it_may_lie_in_a_pipeline_or_a_run(place, folders, tmp_path):
    shutil.copytree(folders["kl"], tmp_path / "whole" / place)
    shutil.copytree(folders["kl16"], tmp_path / "whole" / "checkpoints" / "step-00000003")
    found = find_codec(str(tmp_path / "whole"))
    assert found == replace(find_codec(str(folders["kl"])), source=str(tmp_path / "whole" / place))


def test_the_fingerprint_is_of_the_weights_alone(folder):
    before = find_codec(str(folder))
    state = load_file(folder / WEIGHTS)
    change(folder, scaling_factor=2.0, sample_size=64)
    assert find_codec(str(folder)) == replace(before, scale=(2.0,))
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    assert find_codec(str(folder)).fingerprint == before.fingerprint
    (folder / "diffusion_pytorch_model.bin").unlink()
    save_file({name: t.double() for name, t in state.items()}, folder / FILES[2])
    assert find_codec(str(folder)).fingerprint == before.fingerprint
    state["decoder.conv_out.bias"][1] += 1e-6
    save_file(state, folder / WEIGHTS)
    assert find_codec(str(folder)).fingerprint != before.fingerprint


def test_attention_is_known_by_its_old_names(folder):
    """Stable Diffusion's first autoencoders spell it so."""
    before, state = find_codec(str(folder)), load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(state)
    for name in state:
        for new, former in old.items():
            if f".{new}." in name:
                renamed[name.replace(f".{new}.", f".{former}.")] = renamed.pop(name)
    assert len(renamed.keys() - state.keys()) == 16
    save_file(renamed, folder / WEIGHTS)
    assert find_codec(str(folder)) == before


@pytest.mark.parametrize("name", NAMES)
def test_written_and_found_again_it_is_the_same(name, folders, tmp_path, images):
    codec = codec_from(find_codec(str(folders[name])))
    codec.save(tmp_path)
    again = find_codec(str(tmp_path))
    assert again == replace(codec.config, source=str(tmp_path))
    assert torch.equal(codec_from(again).encode(images), codec.encode(images))
    before, after = (json.loads((f / "config.json").read_text()) for f in (folders[name], tmp_path))
    moved = {"scaling_factor", "latents_std"} if name == "statistics" else set()
    assert {key for key in before if before[key] != after[key]} == moved
    assert after.keys() == before.keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("one", [True, False], ids=["one", "by channel"])
def test_stock_diffusers_loads_what_was_written_with_another_scale(name, one, folders, tmp_path, caplog):
    import diffusers

    plain = find_codec(str(folders[name]))
    values = tuple(0.3 + i / 7 for i in range(plain.channels))
    codec = codec_from(replace(plain, scale=values[:1] if one else values, shift=values[1:2] if one else values))
    codec.to(dtype=torch.bfloat16).save(tmp_path)  # as float32 all the same
    net = getattr(diffusers, {kind: cls for cls, kind in CLASSES.items()}[plain.kind]).from_pretrained(tmp_path)
    found = find_codec(str(tmp_path))
    assert found.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(np.float32(found.scale), np.float32(codec.config.scale))
    np.testing.assert_array_equal(np.float32(found.shift), np.float32(codec.config.shift))
    if one:
        assert (net.config.scaling_factor, net.config["shift_factor"]) == (values[0], values[1])
        assert not net.config.get("latents_mean")
    else:
        torch.testing.assert_close(
            net.config.scaling_factor / torch.tensor(net.config["latents_std"]), torch.tensor(values)
        )
        assert net.config["latents_mean"] == list(values)
    theirs = net.state_dict()
    assert all(torch.equal(theirs[key], value) for key, value in load_file(tmp_path / WEIGHTS).items())
    if plain.kind == "kl":
        assert "not expected" not in caplog.text


@given(st.floats(1e-6, 1e6, width=64))
def test_a_standard_deviation_gives_its_scale_back(scale):
    assert np.float32(1 / _inverse(scale)) == np.float32(scale)


def test_what_is_written_over_a_sealed_folder_is_read(folders, folder):
    seal(folder)
    other = codec_from(find_codec(str(folders["kl"])))
    for tensor in other.net.parameters():
        tensor.data += 1
    other.save(folder)
    found = find_codec(str(folder))
    assert found.fingerprint not in (other.config.fingerprint, "")
    change(folder, scaling_factor=0.5)
    assert find_codec(str(folder)).scale == (0.5,)
    seal(folder)
    change(folder, scaling_factor=0.25)
    with pytest.raises(UserError, match=r"config\.json is damaged.*remove its checksums\.json"):
        find_codec(str(folder))


def test_changed_weights_are_refused(folder, images):
    config = find_codec(str(folder))
    state = load_file(folder / WEIGHTS)
    state["decoder.conv_out.bias"][1] += 1
    save_file(state, folder / WEIGHTS)
    with pytest.raises(UserError, match=rf"other weights .* than the one that made .*{config.fingerprint[:12]}"):
        codec_from(config).encode(images)


def emptied(folder):
    (folder / "config.json").unlink()


def unweighted(folder):
    (folder / WEIGHTS).unlink()


def truncated(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def pickled(folder):
    (folder / WEIGHTS).unlink()
    torch.save({"net": Path("x")}, folder / "diffusion_pytorch_model.bin")


def wrapped(folder):
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({"model": state}, folder / "diffusion_pytorch_model.bin")


def without(folder):
    state = load_file(folder / WEIGHTS)
    del state["encoder.conv_in.bias"]
    save_file(state, folder / WEIGHTS)


def scribbled(folder):
    (folder / "config.json").write_text("[1")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (emptied, r"copy' holds no autoencoder: config\.json is missing"),
        (unweighted, r"has no weights; looked for diffusion_pytorch_model\.safetensors"),
        (truncated, r"safetensors' is truncated"),
        (pickled, r"bin' cannot be read as plain weights"),
        (wrapped, r"bin' holds no state dict"),
        (without, r"does not fit its config\.json: .*lacks.*'encoder\.conv_in\.bias'"),
        (scribbled, r"config\.json' is not the configuration"),
        (lambda f: change(f, _class_name="AutoencoderKl"), "known: AutoencoderKL, .*did you mean 'AutoencoderKL'"),
        (lambda f: change(f, _class_name=None), "of the class None"),
        (lambda f: change(f, block_out_channels=[8, 8, 8]), "does not fit its config.json: .*shape"),
        (lambda f: change(f, norm_num_groups=3), "cannot build the AutoencoderKL"),
        (lambda f: change(f, scaling_factor=0.0, latents_mean=[0.0], latents_std=[1.0, 2.0]), "codec.scale"),
    ],
)
def test_a_spoilt_folder_is_refused_in_a_line(spoil, message, folder):
    spoil(folder)
    with pytest.raises(UserError, match=message) as refused:
        find_codec(str(folder))
    assert "\n" not in str(refused.value)


def test_names_that_are_neither_folders_nor_the_hubs(tmp_path):
    for name in ("nowhere", str(tmp_path / "a" / "b"), "a/b/c", ""):
        with pytest.raises(UserError, match="no codec folder"):
            find_codec(name)
    (tmp_path / "vae.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; name the folder"):
        find_codec(str(tmp_path / "vae.safetensors"))


def test_a_hub_name_offline_says_what_to_bring(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("An error happened.\nPlease check")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(
        UserError, match=r"'stabilityai/sd-vae-ft-ema' .*hf download stabilityai/sd-vae-ft-ema --local-dir DIR"
    ) as refused:
        find_codec("stabilityai/sd-vae-ft-ema")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("place", ["", "vae"])
def test_a_hub_name_is_pinned_to_its_commit(place, folders, tmp_path, monkeypatch, images):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    commit = tmp_path / "snapshots" / "abc123"
    shutil.copytree(folders["kl"], commit / place, dirs_exist_ok=True)
    (commit / "vae").mkdir(exist_ok=True)
    asked = []

    def download(name, file, *, revision):
        asked.append((name, file, revision))
        if not (commit / file).is_file():
            raise EntryNotFoundError(file)
        return str(commit / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = find_codec("owner/name")
    assert (found.source, found.revision) == ("owner/name", "abc123")
    assert {revision for *_, revision in asked[:2]} == {None}
    asked.clear()
    local = codec_from(find_codec(str(folders["kl"])))
    assert torch.equal(codec_from(found).encode(images), local.encode(images))
    assert {revision for *_, revision in asked} == {"abc123"}
    (commit / place / WEIGHTS).unlink()
    with pytest.raises(UserError, match="has no weights"):
        find_codec("owner/name")
    (commit / place / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no autoencoder"):
        find_codec("owner/name")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: CodecConfig("kl", 4, scale=(1.0, 2.0)), "one for each of 4"),
        (lambda: CodecConfig("kl", 4, shift=(float("nan"),)), "codec.shift"),
        (lambda: CodecConfig("kl", 4, scale=(0.0,)), "must not be 0"),
        (lambda: CodecConfig("pixels", 3, scale=(0.5,)), "pixels take no"),
        (lambda: CodecConfig("kl", 0), "at least 1"),
        (lambda: AutoencoderConfig(widths=()), "at least one width"),
        (lambda: AutoencoderConfig(layers=0), "at least 1"),
        (lambda: AutoencoderConfig(widths=(32, 60)), "divisible by model.groups 8"),
    ],
)
def test_configurations_that_make_no_sense(made, message):
    with pytest.raises(UserError, match=message):
        made()
