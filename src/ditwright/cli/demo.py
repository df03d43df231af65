"""ditwright demo: train something small from end to end, judge its samples, save pictures that a person enjoys."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from ..errors import lookup
from .main import Parser
from .notes import noted

DEMOS = {  # what `cli/demo_*.py` show
    "digits": "classes: handwritten digits, judged by a classifier; about two minutes on two CPU cores",
    "scenes": "captions: drawn scenes, their prompts checked word for word; half an hour on two CPU cores with AMX",
    "emoji": "captions: the emoji of a font under their names; half an hour on two CPU cores with AMX",
}


def run(words: list[str]) -> int:
    about = "\n".join(f"  {name:<8} {what}" for name, what in DEMOS.items())
    parser = Parser(
        prog="ditwright demo",
        description="Train something small from end to end, judge its samples, save pictures.",
        epilog=f"demos:\n{about}\nThe same command run again goes on where it stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", default="digits", help=f"one of: {', '.join(DEMOS)} (default: digits)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: runs/NAME)")
    args = parser.parse_args(words)
    lookup("demo", args.name, DEMOS)
    show = importlib.import_module(f"{__package__}.demo_{args.name}").show
    with noted():
        return show(args.output or Path("runs") / args.name)
