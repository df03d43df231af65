"""ditwright prepare SOURCE: encode pictures once, into shards that training reads from then on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..config import merge, overrides
from ..data.buckets import Buckets
from ..errors import UserError
from ..text.config import TextConfig
from .main import Parser

EPILOG = """
SOURCE is a folder (of class folders, of pictures, with metadata.jsonl, of WebDataset .tar shards), a pattern of .tar
files, or hf:NAME_OR_FOLDER[:SPLIT]. Captions are kept; :text=NAME behind SOURCE says which field or column has them.
Options --text.kind, --text.source, --text.length, --text.dtype ... name a frozen text encoder, as in training: every
different caption is then encoded once, and training needs no weights of it. The same command run again goes on where it
stopped. Under torchrun every process takes its share:
  ditwright prepare PICTURES --codec pixels --size 64 --output SHARDS --text.kind clip --text.source CLIP
  torchrun --nproc-per-node 8 -m ditwright prepare IMAGENET/train --codec stabilityai/sd-vae-ft-ema --size 256 \\
    --output SHARDS
"""
BUCKET_OPTIONS = ("bucket_step", "max_aspect", "enlarge")


def parser() -> Parser:
    """The options."""
    made = Parser(
        prog="ditwright prepare",
        usage="ditwright prepare SOURCE --codec CODEC --output SHARDS [options]",
        description="Encode pictures once, into shards of latents.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("source", nargs="?", help="the pictures, see below")
    add("--codec", metavar="CODEC", help="pixels, the folder of an autoencoder, or its name on the Hugging Face hub")
    add("--revision", metavar="REV", default="", help="branch, tag or commit of a hub name")
    add("--output", type=Path, metavar="SHARDS", help="folder for the shards")
    add("--size", type=int, metavar="N", help="centre-crop to N x N as ADM does; with --buckets about N * N pixels")
    add("--buckets", action="store_true", help="keep the aspect: each picture goes to the nearest of several sizes")
    add("--bucket-step", type=int, metavar="N", help="sides of buckets are multiples of N pixels (default: 64)")
    add("--max-aspect", type=float, metavar="R", help="the longest bucket is R to 1 (default: 2)")
    add("--enlarge", action="store_true", default=None, help="take pictures smaller than their bucket too")
    add("--no-flip", dest="flips", action="store_false", help="leave the mirrored pictures out")
    add("--dtype", choices=("float16", "float32"), default="float16", help="of what is kept (default: float16)")
    add("--shard-size", type=int, default=2048, metavar="N", help="pictures to a shard (default: 2048)")
    add("--batch-size", type=int, default=32, metavar="N", help="pictures at once on a GPU (default: 32)")
    add("--workers", type=int, default=0, metavar="N", help="threads (default: one for each CPU)")
    add("--max-corrupt", type=float, default=0.01, metavar="SHARE", help="stop if more is corrupt (default: 0.01)")
    add("--dry-run", action="store_true", help="read headers only; print what each size gets and what is left out")
    add("--verify", action="store_true", help="compare every byte of --output with its checksum, and leave")
    return made


def of_text(words: list[str]) -> tuple[list[str], list[str]]:
    """The words of options --text.KEY VALUE or --text.KEY=VALUE, and the others."""
    text: list[str] = []
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        mine = word.startswith("--text.")
        (text if mine else others).append(word)
        if mine and "=" not in word and rest:
            text.append(rest.pop(0))
    return text, others


def encoder_of(words: list[str]) -> TextConfig:
    """The text encoder that options name. UserError where they name a part of one."""
    given = overrides(words)
    config = merge(TextConfig(), given.get("text", {}), "text")
    if given and config.kind == "none":
        raise UserError(f"{words[0]} goes with --text.kind, which is none; name the encoder's kind, such as clip or t5")
    return config


def run(words: list[str]) -> int:
    of_encoder, words = of_text(words)
    args = parser().parse_args(words)
    text = encoder_of(of_encoder)
    if args.verify:
        if args.output is None or args.source is not None or of_encoder:
            raise UserError("--verify takes a folder of shards alone: ditwright prepare --verify --output SHARDS")
        return check(args.output)
    missing = [name for name in ("source", "codec", "output") if getattr(args, name) is None]
    if missing and not (args.dry_run and args.source):
        raise UserError(f"{missing[0] if missing[0] == 'source' else f'--{missing[0]}'} is missing; see --help")
    given = {name: getattr(args, name) for name in BUCKET_OPTIONS if getattr(args, name) is not None}
    if given and not args.buckets:
        raise UserError(f"--{next(iter(given)).replace('_', '-')} is for --buckets; give both or neither")
    if args.buckets and args.size is None:
        raise UserError("--buckets needs --size N: every bucket has about N * N pixels")

    from ..data.sources import open_source
    from ..prepare import PrepareConfig, prepare, survey

    of_buckets = {name.removeprefix("bucket_"): value for name, value in given.items()}
    config = PrepareConfig(
        size=None if args.buckets else args.size,
        buckets=Buckets(args.size, **of_buckets) if args.buckets else None,
        **{name: getattr(args, name) for name in ("flips", "dtype", "shard_size", "batch_size", "workers")},
        max_corrupt=args.max_corrupt,
    )
    source = open_source(args.source)
    if args.dry_run:
        found = survey(source, config)
        print(found.text(), end="")
        if len(found.sizes) > 1 and not args.buckets:
            print("\nsizes are mixed: give --size N to crop to, or --buckets beside it")
        return 0

    from ..codec.base import find_codec

    codec = find_codec(args.codec, revision=args.revision)
    index = prepare(source, codec, args.output, config, text=text, name=args.source)
    if index is None:
        return 0
    left_out = {"corrupt": len(index.corrupt), **index.dropped}
    counts = ", ".join(f"{count:,} {kind}" for kind, count in left_out.items() if count)
    shards = f"{len(index.shards):,} shard{'s' if len(index.shards) > 1 else ''}"
    print(f"{index.count:,} pictures in {shards} in {args.output}")
    print(f"left out: {counts}; {args.output / 'report.txt'} names them" if counts else "none was left out")
    if text.kind != "none":
        from ..text.cache import FOLDER, CachedText

        cached = CachedText(args.output / FOLDER)
        print(
            f"{len(cached):,} different captions encoded by {text.kind} {text.source} in {text.dtype}".replace(
                "  ", " "
            )
        )
    print(f"to train: ditwright train RECIPE --data.source {args.output}")
    return 0


def check(folder: Path) -> int:
    """Compare every shard with its checksum, those of captions too."""
    from itertools import chain

    from tqdm import tqdm

    from ..data.shards import Shards, read_index, verify
    from ..text import cache

    captions = folder / cache.FOLDER
    encoded = cache.verify(captions) if (captions / cache.INDEX).is_file() else ()
    total = len(read_index(folder).shards)
    checks = chain(verify(folder), encoded)
    found = dict(tqdm(checks, total=total, unit="shard", disable=not sys.stderr.isatty()))
    if bad := [name for name, good in found.items() if not good]:
        raise UserError(
            f"{len(bad)} of {len(found)} shards in {str(folder)!r} are missing or not as they were written: "
            f"{', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}; delete them and run the same `ditwright prepare` "
            "again: only they are made anew"
        )
    shards = f"{total:,} shard{'s' if total > 1 else ''}"
    of_captions = f", and {len(found) - total:,} of captions" if encoded else ""
    print(f"{len(Shards(folder)):,} pictures in {shards}{of_captions}: every byte is as it was written")
    return 0
