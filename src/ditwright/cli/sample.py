"""ditwright sample RUN_OR_CHECKPOINT: a PNG per sample and a grid, the settings inside each PNG."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import merge
from ..errors import UserError
from .main import Parser


def parser() -> Parser:
    """The options; those of SampleConfig have its names and are read by its reader."""
    made = Parser(
        prog="ditwright sample",
        usage="ditwright sample RUN_OR_CHECKPOINT [options]",
        description="Draw pictures; the checkpoint knows everything not given.",
    )
    add = made.add_argument
    add("checkpoint", type=Path, help="run folder (its newest checkpoint) or checkpoint folder")
    add("--class-labels", nargs="+", metavar="LABEL", help="numbers or names, one sample each (default: every class)")
    add("--num-images", type=int, metavar="N", help="how many, where the network has no classes (default: 16)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the pictures (default: samples/)",
        default=Path("samples"),
    )
    add("--seed", type=int, default=0, metavar="S", help="sample i of a seed is always the same picture (default: 0)")
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels (default: as trained)")
    add("--sampler", metavar="NAME", help="ddpm, ddim, euler, heun, dpmpp_2m, sde")
    add("--num-inference-steps", metavar="N")
    add("--guidance-scale", metavar="W", help="1: no guidance")
    add(
        "--guidance-interval",
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="times at which guidance is on, 0 data ... 1 noise",
    )
    add("--guidance-rescale", metavar="PHI")
    add("--guidance-channels", metavar="N", help="guide only the first N channels (the original DiT: 3)")
    add("--clip", metavar="LIMIT", help="keep the estimate of the clean sample within LIMIT of 0 (pixels: 1)")
    add("--batch-size", metavar="N")
    return made


def run(words: list[str]) -> int:
    args = vars(parser().parse_args(words))

    from tqdm import tqdm

    from ..pictures import grid, save_png, to_pil
    from ..pipeline import Pipeline, best_device, find_checkpoint

    folder = find_checkpoint(args["checkpoint"])
    if not 0 <= args["seed"] < 2**63:
        raise UserError(f"--seed must be a whole number from 0 to 2^63 - 1; got {args['seed']}")
    pipe = Pipeline.from_pretrained(folder, best_device())
    fields = asdict(pipe.card.sample)
    config = merge(pipe.card.sample, {key: args[key] for key in fields if args.get(key) is not None})
    labels = pipe.labels(asked_labels(args["class_labels"], pipe.card.model.num_classes, args["num_images"]))
    named = [label if pipe.card.model.num_classes else None for label in labels]
    pipe.plan(config, args["size"])  # what cannot be done is refused before any work
    output: Path = args["output"]
    output.mkdir(parents=True, exist_ok=True)
    total = config.num_inference_steps * -(-len(named) // config.batch_size)
    with tqdm(total=total, unit="step", disable=not sys.stderr.isatty()) as bar:
        pictures = pipe(named, seed=args["seed"], size=args["size"], progress=bar.update, **asdict(config))

    facts = {"checkpoint": str(folder), "seed": args["seed"], **asdict(config), "size": list(pictures.shape[1:3])}
    for i, (picture, label) in enumerate(zip(pictures, named, strict=True)):
        name = f"seed{args['seed']}-{i:05d}" + ("" if label is None else f"-class{label}")
        of_class = {"class_label": label, "class_name": pipe.class_name(label)}
        save_png(to_pil(picture), output / f"{name}.png", {**facts, "index": i, **of_class})
    save_png(grid(pictures), output / "grid.png", {**facts, "class_labels": named})
    print(f"{len(pictures)} pictures and grid.png in {output}")
    return 0


def asked_labels(given: list[str] | None, classes: int, count: int | None) -> list[Any]:
    """The labels given; or each of at most 16 classes; or as many samples as asked where there are no classes."""
    if (classes or given) and count is not None:
        raise UserError("--num-images is for networks without classes; give --class-labels, one for each picture")
    if count is not None and count < 1:
        raise UserError(f"--num-images must be at least 1; got {count}")
    if given:
        return given
    return list(range(min(classes, 16))) if classes else [None] * (count or 16)
