"""ditwright train-codec RECIPE: train an autoencoder on pictures, or go on with the run in the output folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import dump_yaml, load_yaml, merge, overrides
from ..errors import UserError, lookup
from ..recipes import CODEC_RECIPES
from .main import Parser

EPILOG = """
Any key of the configuration can be set after these, as --dotted.key VALUE:
  --data.source FOLDER --data.image_size 256 --data.crop 128 --model.widths 64,128,256,256
--print-config shows every key with its value. The order of precedence: recipe, --config files, options.
The same command run again goes on where the run stopped. What comes out, RUN/codec, is a folder that stock
diffusers loads (AutoencoderKL), and the --codec of `ditwright prepare`.
"""


def run(words: list[str]) -> int:
    parser = Parser(
        prog="ditwright train-codec",
        usage="ditwright train-codec RECIPE [options] [--dotted.key VALUE ...]",
        description="Train a small autoencoder on pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help=f"one of: {', '.join(CODEC_RECIPES)}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE-codec)")
    parser.add_argument("--steps", metavar="N", help="steps in all")
    parser.add_argument("--seed", metavar="S", help="of weights, order, crops, noise")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", action="append", default=[], help="keys to change")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")
    args, rest = parser.parse_known_args(words)

    config = lookup("recipe", args.recipe, CODEC_RECIPES)()
    for path in args.config:
        config = merge(config, load_yaml(path))
    given = {"steps": args.steps, "seed": args.seed}
    config = merge(config, overrides(rest) | {key: value for key, value in given.items() if value is not None})
    if args.print_config:
        print(dump_yaml(config), end="")
        return 0

    from ..train.fit import NonFinite
    from ..train_codec import train

    output = args.output or Path("runs") / f"{args.recipe}-codec"
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {str(output)!r} is a file; name a folder")
    try:
        report = train(config, output)
    except NonFinite as error:
        raise SystemExit(f"ditwright: stopped: {error}; the last checkpoint in {output} is untouched") from error
    if report is not None:
        print(f"PSNR {report.psnr:.2f} dB: the mean over {report.pictures} held-out pictures, 8 bits, peak 255")
        for number, (mean, std) in enumerate(zip(report.latents.mean, report.latents.std, strict=True)):
            print(f"latent channel {number}: mean {mean:+.3f}, standard deviation {std:.3f}")
        print(f"scaling_factor {report.latents.scale:.5f}, shift_factor {report.latents.shift:+.5f}")
        print(f"before and after: {output / 'codec.png'}\ncodec: {report.folder}")
        print(f"to use: ditwright prepare SOURCE --codec {report.folder} --output SHARDS")
    return 0
