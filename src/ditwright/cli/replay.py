"""ditwright replay RUN --step N: do one step of a run again, and see what each sample of its batch lost."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .main import Parser

if TYPE_CHECKING:
    from ..replay import Replay, Sample

EPILOG = """
A step is a function of the weights before it, the seed and its number. They are those of the nearest checkpoint before
the step (log.keep says how many there are) and the steps since then done again, in memory; nothing is written.
It runs in one process. The loss is the logged one to the digit for a run of one process on the same kind of CPU, to
rounding for others.
"""
SORTS = ("loss", "place", "t")


def run(words: list[str]) -> int:
    args = parser().parse_args(words)

    from ..replay import MOST, replay
    from ..train.log import say

    most = MOST if args.most is None else args.most
    found = replay(
        args.run, args.step, recompute=not args.from_checkpoint, checkpoint=args.checkpoint, most=most, say=say
    )
    samples = ordered(found, args.sort)
    print(json.dumps(as_json(found, samples), indent=1) if args.json else as_text(found, samples))
    return 0


def parser() -> Parser:
    """The options."""
    parser = Parser(
        prog="ditwright replay",
        description="Do one step of a run again, and print what each sample of its batch lost.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--step", type=int, required=True, metavar="N", help="the step, 1 first, as metrics.jsonl has it"
    )
    parser.add_argument(
        "--sort", choices=SORTS, default="loss", help="loss: highest first (default); place: as trained"
    )
    parser.add_argument(
        "--from-checkpoint", action="store_true", help="take the checkpoint's weights as they are: fast, another loss"
    )
    parser.add_argument(
        "--checkpoint", type=int, metavar="STEP", help="begin with this one, not with the nearest; 0: anew"
    )
    parser.add_argument("--most", type=int, metavar="N", help="steps to do again at most (default: 1000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def ordered(found: Replay, sort: str) -> list[Sample]:
    """The samples in an order that SORTS names; a loss that is no number comes first."""
    if sort == "loss":
        return sorted(found.samples, key=lambda s: -math.inf if math.isnan(s.loss) else -s.loss)
    if sort == "t":
        return sorted(found.samples, key=lambda s: -1.0 if s.t is None else s.t)
    return list(found.samples)


def as_json(found: Replay, samples: list[Sample]) -> dict[str, Any]:
    """All of it as plain data; what is no number as text, since JSON has no word for it."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    told = {key: plain(value) for key, value in asdict(found).items() if key != "samples"}
    rows = [{key: plain(value) for key, value in asdict(sample).items()} for sample in samples]
    return told | {"run": str(found.run), "same_weights": found.same_weights, "samples": rows}


def as_text(found: Replay, samples: list[Sample]) -> str:
    """The facts, and a table of the samples."""
    norm = "" if found.grad_norm is None else f", gradient norm {found.grad_norm:.6g}"
    lines = [f"step {found.step} of {found.run}: loss {found.loss!r} of {len(samples)} samples{norm}{compared(found)}"]
    lines += [f"weights: {weights(found)}"]
    lines += [found.flaw] if found.flaw else []
    captioned = any(sample.caption is not None for sample in samples)
    heads = ("loss", "t", "item", "place", "caption" if captioned else "class", "")
    rows = [heads, *map(cells, samples)]
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    for row in rows:
        parts = [row[i].rjust(widths[i]) if i < 4 else row[i].ljust(widths[i]) for i in kept]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def compared(found: Replay) -> str:
    """How the loss agrees with the run's own note of it."""
    if found.logged is None:
        return "; this step was not logged"
    if found.logged == found.loss:
        return "; logged was the same to the digit"
    return f"; logged was {found.logged!r}, {found.loss - found.logged:+.2g} from here"


def weights(found: Replay) -> str:
    """Which weights were used, in words."""
    begun = f"the checkpoint of step {found.checkpoint}" if found.checkpoint else "the run's first weights"
    if found.weights == found.checkpoint:
        exact = "those that the step had" if found.same_weights else f"not those of step {found.step - 1} that it had"
        return f"of step {found.weights}, {begun}: {exact}"
    count = found.weights - found.checkpoint
    return f"of step {found.weights}, {begun} and {count} step(s) done again: those that the step had"


def cells(sample: Sample) -> tuple[str, ...]:
    """A row of the table."""
    told = sample.caption if sample.caption is not None else str(sample.label) if sample.label is not None else ""
    if sample.class_name not in (None, told):
        told += f" {sample.class_name}"
    marks = [word for word, there in (("dropped", sample.dropped), ("mirrored", sample.mirrored)) if there]
    marks += [sample.name] if sample.name else []
    t = "" if sample.t is None else f"{sample.t:.4f}"
    return f"{sample.loss:.6g}", t, str(sample.item), str(sample.place), told, ", ".join(marks)
