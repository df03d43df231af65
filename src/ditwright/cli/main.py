"""`ditwright VERB ...`: one file per verb, loaded only when it is called."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from typing import NoReturn

from .. import __version__
from ..errors import UserError, did_you_mean

VERBS = {
    "train": "train a network by a recipe, or go on with a run",
    "sample": "draw pictures from a run, a checkpoint or published weights",
    "eval": "measure samples against a reference",
    "prepare": "encode pictures once, into shards of latents",
    "train-codec": "train a small autoencoder on pictures",
    "scale": "plan, run and fit a ladder of models",
    "convert": "weights from and for other projects",
    "plot": "draw which times a run trains",
    "info": "parameters, tokens and cost of a network; what a run took",
    "replay": "do one step of a run again: what each sample lost",
    "bench": "how fast this machine runs and trains networks",
    "demo": "train something small from end to end, judge the samples, save pictures",
}


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, no abbreviations."""

    def __init__(self, **kwargs: object):
        super().__init__(allow_abbrev=False, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def usage() -> str:
    """What `ditwright --help` prints."""
    verbs = "\n".join(f"  {verb:<11} {what}" for verb, what in VERBS.items())
    return (
        "usage: ditwright VERB ...\n\nTrain, measure and sample diffusion transformers.\n\n"
        f"{verbs}\n\n  ditwright VERB --help says more; ditwright --version says which one this is\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run a verb. Bad input and a full disk are one line and exit code 2; other failures keep their traceback.

    One process of several that finds another gone says that in a line, too, with exit code 1.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if words[0] == "--version":
        print(f"ditwright {__version__}")
        return 0
    try:
        if words[0] not in VERBS:
            raise UserError(f"unknown verb {words[0]!r}; known: {', '.join(VERBS)}{did_you_mean(words[0], VERBS)}")
        return importlib.import_module(f"{__package__}.{words[0].replace('-', '_')}").run(words[1:])
    except (UserError, OSError) as error:
        advice = "; what was saved is whole: free some space, then run the same command again"
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        print(f"ditwright: error: {' '.join(str(error).split())}{advice if full else ''}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        from ..train.processes import lost

        if not (line := lost(error)):
            raise
        print(f"ditwright: error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ditwright: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
