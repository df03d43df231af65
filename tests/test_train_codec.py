"""Training an autoencoder: the loss, the crops, going on after a stop, and a folder that stock diffusers loads."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright.cli.main import main
from ditwright.codec.base import codec_from, find_codec
from ditwright.codec.config import AutoencoderConfig
from ditwright.codec.folder import WEIGHTS
from ditwright.codec.learn import Reconstruct, Reconstruction, build, divergence, psnr, spread
from ditwright.config import merge, overrides
from ditwright.data.base import Pictures
from ditwright.data.sources import SOURCES
from ditwright.errors import UserError
from ditwright.recipes.photos_codec import photos_codec
from ditwright.rng import Draws
from ditwright.train.log import Log
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints
from ditwright.train_codec import assemble, batches, cut, train

diffusers = pytest.importorskip("diffusers")

TINY = """
    --model.widths 8,8 --model.groups 4 --data.source waves --data.held_out= --data.image_size none --data.crop 8
    --data.batch_size 4 --precision fp32 --optim.warmup 0 --log.every 1 --log.preview_every 3 --log.checkpoint_every 3
"""
SMALL = AutoencoderConfig(channels=4, widths=(8, 8, 16), groups=4, attention=True)


def pixels(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


def waves(size=None):
    """Twenty-five pictures of 12 x 16 pixels in two classes: stripes of several angles and colours."""
    y, x = np.mgrid[:12, :16]
    n = np.arange(25)[:, None, None, None]
    phase = (np.cos(n) * y[..., None] + np.sin(n) * x[..., None]) / 2 + n * np.arange(3)
    return Pictures((127.5 + 127 * np.sin(phase)).astype(np.uint8), np.arange(25) % 2, ("even", "odd"))


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(SOURCES, "waves", waves)


def tiny(words=""):
    return merge(photos_codec(), overrides(f"{TINY} {words}".split()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a few steps, which nobody may change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "waves", waves)
        run = tmp_path_factory.mktemp("codec") / "run"
        return run, train(tiny("--steps 6"), run)


# The network and its loss


def test_what_is_trained_computes_what_the_autoencoder_of_diffusers_does():
    made = build(SMALL, 16, seed=3)
    net, x = Reconstruct(made), torch.randn(2, 3, 16, 16)
    assert net.state_dict().keys() == made.state_dict().keys()
    posterior = made.encode(x).latent_dist
    generator = torch.Generator().manual_seed(1)
    z = posterior.sample(generator)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    y, mean, logvar = net(x, noise)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(logvar, posterior.logvar)
    assert torch.equal(y, made.decode(z).sample)


def test_the_divergence_is_that_of_diffusers():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = torch.randn(3, 8, 5, 7) * 3
    mean, logvar = moments.chunk(2, 1)
    torch.testing.assert_close(divergence(mean, logvar), DiagonalGaussianDistribution(moments).kl())
    assert torch.equal(divergence(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)), torch.zeros(1))


def test_the_loss_is_the_sum_of_its_terms_for_each_sample():
    made, x = build(SMALL, 16, seed=0), torch.randn(3, 3, 16, 24)
    draws = Draws(0, range(3), "train")
    noise = draws.again().normal(torch.empty(3, 4, 4, 6))
    posterior = made.encode(x).latent_dist
    error = made.decode(posterior.mean + posterior.std * noise).sample - x
    terms = [error.abs().mean((1, 2, 3)), error.square().mean((1, 2, 3)), posterior.kl() / (3 * 16 * 24)]
    for weights in ((1, 0, 0), (0, 1, 0), (0.5, 2, 0.1)):
        loss = Reconstruction(SMALL, *weights)(Reconstruct(made), x, {}, draws.again())
        torch.testing.assert_close(loss, sum(w * term for w, term in zip(weights, terms, strict=True)))


def test_the_seed_makes_the_weights_and_leaves_the_global_state_alone():
    state = torch.random.get_rng_state()
    a, b, c = (build(SMALL, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a.encoder.conv_in.weight, b.encoder.conv_in.weight)
    assert not torch.equal(a.encoder.conv_in.weight, c.encoder.conv_in.weight)


def overfitted(steps, kl):
    """A tiny autoencoder after some steps on four crops: losses, and the divergence of their latents."""
    config, x = AutoencoderConfig(widths=(8, 8), groups=4), pixels(waves().images[:4, :8, :8])
    net, loss = Reconstruct(build(config, 8, seed=0)), Reconstruction(config, 1, 1, kl)
    optim, losses = torch.optim.Adam(net.parameters(), 5e-3), []
    for step in range(steps):
        value = loss(net, x, {}, Draws(0, range(4 * step, 4 * step + 4), "train")).mean()
        optim.zero_grad()
        value.backward()
        optim.step()
        losses.append(value.item())
    return losses, divergence(*net.moments(x)).mean().item()


def test_it_learns_a_few_crops_by_heart_unless_the_divergence_weighs_too_much():
    weak, strong = overfitted(80, kl=1e-6), overfitted(80, kl=1.0)
    assert weak[0][-1] < weak[0][0] / 8
    assert strong[1] < weak[1] / 20
    assert strong[0][-1] > 2 * weak[0][-1]


# What is measured


def test_the_spread_is_that_of_what_is_drawn():
    mean = torch.stack([torch.full((50, 40, 40), -2.0), torch.randn(50, 40, 40) * 3 + 1], 1).float()
    logvar = torch.tensor([0.25, 16.0]).log()[None, :, None, None].expand_as(mean)
    found = spread([(mean[:20], logvar[:20]), (mean[20:], logvar[20:])])
    np.testing.assert_allclose(found.mean, [-2, 1], atol=0.05)
    np.testing.assert_allclose(found.std, [0.5, 5], rtol=0.01)
    drawn = mean + logvar.exp().sqrt() * torch.randn(mean.shape)
    scaled = (drawn - found.shift) * found.scale
    assert abs(scaled.mean().item()) < 0.01
    assert abs(scaled.std().item() - 1) < 0.01


def test_psnr_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = (np.random.default_rng(n).integers(0, 256, (3, 9, 8, 3), dtype=np.uint8) for n in range(2))
    b[1] = a[1] ^ 1
    assert psnr(a, b) == pytest.approx([metrics.peak_signal_noise_ratio(x, y) for x, y in zip(a, b, strict=True)])
    assert psnr(a, b)[1] == pytest.approx(20 * np.log10(255))
    assert psnr(a, a) == pytest.approx(58.92, abs=0.01)  # a perfect one counts as rounded


# The crops


def test_a_crop_follows_from_seed_and_place_and_reaches_every_position():
    image = np.arange(6 * 7).reshape(6, 7, 1)
    found = {cut(image, 4, 0, place)[0, 0, 0] for place in range(300)}
    assert found == {7 * top + left for top in range(3) for left in range(4)}
    assert np.array_equal(cut(image, 4, 5, 8), cut(image, 4, 5, 8))
    assert cut(image, 4, 0, 0).shape == (4, 4, 1)


def test_a_batch_is_a_function_of_its_number_however_many_processes_share_it():
    config = tiny("--steps 1")
    parts = assemble(config, World(torch.device("cpu")))
    first = list(islice(batches(config, parts, 0), 8))
    again = next(batches(config, parts, 5))
    assert torch.equal(again.x0, first[5].x0)
    assert again.draws.indices == first[5].draws.indices == [20, 21, 22, 23]
    assert first[0].x0.shape == (4, 3, 8, 8)
    shares = [next(batches(config, parts, 5, World(torch.device("cpu"), rank, 2))) for rank in range(2)]
    assert torch.equal(torch.cat([share.x0 for share in shares]), again.x0)
    flipped = next(batches(tiny("--steps 1 --data.flip 1"), parts, 5)).x0
    straight = next(batches(tiny("--steps 1 --data.flip 0"), parts, 5)).x0
    assert not torch.equal(flipped, straight)


def test_what_is_held_out_is_never_trained_on():
    parts = assemble(tiny("--steps 1"), World(torch.device("cpu")))
    assert parts.held.items.tolist() == [0, 20]
    assert sorted([*parts.groups[0].items.tolist(), 0, 20]) == list(range(25))
    pictures = parts.held.read(parts.held.items)
    assert np.array_equal(pictures, waves().images[[0, 20], 2:10, 4:12])


def test_held_out_pictures_may_be_a_set_of_their_own(monkeypatch):
    others = Pictures(waves().images[:7, :8, :8] // 2, np.zeros(7, np.int64), ())
    monkeypatch.setitem(SOURCES, "others", lambda size: others if size == 8 else None)
    parts = assemble(tiny("--steps 1 --data.held_out others"), World(torch.device("cpu")))
    assert parts.groups[0].items.tolist() == list(range(25))
    assert np.array_equal(parts.held.read(parts.held.some(4)), others.images[[0, 2, 4, 6]])


# A run


def outcome(run, contents):
    """All that runs of equal settings have in common, to the last bit."""
    files = contents(run)
    keep = re.compile(r"codec/|samples/|report\.json|codec\.png|checkpoints/[^/]*/(config\.json|.*\.safetensors)")
    rates = re.compile(rb', "samples_per_second": [0-9.]+')
    found = {name: data for name, data in files.items() if keep.match(name)}
    return found | {"metrics.jsonl": rates.sub(b"", files["metrics.jsonl"])}


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "killed"])
def test_a_stopped_run_goes_on_to_the_same_bits(how, finished, contents, tmp_path, monkeypatch):
    class Killed(BaseException):
        """Nothing is saved."""

    write = Log.write

    def noted(log, tick):
        write(log, tick)
        if tick.step == 5:
            if how == "killed":
                raise Killed
            signal.raise_signal(signal.Signals[how])

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", noted)
        with pytest.raises((SystemExit, Killed)):
            train(tiny("--steps 6"), tmp_path / "run")
    last = checkpoints(tmp_path / "run")[-1]
    assert last.name == ("step-00000003" if how == "killed" else "step-00000005")
    assert find_codec(str(tmp_path / "run")).source == str(last)  # a run that has not finished is of use already
    train(tiny("--steps 6"), tmp_path / "run")
    ours, theirs = outcome(tmp_path / "run", contents), outcome(finished[0], contents)
    for found in (ours, theirs):  # which checkpoints are kept depends on when it stopped
        for name in [name for name in found if name.startswith("checkpoints/") and "step-00000006" not in name]:
            del found[name]
    assert ours == theirs
    assert {"codec.png", "report.json", "codec/config.json", "samples/step-00000006.png"} <= ours.keys()


def test_the_result_is_an_autoencoder_of_stock_diffusers(finished):
    run, report = finished
    net = diffusers.AutoencoderKL.from_pretrained(run / "codec").eval()
    facts = json.loads((run / "report.json").read_text())
    assert net.config.scaling_factor == report.latents.scale == facts["scaling_factor"]
    assert net.config.shift_factor == report.latents.shift == facts["shift_factor"]
    assert net.config.sample_size == 8
    images = waves().images[:, :8, :8]
    codec = codec_from(find_codec(str(run)))
    assert codec.config.source == str(run / "codec")
    with torch.no_grad():
        theirs = torch.cat([net.encode(part).latent_dist.mode() for part in pixels(images).split(1)])
    assert torch.equal(codec.encode(images), (theirs - net.config.shift_factor) * net.config.scaling_factor)


def test_the_saved_scale_makes_drawn_latents_of_unit_spread(finished):
    run, _ = finished
    codec = codec_from(find_codec(str(run)))
    config = tiny("--steps 6")
    crops = islice(batches(config, assemble(config, World(torch.device("cpu"))), 0), 64)
    images = np.concatenate([((b.x0 + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy() for b in crops])
    drawn = codec.encode(images, Draws(0, range(len(images)), "latent").normal)
    assert abs(drawn.mean().item()) < 0.05
    assert abs(drawn.std().item() - 1) < 0.05


def test_the_report_is_of_the_held_out_pictures(finished):
    run, report = finished
    facts = json.loads((run / "report.json").read_text())
    held = waves().images[[0, 20], 2:10, 4:12]
    codec = codec_from(find_codec(str(run)))
    scores = psnr(held, codec.decode(codec.encode(held)))
    assert report.psnr == pytest.approx(scores.mean())
    assert facts["psnr"] == round(report.psnr, 3)
    assert (report.pictures, facts["held_out"]) == (2, "every 20th picture")
    assert facts["psnr_of_each_class"].keys() == {"even"}
    assert len(facts["latent_mean"]) == len(facts["latent_std"]) == 4
    with Image.open(run / "codec.png") as picture:
        assert picture.mode == "RGB"


def test_a_checkpoint_is_a_codec_too(finished):
    run, _ = finished
    last = checkpoints(run)[-1]
    assert find_codec(str(last)) == replace(find_codec(str(run)), source=str(last))


@pytest.mark.parametrize("place", ["codec", "checkpoints/step-00000006"])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_what_was_damaged_since_is_not_used(name, place, finished, tmp_path, capsys):
    run = shutil.copytree(finished[0], tmp_path / "run")
    path = run / place / name
    content = bytearray(path.read_bytes())
    at = -40 if name == WEIGHTS else content.index(b'"scaling_factor": ') + 20
    content[at] ^= 1
    path.write_bytes(content)
    for source in [run / place, run] if place == "codec" else [run / place]:
        with pytest.raises(UserError, match=rf"codec '{run / place}' is not as it was written: {name} is damaged"):
            find_codec(str(source))
    words = ["prepare", "waves", "--codec", str(run / place), "--size", "8", "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert f"{name} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (run / place / "checksums.json").unlink()  # as whoever changes one on purpose has it
    assert find_codec(str(run / place)).factor == 2


# Bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.crop 14", r"pictures of \(12, 16\); data\.crop 14 does not fit"),
        ("--data.crop 7", "crop 7 is not divisible by 2"),
        ("--data.image_size 4", "image_size 4 is smaller than data.crop 8"),
        ("--model.image_channels 1", "image_channels is 1; the pictures have 3"),
        ("--data.source nowhere", "nowhere"),
        ("--data.batch_size 0", "batch_size"),
        ("--loss.l1 0 --loss.mse 0", "one of the first two above it"),
        ("--loss.kl -1", "0 or more"),
        ("--data.flip 2", "between 0 and 1"),
        ("--steps 0", "steps must be at least 1"),
        ("--seed -1", "seed must be"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny(words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_latents_and_a_lone_picture_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "latents", lambda size=None: replace(waves(), codec={"kind": "kl"}))
    with pytest.raises(UserError, match="'latents' holds latents; an autoencoder is trained on pictures"):
        train(tiny("--data.source latents"), tmp_path / "run")
    lone = Pictures(waves().images[:1], np.zeros(1, np.int64), ("one",))
    monkeypatch.setitem(SOURCES, "lone", lambda size=None: lone)
    with pytest.raises(UserError, match="has one picture"):
        train(tiny("--data.source lone"), tmp_path / "run")


def test_another_run_in_the_folder_is_left_alone(finished):
    with pytest.raises(UserError, match=r"holds another run: loss\.kl"):
        train(tiny("--steps 6 --loss.kl 0.5"), finished[0])


# The command


def test_the_command_trains_reports_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train-codec", "photos", "--steps", "2", *TINY.split()]) == 0
    out = capsys.readouterr().out
    assert re.search(r"PSNR \d+\.\d\d dB: the mean over 2 held-out pictures", out)
    assert len(re.findall(r"latent channel \d: mean", out)) == 4
    assert "ditwright prepare SOURCE --codec runs/photos-codec/codec --output SHARDS" in out
    assert Path("runs/photos-codec/codec.png").is_file()
    assert main(["train-codec", "photos", "--print-config"]) == 0
    assert "held_out: photos-held-out" in capsys.readouterr().out
    assert main(["train-codec", "photo"]) == 2
    assert "did you mean 'photos'" in capsys.readouterr().err
