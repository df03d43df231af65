"""ditwright train RECIPE: train by a recipe, or go on with the run that the output folder holds."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..config import dump_yaml, load_yaml, merge, overrides
from ..errors import UserError, lookup
from ..recipes import RECIPES
from .main import Parser

EPILOG = """
Any key of the configuration can be set after these, as --dotted.key VALUE:
  --optim.lr 1e-3 --data.batch_size 128 --model.stages.0.depth 8
--print-config shows every key with its value. The order of precedence: recipe, --config files, options.
The same command run again goes on where the run stopped.
"""


def run(words: list[str]) -> int:
    parser = Parser(
        prog="ditwright train",
        usage="ditwright train RECIPE [options] [--dotted.key VALUE ...]",
        description="Train a network by a recipe.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help=f"one of: {', '.join(RECIPES)}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE)")
    parser.add_argument("--steps", metavar="N", help="steps in all")
    parser.add_argument("--seed", metavar="S", help="of weights, order, noise")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", action="append", default=[], help="keys to change")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")
    args, rest = parser.parse_known_args(words)

    config = lookup("recipe", args.recipe, RECIPES)()
    for path in args.config:
        config = merge(config, load_yaml(path))
    given = {"steps": args.steps, "seed": args.seed}
    config = merge(config, overrides(rest) | {key: value for key, value in given.items() if value is not None})
    if args.print_config:
        print(dump_yaml(config), end="")
        return 0

    from ..run import train
    from ..train.fit import NonFinite

    output = args.output or Path("runs") / args.recipe
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {str(output)!r} is a file; name a folder")
    try:
        checkpoint = train(config, output)
    except NonFinite as error:
        raise SystemExit(f"ditwright: stopped: {error}; the last checkpoint in {output} is untouched") from error
    if os.environ.get("RANK", "0") == "0":
        print(f"checkpoint: {checkpoint}\nto sample: ditwright sample {output}")
    return 0
