"""ditwright sample CHECKPOINT: a PNG per sample and a grid, the settings inside each PNG; or a set for FID."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import merge
from ..diffusion.config import SampleConfig
from ..errors import UserError
from .main import Parser
from .notes import noted, say

if TYPE_CHECKING:
    import numpy as np

    from ..pipeline import Pipeline

NAMES = ("fp32", "bf16", "fp16")  # those of dtypes.py, which imports torch
FAST = ("precision", "compile", "graphs")  # how the network is laid out
WORDS = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3")
WORDS += ("max_sequence_length",)
EPILOG = (
    "A set for FID on 8 GPUs: torchrun --nproc-per-node 8 -m ditwright sample CHECKPOINT --num-fid-samples 50000. "
    "Pictures sooner on 2: torchrun --nproc-per-node 2 -m ditwright sample CHECKPOINT --guidance-parallel"
)


def parser() -> Parser:
    """The options; those of SampleConfig have its names and are read by its reader."""
    made = Parser(
        prog="ditwright sample",
        usage="ditwright sample CHECKPOINT [options]",
        description="Draw pictures; the checkpoint knows everything not given.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("checkpoint", help="run folder (its newest checkpoint), checkpoint, weights of another project, hub name")
    add("--family", metavar="NAME", help="of another project's weights, where they do not tell: dit, sit, ...")
    add("--heads", type=int, metavar="N", help="of such weights' attention, where they do not tell")
    add("--codec", default="", metavar="PLACE", help="folder or hub name of the autoencoder (default: as trained)")
    add("--text-encoder", metavar="PLACE", help="folder or hub name of the text encoder (default: as told)")
    add("--text-drop", nargs="+", metavar="NAME", help="SD3's text encoders to do without: clip_l, clip_g, t5")
    add("--revision", default="", metavar="R", help="branch, tag or commit of a hub name")
    add("--prompt", nargs="+", metavar="TEXT", help="of a network that hears text, one sample each")
    add("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    for i in (2, 3):
        add(f"--prompt-{i}", nargs="+", metavar="TEXT", help=f"what text encoder {i} of SD3 or FLUX hears instead")
        add(f"--negative-prompt-{i}", metavar="TEXT", help="and is led away from")
    add("--max-sequence-length", type=int, metavar="N", help="tokens of T5, or of the one encoder (default: as told)")
    add("--class-labels", nargs="+", metavar="LABEL", help="numbers or names, one sample each (default: every class)")
    add("--num-images", type=int, metavar="N", help="how many, where the network has no classes (default: 16)")
    add("--num-images-per-prompt", type=int, metavar="N", help="of each label (default: 1)")
    add("--output", type=Path, default=Path("samples"), metavar="DIR", help="for the pictures (default: samples/)")
    add("--seed", type=int, default=0, metavar="S", help="sample i of a seed is always the same picture (default: 0)")
    add("--height", type=int, metavar="PIXELS", help="(default: as trained)")
    add("--width", type=int, metavar="PIXELS")
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="both")
    add("--precision", choices=("auto", *NAMES), help="of matrix products (default: fp32); auto: what is faster here")
    add("--compile", action="store_true", help="each block of the network, which takes a while at first")
    add("--graphs", action="store_true", help="all blocks as one CUDA graph, for a GPU that waits for the CPU")
    add("--dtype", choices=NAMES, default="fp32", help="of all of the network; the sampler stays in fp32")
    add("--vae-tiling", action="store_true", help="decode large pictures in tiles, to need less memory")
    add("--film-strip", type=int, metavar="N", help="also N previews of each picture, from noise on, as a strip")
    add(
        "--num-fid-samples", type=int, metavar="N", help="in place of PNGs a set of N, its classes drawn: samples_N.npz"
    )
    captions = "what it hears in turn, where the network hears text: a captioned data set, or a file of a prompt a line"
    add("--captions", metavar="SOURCE", help=captions)
    add("--fid-batch-size", metavar="N", help="samples that a process draws together (default: --batch-size)")
    add("--sampler", metavar="NAME", help="ddpm, ddim, euler, heun, dpmpp_2m, sde")
    add("--num-inference-steps", metavar="N")
    add("--guidance-scale", metavar="W", help="1: no guidance")
    interval = ("LOW", "HIGH")
    add("--guidance-interval", nargs=2, metavar=interval, help="times of guidance, 0 data ... 1 noise")
    add("--guidance-rescale", metavar="PHI")
    add("--guidance-channels", metavar="N", help="guide only the first N channels (the original DiT: 3)")
    add("--true-cfg-scale", metavar="W", help="where a network imitates guidance: away from a negative prompt as well")
    add("--skip-guidance-layers", metavar="N,N", help="blocks, from 0, to lead away from the lack of")
    add("--skip-layer-guidance-scale", metavar="W", help="and how far (default: 2.8)")
    add("--skip-layer-guidance-start", metavar="SHARE", help="of the steps, after which that begins (default: 0.01)")
    add("--skip-layer-guidance-stop", metavar="SHARE", help="of the steps, before which it has ended (default: 0.2)")
    add("--clip", metavar="LIMIT", help="keep the estimate of the clean sample within LIMIT of 0 (pixels: 1)")
    add("--use-clipped-model-output", metavar="BOOL", help="and the noise in agreement with it")
    add("--timestep-spacing", metavar="NAME", help="of a table's steps: auto, leading, trailing, linspace (SD3's too)")
    add("--steps-offset", metavar="N", help="of leading steps")
    add("--shift", metavar="S", help="of the times: above 1 more steps at high noise (paths without a table)")
    add("--dynamic-shift", metavar="A,B,N,M", help="or by size, exp(A) at N patches to exp(B) at M; none: neither")
    add("--set-alpha-to-one", metavar="BOOL", help="ddim ends at the clean sample, not at the table's first step")
    add("--use-resolution-binning", metavar="BOOL", help="draw at PixArt's size of the nearest ratio, then resize")
    add("--batch-size", metavar="N", help="samples that the network sees at once")
    on = {"action": "store_const", "const": True}
    add("--guidance-parallel", **on, help="pictures: two processes, with the condition and without it")
    add("--sequence-parallel", type=int, metavar="N", help="pictures: N processes, a part of the tokens each")
    return made


def run(words: list[str]) -> int:
    args = vars(parser().parse_args(words))
    if not 0 <= args["seed"] < 2**63:
        raise UserError(f"--seed must be a whole number from 0 to 2^63 - 1; got {args['seed']}")
    if args["size"] and (args["height"] or args["width"]):
        raise UserError("give --size, or --height and --width")
    fid = args["num_fid_samples"] is not None
    pictures_only = (*WORDS, "class_labels", "num_images", "num_images_per_prompt", "film_strip")
    pictures_only += ("guidance_parallel", "sequence_parallel")
    if fid and (wrong := [name for name in pictures_only if args[name] is not None]):
        known = "a set for FID draws its classes, or hears --captions"
        raise UserError(f"--{wrong[0].replace('_', '-')} is for pictures; {known}")
    if not fid and (wrong := [name for name in ("fid_batch_size", "captions") if args[name] is not None]):
        raise UserError(f"--{wrong[0].replace('_', '-')} goes with --num-fid-samples")

    from ..dtypes import DTYPES
    from ..pipeline import Pipeline, best_device
    from ..pipeline.folder import resolved
    from ..pipeline.prompts import dropping

    name = resolved(args["checkpoint"])
    places = {key: args[key] for key in ("family", "heads", "codec", "revision")}
    dtype = DTYPES[args["dtype"]]
    with noted():
        encoder = args["text_encoder"]
        pipe = Pipeline.from_pretrained(name, device=best_device(), dtype=dtype, encoder=encoder, **places)
        if args["text_drop"]:
            pipe.encoder = dropping(pipe.encoder, args["text_drop"]).to(pipe.device, pipe.dtype)
    if args["vae_tiling"]:
        if pipe.card.codec.kind in ("auto", "pixels"):
            raise UserError("--vae-tiling is for autoencoders; this checkpoint is of pixels")
        pipe.codec.enable_tiling()
    given = {key: args[key] for key in SampleConfig.__dataclass_fields__ if args[key] is not None}
    if args["fid_batch_size"] is not None:
        given["batch_size"] = args["fid_batch_size"]
    config = merge(pipe.card.sample, given)
    size = pipe.size(*(args["size"] or (args["height"], args["width"])))
    pipe.plan(config, size)  # what cannot be done is refused before any work
    places |= {key: args[key] for key in ("text_encoder", "text_drop")}
    origin = {"checkpoint": name} | {key: value for key, value in places.items() if value}
    return (fid_set if fid else pictures)(pipe, config, size, args, origin)


def laid_out(pipe: Pipeline, args: dict[str, Any], origin: dict[str, Any]) -> Pipeline:
    """The pipeline that draws, its network laid out for sampling, which `origin` hears of; or cast whole by --dtype."""
    if args["dtype"] != "fp32":
        if any(args[name] for name in FAST):
            raise UserError("--dtype casts all of the network as it is: without --precision, --compile and --graphs")
        return pipe
    from ..train.precision import in_software, resolve

    precision = resolve(args["precision"] or "fp32", pipe.device)
    if line := in_software(precision, pipe.device):
        say(f"note: {line}")
    made = pipe.ready(precision, compiled=args["compile"], graphs=args["graphs"])
    origin |= {"precision": precision} | {name: True for name in FAST[1:] if args[name]}
    return made


def pictures(
    pipe: Pipeline, config: SampleConfig, size: tuple[int, int], args: dict[str, Any], origin: dict[str, Any]
) -> int:
    """A PNG per sample, a grid of all, and film strips where they are asked for; alone, or with other processes."""
    from ..pipeline.fid import place

    guidance, sequence = bool(args["guidance_parallel"]), args["sequence_parallel"]
    if not guidance and sequence is None:
        if place()[1] > 1:
            raise UserError(
                "several processes draw a set, with --num-fid-samples; pictures are for one, or for several that share "
                "the work, with --guidance-parallel and --sequence-parallel"
            )
        return kept(laid_out(pipe, args, origin), config, size, args, origin)
    if any(args[name] for name in FAST):
        known = "are for networks that one process runs; processes share plain ones"
        raise UserError(f"--precision, --compile and --graphs {known}")
    if args["dtype"] == "fp32":
        origin["precision"] = "fp32"

    from ..pipeline.shared import shared
    from ..train.parallel import join

    world = join()
    try:
        pipe = shared(pipe, world, config, guidance=guidance, sequence=1 if sequence is None else sequence)
        return kept(pipe, config, size, args, origin, main=world.main)
    finally:
        world.leave()


def kept(
    pipe: Pipeline,
    config: SampleConfig,
    size: tuple[int, int],
    args: dict[str, Any],
    origin: dict[str, Any],
    *,
    main: bool = True,
) -> int:
    """Draw the pictures, and where this is the `main` process keep them."""
    from tqdm import tqdm

    from ..pictures import grid, save_png, sheet, to_pil
    from ..pipeline.asks import hears_text, wordless
    from ..pipeline.labels import repeated
    from ..pipeline.prompts import negatives

    named = repeated(asked(pipe, args), 1 if args["num_images_per_prompt"] is None else args["num_images_per_prompt"])
    away = negatives(args["negative_prompt"], args["negative_prompt_2"], args["negative_prompt_3"])
    told = {"negative_prompt": away, "max_sequence_length": args["max_sequence_length"]}
    told = {name: value for name, value in told.items() if value is not None}
    if not main:
        with noted(quiet=True):
            for _ in pipe.steps(named, seed=args["seed"], size=size, **told, **asdict(config)):
                pass  # the work is shared; what comes out is the other process's to keep
        return 0
    texts = hears_text(pipe.card.model)
    for line in wordless(named) if texts else ():
        say(f"note: {line}")
    shown = chosen(config.num_inference_steps, args["film_strip"])
    output: Path = args["output"]

    def progress(steps: int) -> None:
        output.mkdir(parents=True, exist_ok=True)  # now that something can be drawn
        bar.update(steps)

    with noted(), tqdm(total=config.num_inference_steps, unit="step", disable=not sys.stderr.isatty()) as bar:
        images, film = drawn(pipe, named, shown, progress, seed=args["seed"], size=size, **told, **asdict(config))

    facts = {**origin, "seed": args["seed"], **told, **asdict(config)}
    facts |= {"size": list(images.shape[1:3]), "dtype": args["dtype"]}
    for i, (image, label) in enumerate(zip(images, named, strict=True)):
        of_class: dict[str, Any] = {"prompt": label}
        name = f"seed{args['seed']}-{i:05d}"
        if not texts:
            of_class = {"class_label": label, "class_name": pipe.class_name(label)}
            name += "" if label is None else f"-class{label}"
        save_png(to_pil(image), output / f"{name}.png", {**facts, "index": i, **of_class})
        if film:
            strip = sheet([[clean[i] for _, clean in film]], column_names=[f"t={t:.2f}" for t, _ in film])
            save_png(strip, output / f"{name}-film.png", {**facts, "index": i, **of_class})
    save_png(grid(images), output / "grid.png", {**facts, "prompts" if texts else "class_labels": named})
    strips = " with their film strips" if film else ""
    print(f"{len(images)} pictures{strips} and grid.png in {output}")
    return 0


def drawn(
    pipe: Pipeline, labels: list[Any], shown: list[int], progress: Callable[[int], Any], **settings: Any
) -> tuple[np.ndarray, list[tuple[float, np.ndarray]]]:
    """Samples (N, H, W, C), and previews of the clean samples at some of the steps, each with its time."""
    from ..pipeline.output import sized, with_weights

    codec, film = sized(with_weights(pipe.codec), settings["size"]), []
    for i, step in enumerate(pipe.steps(labels, **settings)):
        progress(1)
        if i in shown:
            film.append((step.t.item(), codec.decode(step.x0)))
    return codec.decode(step.x), film


def chosen(steps: int, count: int | None) -> list[int]:
    """Which steps a film strip of so many pictures shows, first and last among them."""
    if count is None:
        return []
    if count < 2:
        raise UserError(f"--film-strip needs at least 2 previews; got {count}")
    return sorted({round(i * (steps - 1) / (count - 1)) for i in range(count)})


def asked(pipe: Pipeline, args: dict[str, Any]) -> list[Any]:
    """What each picture is asked for: prompts where the network hears text, else classes; None where neither."""
    from ..pipeline.asks import hears_text
    from ..pipeline.prompts import together

    if hears_text(pipe.card.model):
        if args["class_labels"] or args["num_images"]:
            raise UserError("this network hears text: give --prompt, and --num-images-per-prompt for more of each")
        if not args["prompt"]:
            raise UserError("this network hears text: give --prompt TEXT; an empty one is nothing in particular")
        return together(args["prompt"], args["prompt_2"], args["prompt_3"])
    if wrong := [name for name in WORDS if args[name]]:
        raise UserError(f"--{wrong[0].replace('_', '-')} is for networks that hear text; give --class-labels")
    labels = pipe.labels(asked_labels(args["class_labels"], pipe.card.model.num_classes, args["num_images"]))
    return [label if pipe.card.model.num_classes else None for label in labels]


def asked_labels(given: list[str] | None, classes: int, count: int | None) -> list[Any]:
    """The labels given; or each of at most 16 classes; or as many samples as asked where there are no classes."""
    if (classes or given) and count is not None:
        raise UserError("--num-images is for networks without classes; give --class-labels, one for each picture")
    if count is not None and count < 1:
        raise UserError(f"--num-images must be at least 1; got {count}")
    if given:
        return given
    return list(range(min(classes, 16))) if classes else [None] * (count or 16)


def fid_set(
    pipe: Pipeline, config: SampleConfig, size: tuple[int, int], args: dict[str, Any], origin: dict[str, Any]
) -> int:
    """A set of samples in ADM's format, this process's share of it."""
    from ..data.prompts import prompts_from
    from ..pipeline.fid import Order, draw_set, place
    from ..text.cuts import cuts_told_once

    count = args["num_fid_samples"]
    prompts = None if args["captions"] is None else prompts_from(args["captions"], count)
    fast = laid_out(pipe, args, origin)
    order = Order(pipe, args["output"], count, config, args["seed"], size, origin, prompts, drawn_by=fast)
    rank, world = place()
    quiet = rank > 0
    with cuts_told_once(lambda line: say(line, quiet)), told(order.count, quiet) as progress:
        made = draw_set(order, rank, world, progress=progress)
    if made is not None:
        print(f"{order.count} samples in {made}")
    return 0


@contextmanager
def told(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Says how many samples are there and how long the rest will take: a bar, or a line a minute into a log."""
    from tqdm import tqdm

    start = last = time.monotonic()
    began: int | None = None
    with tqdm(total=total, unit="sample", disable=quiet or not sys.stderr.isatty()) as bar:

        def progress(done: int) -> None:
            nonlocal began, last
            if began is None:
                began = bar.initial = done
            bar.n = done
            bar.refresh()
            now = time.monotonic()
            if bar.disable and not quiet and now > last + 60:
                last, rate = now, (done - began) / (now - start)
                left = tqdm.format_interval((total - done) / rate) if rate else "?"
                say(f"{done:,} of {total:,} samples, {rate:.1f}/s, {left} left")

        yield progress
