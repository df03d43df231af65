"""ditwright train-codec RECIPE: train an autoencoder on pictures, or go on with the run in the output folder."""

from __future__ import annotations

from ..recipes import CODEC_RECIPES
from .recipe import asked

EXAMPLE = "--data.source FOLDER --data.image_size 256 --data.crop 128 --model.widths 64,128,256,256"
MORE = """ What comes out, RUN/codec, is a folder that stock
diffusers loads (AutoencoderKL), and the --codec of `ditwright prepare`."""


def run(words: list[str]) -> int:
    what = "Train a small autoencoder on pictures."
    found = asked(
        words, CODEC_RECIPES, verb="train-codec", what=what, example=EXAMPLE, folder="runs/RECIPE-codec", more=MORE
    )
    if found is None:
        return 0
    config, output = found

    from ..train.fit import NonFinite
    from ..train.keep import left_in
    from ..train_codec import train

    try:
        report = train(config, output)
    except NonFinite as error:
        raise SystemExit(f"ditwright: stopped: {error}; {left_in(output)}") from error
    if report is not None:
        print(f"PSNR {report.psnr:.2f} dB: the mean over {report.pictures} held-out pictures, 8 bits, peak 255")
        for number, (mean, std) in enumerate(zip(report.latents.mean, report.latents.std, strict=True)):
            print(f"latent channel {number}: mean {mean:+.3f}, standard deviation {std:.3f}")
        print(f"scaling_factor {report.latents.scale:.5f}, shift_factor {report.latents.shift:+.5f}")
        print(f"before and after: {output / 'codec.png'}\ncodec: {report.folder}")
        print(f"to use: ditwright prepare SOURCE --codec {report.folder} --output SHARDS")
    return 0
