"""ditwright bench DiT-S/2: networks beside diffusers, a plain DiT, and what this machine can do at all."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from ..errors import UserError, lookup
from ..model.baseline import NetConfig
from ..model.config import DiTConfig
from .info import NETWORKS, sizes
from .main import VERBS, Parser, main

if TYPE_CHECKING:
    from ..bench.plan import Plan
    from ..bench.report import Report

DEFAULT = "DiT-S/2"
BATCH = {"cpu": 4, "cuda": 64}  # unless told, by device
PEERS = ("ditwright", "plain", "diffusers")
CASES = ("forward", "step", "sampling", "tokens", "batch", "decode", "loader", "startup")
WRITTEN = ("json", "markdown")


def run(words: list[str]) -> int:
    args = parser().parse_args(words)
    names = tuple(dict.fromkeys(args.preset)) or (DEFAULT,)
    configs = {name: lookup("preset", name, NETWORKS) for name in names}
    spaces = {name: sizes(name, args.image_size)[1] for name in names}
    if args.text_tokens < 0:
        raise UserError(f"--text-tokens is at least 0; got {args.text_tokens}")
    files = {option: path for option in WRITTEN if (path := getattr(args, option))}
    check_files(files)

    import torch

    from ..pipeline import best_device

    device = best_device() if args.device == "auto" else torch.device(args.device)
    kept: list[Report] = []
    try:
        kept.append(measured(plan_of(args, configs, spaces, device.type), device, kept.append))
    finally:  # Ctrl-C too leaves what was measured before it
        if kept:
            tell(kept[-1], files)
    return 0


def check_files(files: Mapping[str, Path]) -> None:
    """UserError, before anything is measured, for those that could not be written afterwards."""
    for option, path in files.items():
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise UserError(f"--{option} takes a file in a folder that is there; got {str(path)!r}")
        try:
            with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
                ...
        except OSError as error:
            raise UserError(
                f"--{option} takes a file that can be written; got {str(path)!r}: {error.strerror}"
            ) from error
    if len({path.resolve() for path in files.values()}) < len(files):
        raise UserError(f"--json and --markdown take a file each; got {str(files['json'])!r} for both")


def tell(report: Report, files: Mapping[str, Path]) -> None:
    """Write it and print it."""
    from ..files import whole_file

    page = report.as_markdown()
    texts = {"json": json.dumps(report.as_dict(), indent=1) + "\n", "markdown": page}
    for option, path in files.items():
        with whole_file(path) as half:
            half.write_text(texts[option])
    print(page, end="")


def parser() -> Parser:
    """The options."""
    made = Parser(
        prog="ditwright bench",
        description="Time networks beside diffusers and a plain DiT with the same weights, in turns, after checking "
        "that all give the same; and beside the machine's matrix products. What cannot be measured here is a row that "
        "says why.",
    )
    add = made.add_argument
    add("preset", nargs="*", help=f"any of: {', '.join(NETWORKS)} (default: {DEFAULT})")
    add("--cases", nargs="+", choices=CASES, default=["forward", "step"], help="(default: forward step)")
    add("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="(default: all)")
    add(
        "--precision",
        nargs="+",
        choices=("fp32", "bf16"),
        default=["fp32", "bf16"],
        help="of matrix products; peers compute bf16 by autocast, and with their weights in it (default: both)",
    )
    add("--compile", action="store_true", help="each compiled too: ours by blocks, peers as a whole; takes minutes")
    add("--graphs", action="store_true", help="ours sample with CUDA graphs too")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto, a GPU where there is one)")
    add("--image-size", type=int, nargs="+", default=[256], metavar="N", help="pixels: side, or height width")
    add("--text-tokens", type=int, default=77, metavar="N", help="of networks that hear text (default: 77)")
    add("--batch-size", type=int, metavar="N", help=f"(default: {BATCH['cpu']}, on a GPU {BATCH['cuda']})")
    add("--num-inference-steps", type=int, default=50, metavar="N", help="of sampling (default: 50)")
    add("--rounds", type=int, default=5, metavar="N", help="in each of which everything has its turn (default: 5)")
    add("--seconds", type=float, default=1.0, metavar="S", help="of every turn, at least (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write all numbers there")
    add("--markdown", type=Path, metavar="FILE", help="write there what is printed")
    return made


def plan_of(args: Namespace, configs: dict[str, NetConfig], spaces: dict[str, list[int]], device: str) -> Plan:
    """What the options ask for."""
    from ..bench.plan import Plan
    from ..bench.subject import Subject

    texts = {name: args.text_tokens * hears_text(config) for name, config in configs.items()}
    return Plan(
        {name: Subject(config, tuple(spaces[name]), texts[name]) for name, config in configs.items()},
        cases=tuple(dict.fromkeys(args.cases)),
        peers=tuple(dict.fromkeys(args.peers)),
        precisions=tuple(dict.fromkeys(args.precision)),
        compiled=args.compile,
        graphs=args.graphs,
        batch_size=BATCH[device] if args.batch_size is None else args.batch_size,
        steps=args.num_inference_steps,
        rounds=args.rounds,
        seconds=args.seconds,
        commands=commands(),
    )


def commands() -> dict[str, Callable[[], object]]:
    """Those whose start is timed; each can be sent to another process."""
    found: dict[str, Callable[[], object]] = {"import ditwright": partial(importlib.import_module, "ditwright")}
    found["ditwright --help"] = partial(main, ["--help"])
    return found | {f"ditwright {verb} --help": partial(main, [verb, "--help"]) for verb in VERBS}


def hears_text(config: NetConfig) -> bool:
    """Whether text comes to it as tokens."""
    return isinstance(config, DiTConfig) and config.text_width > 0


def measured(plan: Plan, device: Any, keep: Callable[[Report], object]) -> Report:
    """The measurement, with a bar where a person looks on. `keep`: as measure has it."""
    from tqdm import tqdm

    from ..bench.measure import measure

    shape = "{elapsed} {postfix}"  # how much there is to do depends on what can be done here
    with tqdm(disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False, bar_format=shape) as bar:

        def tell(what: str) -> None:
            bar.set_postfix_str(what)

        return measure([plan], device, tell=tell, keep=keep)
