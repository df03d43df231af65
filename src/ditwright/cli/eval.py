"""ditwright eval SAMPLES --ref REF: the metrics that papers report; eval ref, eval judge, eval scenes: see below."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import merge
from ..diffusion.config import SampleConfig
from ..errors import UserError, lookup
from ..extras import at_revision
from .main import Parser
from .sample import NAMES, told

if TYPE_CHECKING:
    from ..metrics.features import Extractor
    from ..train.parallel import World

EXTRACTOR = "inception:FILE, inception-pytorch-fid:FILE, dinov2:FOLDER_OR_NAME, clip:FOLDER_OR_NAME or judge:FILE"
EPILOG = """
SAMPLES is an .npz with arr_0 (as ditwright sample --num-fid-samples and ADM write it), a folder of pictures, the name
of a data set; or a run, a checkpoint, weights of another project: then samples are drawn first, as --preset says, and
kept in --draws, from where the same command takes them again.
REF is an .npz of statistics (ADM's, or of ditwright eval ref), an .npz with arr_0, a folder, or a data set.

  ditwright eval ref SOURCE --extractor E --output REF.npz     make a reference; --with-pictures keeps them in it
  ditwright eval judge SOURCE --output JUDGE.safetensors       train a judge of a data set that has classes
  ditwright eval scenes SAMPLES                                how much of what scenes were asked for is in them
Under torchrun every process takes its share:
  torchrun --nproc-per-node 8 -m ditwright eval RUN --preset dit-paper --ref REF.npz --extractor inception:FILE
"""


def parser() -> Parser:
    """The options; those of SampleConfig have its names and are read by its reader."""
    made = Parser(
        prog="ditwright eval",
        usage="ditwright eval SAMPLES --ref REF --extractor E [options]",
        description="Measure samples against a reference.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("samples", help="what is measured, see below")
    add("--ref", metavar="REF", help="what it is measured against, see below; not needed for is")
    _common(made)
    add("--metrics", metavar="NAMES", help="of fid,sfid,is,kid,pr,dc (default: all that extractor and REF allow)")
    add("--rounds", type=int, default=1000, metavar="N", help="of the bootstrap; 0: no intervals (default: 1000)")
    add("--features", type=int, default=50_000, metavar="N", help="kept of each set, at most (default: 50000)")
    add("--json", action="store_true", help="print JSON")
    add("--output", type=Path, metavar="FILE", help="also write the JSON here")
    drawing = made.add_argument_group("samples that are drawn", "Names as in ditwright sample.")
    add = drawing.add_argument
    add("--preset", default="plain", metavar="NAME", help="plain, dit-paper, dit-paper-unguided (default: plain)")
    add("--num-samples", type=int, metavar="N", help="(default: 10000; 50000 of dit-paper)")
    add("--draws", type=Path, default=Path("eval"), metavar="DIR", help="where they are kept (default: eval/)")
    add("--seed", type=int, default=0, metavar="S", help="of samples and bootstrap (default: 0)")
    add("--captions", metavar="SOURCE", help="what they hear in turn, where the network hears text")
    add("--family", metavar="NAME", help="of another project's weights, where they do not tell")
    add("--heads", type=int, metavar="N", help="of such weights' attention, where they do not tell")
    add("--codec", default="", metavar="PLACE", help="folder or hub name of the autoencoder (default: as trained)")
    add("--text-encoder", metavar="PLACE", help="folder or hub name of the text encoder (default: as told)")
    add("--revision", default="", metavar="R", help="branch, tag or commit of a hub name")
    add("--dtype", choices=NAMES, default="fp32", help="of the network")
    for name in SampleConfig.__dataclass_fields__:
        pair = {"nargs": 2, "metavar": ("LOW", "HIGH")} if name == "guidance_interval" else {"metavar": "VALUE"}
        add(f"--{name.replace('_', '-')}", help="(default: the preset's)", **pair)
    return made


def _common(made: Parser) -> None:
    made.add_argument("--extractor", metavar="E", help=EXTRACTOR)
    made.add_argument("--size", type=int, metavar="N", help="crop pictures of folders to N x N, as ADM does; draw so")
    made.add_argument("--feature-batch", type=int, default=64, metavar="N", help="pictures at once (default: 64)")


def run(words: list[str]) -> int:
    if words and words[0] in ("ref", "judge"):
        return (reference if words[0] == "ref" else judge)(words[1:])
    if words and words[0] == "scenes":
        from .eval_scenes import run as scenes

        return scenes(words[1:])
    args = parser().parse_args(words)
    _check(args)
    metrics = args.metrics and [name for name in args.metrics.split(",") if name]
    if args.ref is None and metrics != ["is"]:
        raise UserError("--ref is missing; the Inception Score alone (--metrics is) needs none")

    from ..evaluate import METRICS, PRESETS, evaluate, plan, reference_from

    for name in metrics or ():
        lookup("metric", name, METRICS)
    preset = lookup("preset", args.preset, PRESETS)
    count = preset.count if args.num_samples is None else args.num_samples
    with _joined(args.extractor) as (world, extractor):
        ref = None if args.ref is None else reference_from(args.ref, args.size)
        samples = args.samples
        if is_model(samples):
            plan(metrics, extractor, ref, picture=_black(), count=count)  # before hours of drawing
            samples = drawn(args, preset.config, count, world)
        elif given := _drawing_options(args):
            raise UserError(f"{given[0]} is for samples that are drawn; {samples!r} is not a run, nor weights")
        with _watching(world) as watch:
            scores = evaluate(
                samples,
                ref,
                extractor,
                metrics,
                size=args.size,
                rounds=args.rounds,
                seed=args.seed,
                keep=args.features,
                batch_size=args.feature_batch,
                world=world,
                watch=watch,
            )
    if scores is not None:
        tell(scores.plain(), scores.text(), args)
    return 0


def reference(words: list[str]) -> int:
    """ditwright eval ref."""
    made = Parser(
        prog="ditwright eval ref",
        usage="ditwright eval ref SOURCE --extractor E --output REF.npz [options]",
        description="Make a reference: mu, sigma, and mu_s, sigma_s where the extractor has spatial features.",
    )
    made.add_argument("source", help="a folder, a data set, .tar shards, hf:NAME, shards of pixels, or .npz with arr_0")
    made.add_argument("--output", type=Path, metavar="REF.npz")
    _common(made)
    made.add_argument(
        "--features", type=int, default=10_000, metavar="N", help="kept in it for kid, pr, dc (default: 10000; 0: none)"
    )
    made.add_argument("--with-pictures", action="store_true", help="keep the pictures in it too, as arr_0")
    args = made.parse_args(words)
    _check(args)
    if args.output is None or args.output.suffix != ".npz":
        raise UserError("--output takes a file that ends in .npz: ditwright eval ref SOURCE --output REF.npz")

    from ..evaluate import Reading, images_from, make_reference

    with _joined(args.extractor) as (world, extractor):
        images = images_from(args.source, args.size)
        with _watching(world) as watch:
            reading = Reading(world, args.features, args.feature_batch, watch)
            side = make_reference(images, extractor, args.output, reading, with_pictures=args.with_pictures)
    if world.main:
        print(f"{side.count:,} pictures by {extractor.name}: {args.output}")
        for line in side["moments", "pool"].cautions():
            print(f"caution: {line}")
    return 0


def judge(words: list[str]) -> int:
    """ditwright eval judge."""
    made = Parser(
        prog="ditwright eval judge",
        usage="ditwright eval judge SOURCE --output JUDGE.safetensors [options]",
        description="Train a small classifier on a data set, as an extractor for pictures that Inception never saw.",
    )
    made.add_argument("source", help="a data set with classes: a folder of class folders, a name, ...")
    made.add_argument("--output", type=Path, metavar="FILE", help="ends in .safetensors")
    made.add_argument("--size", type=int, metavar="N", help="centre-crop pictures of folders to N x N, as ADM does")
    made.add_argument("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    made.add_argument("--steps", type=int, metavar="N", help="(default: by the number and size of the pictures)")
    args = made.parse_args(words)
    if args.output is None or args.output.suffix != ".safetensors":
        raise UserError("--output takes a file that ends in .safetensors, for the judge")
    for name in ("size", "steps"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} must be at least 1; got {value}")

    from ..evaluate import labelled
    from ..metrics.judge import learn_judge
    from ..pipeline import best_device
    from ..pipeline.fid import place

    if place()[1] > 1:
        raise UserError("a judge is trained by one process; run ditwright eval judge without torchrun")
    images, labels = labelled(args.source, args.size)
    name = Path(args.source).name or args.source
    made_judge = learn_judge(images, labels, dataset=name, seed=args.seed, steps=args.steps, device=best_device())
    args.output.parent.mkdir(parents=True, exist_ok=True)
    made_judge.save(args.output)
    facts = made_judge.facts
    print(f"{made_judge.name}: {args.output}")
    print(
        f"trained on {facts.trained:,} pictures; right on {facts.accuracy:.1%} of {facts.held_out:,} that it never saw"
    )
    print(f"to use: ditwright eval SAMPLES --ref {args.source} --extractor judge:{args.output}")
    return 0


def is_model(name: str) -> bool:
    """Whether samples are to be drawn from it: a run, a checkpoint, weights of another project, or a hub name."""
    from ..data.sources import SOURCES
    from ..pipeline import CARD
    from ..pipeline.folder import is_foreign
    from ..pipeline.hub import SUFFIXES, is_hub_name

    path = Path(name).expanduser()
    if path.suffix == ".npz" or name in SOURCES:
        return False
    if path.is_dir():
        return (path / CARD).is_file() or (path / "checkpoints").is_dir() or is_foreign(path)
    return path.suffix in SUFFIXES or (not path.exists() and is_hub_name(at_revision(name)[0]))


def drawn(args: argparse.Namespace, preset: Callable[[SampleConfig], SampleConfig], count: int, world: World) -> Path:
    """A set of samples on the disk, drawn by all processes, or found where an earlier command left it."""
    from ..data.prompts import prompts_from
    from ..dtypes import DTYPES
    from ..pipeline import Pipeline
    from ..pipeline.fid import Order, draw_set
    from ..pipeline.folder import resolved

    name = world.agree(resolved(args.samples))  # the run may be going on
    places = {key: getattr(args, key) for key in ("family", "heads", "codec", "revision")}
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        dtype, encoder = DTYPES[args.dtype], args.text_encoder
        pipe = Pipeline.from_pretrained(name, device=world.device, dtype=dtype, encoder=encoder, **places)
    for note in notes if world.main else ():
        print(f"note: {note.message}", file=sys.stderr)
    given = {key: value for key in SampleConfig.__dataclass_fields__ if (value := getattr(args, key)) is not None}
    config = merge(preset(pipe.card.sample), given)
    places["text_encoder"] = args.text_encoder
    origin = {"checkpoint": name} | {key: value for key, value in places.items() if value}
    size = (args.size, args.size) if args.size else pipe.card.image_size
    prompts = None if args.captions is None else prompts_from(args.captions, count)
    order = Order(pipe, args.draws, count, config, args.seed, size, origin, prompts)
    may_move = ("checkpoint", "captions", "text_encoder")
    settings = {key: value for key, value in order.settings().items() if key not in may_move}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = args.draws / f"{Path(name).stem}-{digest[:8]}"  # other settings, another folder
    order = replace(order, output=folder)
    with told(count, quiet=not world.main) as progress:
        draw_set(order, world.rank, world.size, progress=progress)
    while not order.npz.exists():  # the last process puts it together
        time.sleep(0.1)
    return order.npz


def _drawing_options(args: argparse.Namespace) -> list[str]:
    """Options that were given and mean nothing where no samples are drawn."""
    places = ("family", "heads", "codec", "text_encoder", "revision")
    names = ("num_samples", "captions", *places, *SampleConfig.__dataclass_fields__)
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) not in (None, "")]
    return (["--preset"] if args.preset != "plain" else []) + given


def _check(args: argparse.Namespace) -> None:
    """What can be refused before anything is imported."""
    if not args.extractor:
        raise UserError(
            f"--extractor is missing: {EXTRACTOR}; ditwright eval judge REF --output FILE makes the last of them"
        )
    for name, low in {"size": 1, "feature_batch": 1, "num_samples": 1, "rounds": 0, "features": 0, "seed": 0}.items():
        if (value := getattr(args, name, None)) is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}; got {value}")


def _black() -> Any:
    """The smallest picture by which an extractor shows what it gives."""
    import numpy as np

    return np.zeros((1, 64, 64, 1), np.uint8)


@contextmanager
def _joined(name: str) -> Iterator[tuple[World, Extractor]]:
    """The processes, and the extractor on this one's device."""
    from ..metrics.extractors import extractor_from
    from ..train.parallel import join

    world = join()
    try:
        yield world, extractor_from(name, world.device)
    finally:
        world.leave()


@contextmanager
def _watching(world: World) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for every set of pictures, where a person looks."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def watch(name: str, done: int, total: int) -> None:
        if name not in bars:
            quiet = not world.main or not sys.stderr.isatty()
            bars[name] = tqdm(total=total, unit="picture", desc=name, disable=quiet)
        bars[name].update(done - bars[name].n)

    try:
        yield watch
    finally:
        for bar in bars.values():
            bar.close()


def tell(plain: dict[str, Any], text: str, args: argparse.Namespace) -> None:
    """Print one of the two as --json says, and write the JSON to --output."""
    from ..files import whole_file

    written = json.dumps(plain, indent=1)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(args.output) as half:
            half.write_text(written + "\n")
    print(written if args.json else text)
