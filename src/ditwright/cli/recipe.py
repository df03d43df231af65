"""What `train` and `train-codec` have in common: a recipe, files and dotted options make a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import dump_yaml, load_yaml, merge, overrides
from ..errors import UserError, lookup
from .main import Parser

EPILOG = """
Any key of the configuration can be set after these, as --dotted.key VALUE:
  {example}
--print-config shows every key with its value. The order of precedence: recipe, --config files, options.
The same command run again goes on where the run stopped.{more}
"""


def asked(
    words: list[str],
    recipes: Mapping[str, Callable[[], Any]],
    *,
    verb: str,
    what: str,
    example: str,
    folder: str = "runs/RECIPE",
    more: str = "",
) -> tuple[Any, Path] | None:
    """The configuration and the run folder that some words ask for; None where they ask only to see it printed.

    `folder`: where runs lie unless told, RECIPE standing for the recipe's name.
    """
    parser = Parser(
        prog=f"ditwright {verb}",
        usage=f"ditwright {verb} RECIPE [options] [--dotted.key VALUE ...]",
        description=what,
        epilog=EPILOG.format(example=example, more=more),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help=f"one of: {', '.join(recipes)}")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"run folder (default: {folder})")
    parser.add_argument("--steps", metavar="N", help="steps in all")
    parser.add_argument("--seed", metavar="S", help="of all that is drawn: weights, order, noise")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", action="append", default=[], help="keys to change")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")
    args, rest = parser.parse_known_args(words)
    config = lookup("recipe", args.recipe, recipes)()
    for path in args.config:
        config = merge(config, load_yaml(path))
    given = {"steps": args.steps, "seed": args.seed}
    config = merge(config, overrides(rest) | {key: value for key, value in given.items() if value is not None})
    if args.print_config:
        print(dump_yaml(config), end="")
        return None
    output = args.output or Path(folder.replace("RECIPE", args.recipe))
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {str(output)!r} is a file; name a folder")
    return config, output
