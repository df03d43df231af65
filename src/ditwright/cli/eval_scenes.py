"""ditwright eval scenes SAMPLES: how much of what pictures of scenes were asked for is in them, by number of things."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .eval import is_model, tell
from .main import Parser

EPILOG = """
SAMPLES is an .npz that ditwright sample --num-fid-samples N --captions SOURCE wrote, with its prompts beside it; a
folder of what ditwright sample --prompt drew; or captioned pictures: scenes-held-out shows how sure the reader is.

  ditwright sample RUN --num-fid-samples 1000 --captions scenes-held-out --output fid
  ditwright eval scenes fid/samples_1000.npz --picture fid/scenes.png
"""


def run(words: list[str]) -> int:
    parser = Parser(
        prog="ditwright eval scenes",
        usage="ditwright eval scenes SAMPLES [options]",
        description="Read back from pictures of scenes what their captions say.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("samples", help="what is looked at, see below")
    add("--captions", metavar="SOURCE", help="of an .npz without prompts beside it: a file of a line for each sample")
    add("--size", type=int, metavar="N", help="crop pictures of folders to N x N; draw scenes so")
    add("--json", action="store_true", help="print JSON")
    add("--output", type=Path, metavar="FILE", help="also write the JSON here")
    add("--picture", type=Path, metavar="FILE", help="draw the first 16 of each number of things, and what is wrong")
    args = parser.parse_args(words)
    if args.size is not None and args.size < 1:
        raise UserError(f"--size must be at least 1; got {args.size}")
    if is_model(args.samples):
        raise UserError(
            f"{args.samples!r} is a model, and samples are wanted; draw them first: ditwright sample {args.samples} "
            "--num-fid-samples 1000 --captions scenes-held-out --output DIR"
        )

    from tqdm import tqdm

    from ..evaluate import captioned, fidelity

    images, captions = captioned(args.samples, args.captions, args.size)
    check(captions)
    with tqdm(total=images.count, unit="picture", disable=not sys.stderr.isatty()) as bar:
        found = fidelity(captions, images, watch=lambda done: bar.update(done - bar.n))
    if args.picture is not None:
        from ..evaluate.page import page
        from ..pictures import save_png

        args.picture.parent.mkdir(parents=True, exist_ok=True)
        save_png(page(captions, images), args.picture)
    told = {"samples_from": images.name, "drawn": dict(images.origin), **found.plain()}
    tell(told, found.text(), args)
    return 0


def check(captions: Sequence[str]) -> None:
    """UserError, naming the first of them, where a caption is not of a scene."""
    from ..data.scene_words import parse

    for number, caption in enumerate(captions, 1):
        try:
            parse(caption)
        except UserError as error:
            raise UserError(f"caption {number} of {len(captions)}, {caption!r}: {error}") from error
