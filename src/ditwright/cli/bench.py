"""ditwright bench DiT-S/2: how fast this device runs and trains networks, beside what it can do at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, lookup
from ..model.baseline import NetConfig
from ..model.config import DiTConfig
from .info import NETWORKS, sizes
from .main import Parser

if TYPE_CHECKING:
    from ..bench import Bench, Report

DEFAULT = "DiT-S/2"
BATCH = {"cpu": 4, "cuda": 64}  # unless told, by device


def run(words: list[str]) -> int:
    args = parser().parse_args(words)
    names = tuple(dict.fromkeys(args.preset)) or (DEFAULT,)
    configs = {name: lookup("preset", name, NETWORKS) for name in names}
    spaces = {name: sizes(name, args.image_size)[1] for name in names}
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise UserError(f"--json takes a file in a folder that is there; got {str(args.json)!r}")

    from ..bench import Bench, Subject
    from ..files import whole_file
    from ..pipeline import best_device
    from ..train.precision import resolve

    device = best_device()
    batch_size = BATCH[device.type] if args.batch_size is None else args.batch_size
    texts = {name: args.text_tokens * hears_text(configs[name]) for name in names}
    subjects = {name: Subject(configs[name], tuple(spaces[name]), texts[name]) for name in names}
    bench = Bench(subjects, resolve(args.precision, device), batch_size, args.rounds, args.seconds)
    report = measured(bench, device)
    if args.json:
        with whole_file(args.json) as half:
            half.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    print(as_text(report))
    return 0


def hears_text(config: NetConfig) -> bool:
    """Whether text comes to it as tokens."""
    return isinstance(config, DiTConfig) and config.text_width > 0


def parser() -> Parser:
    """The options."""
    made = Parser(
        prog="ditwright bench",
        description="Time forward passes and training steps of networks, beside matrix products and copying of memory.",
    )
    add = made.add_argument
    add("preset", nargs="*", help=f"any of: {', '.join(NETWORKS)} (default: {DEFAULT})")
    add("--image-size", type=int, nargs="+", default=[256], metavar="N", help="pixels: side, or height width")
    add("--text-tokens", type=int, default=77, metavar="N", help="of networks that hear text (default: 77)")
    add("--batch-size", type=int, metavar="N", help=f"(default: {BATCH['cpu']}, on a GPU {BATCH['cuda']})")
    add(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of matrix products (default: auto, what is faster here)",
    )
    add("--rounds", type=int, default=5, metavar="N", help="in each of which everything has its turn (default: 5)")
    add("--seconds", type=float, default=1.0, metavar="S", help="of every turn, at least (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write all numbers there as well")
    return made


def measured(bench: Bench, device: Any) -> Report:
    """The measurement, with a bar where a person looks on."""
    from tqdm import tqdm

    from ..bench import measure, steps

    with tqdm(total=steps(bench, device), disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False) as bar:

        def tell(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        return measure(bench, device, tell)


def as_text(report: Report) -> str:
    """The report for a terminal."""
    from ..scaling.tables import Table, brief

    facts, bench = report.as_dict(), report.bench
    where = facts["device"] if facts["device"] == facts["processor"] else f"{facts['device']} ({facts['processor']})"
    products = ", ".join(f"{brief(flops / 1e12)} TFLOP/s in {name}" for name, flops in report.products.items())
    rows = [
        (
            f"{row['network']}, {row['pass']}",
            *(brief(row["samples_per_second"][which]) for which in ("median", "min", "max")),
            brief(row["tflops"]),
            f"{row['share_of_ceiling']:.1%}",
        )
        for row in facts["results"]
    ]
    lines = [
        f"{where}, {facts['threads']} threads, torch {facts['torch']}, {facts['date']}",
        f"{facts['load_before']:.1f} other processes wanted one of {facts['cores']} cores in the minute before",
        f"ceilings: matrix products {products}; copying {brief(report.copying / 1e9)} GB/s, read and written",
        f"batches of {bench.batch_size} in {bench.precision}, {bench.rounds} rounds in turns of {bench.seconds:g} s",
        "",
        Table(("network", "samples/s", "min", "max", "TFLOP/s", "of ceiling"), rows).as_text(),
        "",
        f"Medians over rounds. The ceiling is that of products in {bench.precision}. Counted are the network's own",
        "operations, backward as twice forward; a training step is that of `ditwright train`, with AdamW and average.",
    ]
    return "\n".join(lines)
