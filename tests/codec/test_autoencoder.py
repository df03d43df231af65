"""Codecs compute what the diffusers classes do; scale and shift are applied once, whoever shares them."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ditwright.codec.autoencoder import Autoencoder
from ditwright.codec.base import codec_from, completed, find_codec
from ditwright.codec.config import CodecConfig
from ditwright.codec.pixels import to_float, to_uint8
from ditwright.config import from_dict, to_dict
from ditwright.errors import UserError
from ditwright.rng import Draws

NAMES = ["kl", "kl16", "statistics", "tiny", "dc"]
FACTORS = {"kl": 4, "kl16": 4, "statistics": 4, "tiny": 8, "dc": 2}


def codec_of(folders, name):
    return codec_from(find_codec(str(folders[name])))


def pixels(images):
    return to_float(torch.from_numpy(images).permute(0, 3, 1, 2))


def alone(net, x):
    """One picture at a time, it and the network laid out as ours are on a CPU."""
    torch.nn.Module.to(net, memory_format=torch.channels_last)
    return (part.to(net.dtype, memory_format=torch.channels_last) for part in x.split(1))


def raw(net, x):
    """What stock diffusers encodes."""
    with torch.no_grad():
        parts = [net.encode(part) for part in alone(net, x)]
    if hasattr(parts[0], "latent_dist"):
        return torch.cat([part.latent_dist.parameters for part in parts])
    return torch.cat([part.latents if hasattr(part, "latents") else part.latent for part in parts])


def stock_decode(net, latents):
    """As StableDiffusion3Pipeline and StableDiffusionXLPipeline undo the scale."""
    factor, shift = net.config.get("scaling_factor"), net.config.get("shift_factor") or 0.0
    mean, std = net.config.get("latents_mean"), net.config.get("latents_std")
    if mean:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        z = latents * std / factor + mean
    else:
        z = latents / factor + shift
    with torch.no_grad():
        return torch.cat([net.decode(part).sample.float() for part in alone(net, z)])


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_the_ones_of_diffusers(name, folders, make, images):
    codec = codec_of(folders, name)
    moments = codec.moments(images)
    assert moments.dtype == torch.float32
    assert torch.equal(moments, raw(make(name), pixels(images)))
    channels, factor = codec.config.channels, codec.config.factor
    assert factor == FACTORS[name]
    assert moments.shape == (3, channels * (2 if codec.config.kind == "kl" else 1), 32 // factor, 48 // factor)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_is_that_of_diffusers(name, folders, make):
    codec, net = codec_of(folders, name), make(name)
    latents = torch.randn(2, codec.config.channels, 6, 8)
    theirs, ours = to_uint8(stock_decode(net, latents)), codec.decode(latents)
    assert ours.shape == (2, 6 * codec.config.factor, 8 * codec.config.factor, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= (name == "statistics")  # there the order of products differs


@pytest.mark.parametrize("name", ["kl", "kl16"])
def test_a_drawn_latent_is_the_sample_of_diffusers_scaled_as_its_trainers_scale_it(name, folders, make, images):
    codec, net = codec_of(folders, name), make(name)
    with torch.no_grad():
        posterior = net.encode(pixels(images[:1])).latent_dist
    sample = posterior.sample(torch.Generator().manual_seed(3))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    expected = (sample - (net.config.shift_factor or 0.0)) * net.config.scaling_factor
    assert torch.equal(codec.encode(images[:1], lambda like: noise), expected)
    assert not torch.equal(codec.encode(images[:1]), expected)
    assert torch.equal(
        codec.encode(images[:1]), (posterior.mode() - (net.config.shift_factor or 0.0)) * net.config.scaling_factor
    )


@pytest.mark.parametrize("logvar", [-1e4, 1e4])
def test_log_variances_are_clamped_as_in_diffusers(logvar, folders):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    codec = codec_of(folders, "kl")
    moments = torch.cat((torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), logvar)), 1)
    std = DiagonalGaussianDistribution(moments).std
    drawn = codec.latents(moments, torch.ones_like)
    assert torch.equal(drawn, std * codec.config.scale[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_is_applied_once_each_way(name, folders, make, images):
    """Decoding undoes what `latents` does, and any other scale cancels out."""
    plain, net = codec_of(folders, name), make(name)
    moments = plain.moments(images)
    with torch.no_grad():
        whole = torch.cat([net.decode(z).sample for z in moments[:, : plain.config.channels].split(1)])
    spread = tuple(0.5 + 0.25 * i for i in range(plain.config.channels))
    for changes in ({}, {"scale": (4.0,), "shift": (0.5,)}, {"scale": spread, "shift": spread}):
        codec = codec_from(replace(plain.config, **changes))
        latents = codec.latents(moments)
        assert np.abs(codec.decode(latents).astype(int) - to_uint8(whole)).max() <= 1
        scale, shift = (torch.tensor(v).view(1, -1, 1, 1) for v in (codec.config.scale, codec.config.shift))
        torch.testing.assert_close(latents / scale + shift, moments[:, : codec.config.channels], rtol=1e-5, atol=1e-5)


def test_statistics_by_channel_are_those_of_stock_pipelines(folders, make, images):
    codec, net = codec_of(folders, "statistics"), make("statistics")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (net.config.latents_mean, net.config.latents_std))
    z = raw(net, pixels(images))[:, :4]
    torch.testing.assert_close(codec.encode(images), (z - mean) * net.config.scaling_factor / std)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_does_not_depend_on_its_batch(name, folders, images):
    codec = codec_of(folders, name)
    moments, latents = codec.moments(images), torch.randn(3, codec.config.channels, 6, 8)
    pictures = codec.decode(latents)
    for i in range(3):
        assert torch.equal(codec.moments(images[i : i + 1]), moments[i : i + 1])
        assert np.array_equal(codec.decode(latents[i : i + 1]), pictures[i : i + 1])
    assert torch.equal(codec.moments(images[::-1]), moments.flip(0))  # a view that torch cannot share


def test_eight_threads_share_one_codec(folders, images):
    alone, shared = codec_of(folders, "kl16"), codec_of(folders, "kl16")
    sizes = [(1, 32), (2, 16), (1, 48), (3, 16), (1, 64), (2, 32), (1, 16), (2, 48)]
    tasks = [np.random.default_rng(n).integers(0, 256, (n, side, 32, 3), dtype=np.uint8) for n, side in sizes]
    expected = [alone.decode(alone.encode(task, Draws(0, range(len(task)), "x").normal)) for task in tasks]
    found, gate = [None] * 8, threading.Barrier(8)

    def work(i):
        gate.wait()
        found[i] = shared.decode(shared.encode(tasks[i], Draws(0, range(len(tasks[i])), "x").normal))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_weights_are_read_once_and_only_when_needed(folders, images, monkeypatch):
    from ditwright.codec import autoencoder

    reads = []
    real = autoencoder.filled
    monkeypatch.setattr(autoencoder, "filled", lambda *args: reads.append(args) or real(*args))
    config = replace(find_codec(str(folders["kl"])), source="")
    moments = torch.randn(1, 8, 2, 2)
    assert torch.equal(codec_from(config).latents(moments), moments[:, :4] * 0.18215)  # without any weights
    with pytest.raises(UserError, match=r"codec\.source is empty"):
        codec_from(config).decode(moments[:, :4])
    reads.clear()
    codec = codec_of(folders, "kl")
    assert len(reads) == 1  # for the fingerprint
    codec.to("cpu").enable_tiling()
    assert len(reads) == 1
    codec.decode(codec.encode(images))
    codec.decode(codec.encode(images))
    assert len(reads) == 2


def test_half_precision_stays_near_and_float32_comes_back(folders, make, images):
    codec = codec_of(folders, "kl16")
    exact = codec.moments(images)
    rough = codec.to(dtype=torch.bfloat16).moments(images)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()
    assert codec.decode(codec.latents(rough)).dtype == np.uint8
    net = torch.nn.Module.to(make("kl16"), torch.bfloat16)
    assert torch.equal(codec.pixels(codec.latents(rough)), stock_decode(net, codec.latents(rough)))
    assert torch.equal(codec.to(dtype=torch.float32).moments(images), exact)


def test_an_autoencoder_that_asks_for_it_is_not_run_in_float16(folders):
    codec = codec_of(folders, "kl").to(dtype=torch.float16)
    assert codec.net.dtype == torch.float32
    assert codec_of(folders, "tiny").to(dtype=torch.float16).net.dtype == torch.float16


@pytest.mark.parametrize("name", ["kl", "kl16", "tiny", "dc"])
def test_tiles_are_the_ones_of_diffusers_and_encoding_knows_none(name, folders, make, images):
    codec, net = codec_of(folders, name), make(name)
    sides = {"tiny": (70, 66), "dc": (4, 264)}.get(name, (16, 24))  # tiles are 512 pixels there, and 32 here
    latents = torch.randn(1, codec.config.channels, *sides)
    whole, moments = codec.decode(latents), codec.moments(images)
    net.enable_tiling()
    codec.enable_tiling()
    tiled = codec.decode(latents)
    assert np.array_equal(tiled, to_uint8(stock_decode(net, latents)))
    assert not np.array_equal(whole, tiled)
    assert torch.equal(codec.moments(images), moments)
    codec.enable_tiling(False)
    assert np.array_equal(codec.decode(latents), whole)


def test_slices_of_a_batch_follow_the_device_and_the_wish(folders):
    codec = codec_of(folders, "kl")
    batch = torch.zeros(40, 4, 2, 2)
    assert {len(part) for part in codec._parts(batch, 64)} == {1}
    codec.device = SimpleNamespace(type="cuda")
    assert [len(part) for part in codec._parts(batch, 64)] == [40]
    assert [len(part) for part in codec._parts(batch, 512 * 512)] == [8] * 5
    assert [len(part) for part in codec._parts(batch, 10**9)] == [1] * 40
    codec.enable_slicing()
    assert {len(part) for part in codec._parts(batch, 64)} == {1}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 32, 30, 3), np.uint8), r"32x30.*4, the codec's factor"),
        (np.zeros((1, 32, 32, 1), np.uint8), r"uint8 images \(B, H, W, 3\); got uint8 \(1, 32, 32, 1\)"),
        (np.zeros((1, 32, 32, 3), np.float32), "got float32"),
        (np.zeros((32, 32, 3), np.uint8), r"got uint8 \(32, 32, 3\)"),
        (np.zeros((1, 0, 32, 3), np.uint8), "0x32"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(images, message, folders):
    with pytest.raises(UserError, match=message):
        codec_of(folders, "kl").moments(images)


def test_latents_and_moments_of_another_codec_are_refused(folders):
    codec = codec_of(folders, "kl")
    with pytest.raises(UserError, match=r"\(B, 4, h, w\).*\(1, 16, 2, 2\)"):
        codec.decode(torch.zeros(1, 16, 2, 2))
    with pytest.raises(UserError, match=r"\(B, 8, h, w\).*another codec"):
        codec.latents(torch.zeros(1, 4, 2, 2))


def test_tiles_that_diffusers_cannot_lay_are_refused(make, tmp_path):
    from diffusers import AutoencoderKL, AutoencoderTiny

    small = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **small).save_pretrained(tmp_path / "tiny")
    with pytest.raises(UserError, match="factor 8 only; this one has 2"):
        codec_from(find_codec(str(tmp_path / "tiny"))).enable_tiling()
    config = dict(make("kl").config) | {"sample_size": 24}
    AutoencoderKL.from_config(config).save_pretrained(tmp_path / "kl")
    codec = codec_from(find_codec(str(tmp_path / "kl")))
    codec.enable_tiling()
    with pytest.raises(UserError, match="tiles of 24 pixels do not fit"):
        codec.decode(torch.zeros(1, 4, 16, 16))


def test_an_open_scale_is_the_autoencoders_own(folders):
    """Nobody can train with a scale that was forgotten."""
    found = find_codec(str(folders["kl16"]))
    open_ = CodecConfig("kl", 16, 4, source=str(folders["kl16"]))
    moments = torch.randn(1, 32, 2, 2)
    assert torch.equal(codec_from(open_).latents(moments), codec_from(found).latents(moments))
    assert codec_from(replace(open_, scale=(2.0,))).config.shift == (0.0609,)
    assert completed(open_) == found
    assert completed(CodecConfig(source=str(folders["kl16"]))) == found
    given = completed(replace(open_, scale=(2.0,)))
    assert given == replace(found, scale=(2.0,))
    assert completed(CodecConfig("pixels", 1)) == CodecConfig("pixels", 1)
    with pytest.raises(UserError, match=r"kind is dc; .* of kind kl"):
        completed(replace(open_, kind="dc"))
    with pytest.raises(UserError, match=r"has weights .* asks for 0123"):
        completed(replace(open_, fingerprint="0123"))
    with pytest.raises(UserError, match=r"kind kl with 16 channels and factor 4; .* 4 channels and factor 8"):
        codec_from(CodecConfig("kl", 4, 8, source=str(folders["kl16"]))).net  # noqa: B018


def test_a_configuration_survives_yaml(folders):
    for folder in folders.values():
        config = find_codec(str(folder))
        assert from_dict(CodecConfig, to_dict(config)) == config
        assert isinstance(codec_from(config), Autoencoder)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_what_decoding_clips_and_rounds(name, folders):
    codec = codec_of(folders, name)
    latents = torch.randn(2, codec.config.channels, 4, 4)
    found = codec.pixels(latents)
    assert (found.dtype, found.shape[1]) == (torch.float32, 3)
    assert np.array_equal(codec.decode(latents), to_uint8(found))
    assert np.array_equal(codec.decode(latents.double()), codec.decode(latents))


def test_being_ready_is_having_read_the_right_weights(folders):
    config = find_codec(str(folders["kl"]))
    codec = codec_from(config)
    assert codec.ready() is codec
    assert codec_from(CodecConfig("pixels")).ready().config.kind == "pixels"
    with pytest.raises(UserError, match="other weights"):
        codec_from(replace(config, fingerprint="0123")).ready()


def test_pixels_take_any_array_and_come_back(images):
    codec = codec_from(CodecConfig("auto"))
    frozen = images[:, :, ::-1]
    frozen.flags.writeable = False
    for given in (images, frozen):
        latents = codec.encode(given)
        assert np.array_equal(codec.decode(latents), given)
        assert torch.equal(codec.pixels(latents), latents)
    with pytest.raises(UserError, match=r"got uint8 \(32, 48, 3\)"):
        codec.moments(images[0])
