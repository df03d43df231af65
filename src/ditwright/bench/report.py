"""What was measured, as plain data and as a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ceilings import Ceilings
from .contest import Result, Row, Variant
from .peers import OURS, PLAIN
from .rounds import ratio

TITLES = {
    "forward": "Forward pass",
    "step": "Training step",
    "sampling": "Guided sampling",
    "tokens": "Forward pass against the number of tokens",
    "batch": "Forward pass against the batch",
    "decode": "Latents to pixels",
    "loader": "Loading prepared latents",
    "startup": "Start of commands",
}
HEADER = (
    "contestant",
    "variant",
    "ms (min to max)",
    "samples/s",
    "of ceiling",
    "error",
    "times as fast as plain fp32",
    "ditwright is x times as fast",
    "compiled it is",
)
LEGEND = """\
Medians over rounds in which all have their turn, in the opposite order every other round. A share is of the largest
matrix products in the same precision, measured in the same run. An error is relative to our network in fp32, found
before anything was timed. A ratio is the median of those within a round; it is not told where 1 lies within its spread
(min to max, of 9 rounds and more the quartiles). The last two columns are beside ditwright in the same precision,
compiled where the row is, and where the row is not."""


@dataclass(frozen=True)
class Report:
    """What was measured, where and when."""

    machine: Mapping[str, Any]
    ceilings: Ceilings
    results: tuple[Result, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.machine,
            "ceilings": self.ceilings.as_dict(),
            "cases": [contest_dict(result, self.ceilings.products) for result in self.results],
        }

    def as_markdown(self) -> str:
        """A page."""
        facts = self.as_dict()
        parts = ["# Benchmark", *head(facts), *(part for case in facts["cases"] for part in section(case)), LEGEND]
        return "\n\n".join(parts) + "\n"


def contest_dict(result: Result, ceilings: Mapping[str, float]) -> dict[str, Any]:
    """A contest for JSON."""
    contest = result.contest
    return {
        "case": contest.case,
        "subject": contest.subject,
        **contest.settings,
        "rounds": contest.rounds,
        "seconds_of_a_turn": contest.seconds,
        "warm_up_calls": contest.warm,
        "largest_errors_allowed": dict(contest.limits),
        "notes": list(contest.notes),
        "unit_of_sizes": contest.unit or None,
        "rows": [row_dict(row, result.rows, ceilings) for row in result.rows],
        "exponents": exponents(result.rows),
    }


def row_dict(row: Row, rows: Sequence[Row], ceilings: Mapping[str, float]) -> dict[str, Any]:
    """A row for JSON; what is not known is None."""
    entry, variant, times = row.entry, row.entry.variant, row.times
    median = statistics.median(times) if times else None
    tflops = entry.flops / median / 1e12 if entry.flops and median else None
    ceiling = ceilings.get(variant.products) if variant else None
    return {
        "peer": entry.peer,
        "what": entry.what,
        "variant": str(variant or ""),
        "size": entry.size,
        "not_measured": row.why or None,
        "errors": dict(row.errors),
        "samples_of_a_call": entry.samples,
        "flops_of_a_call": entry.flops,
        "seconds": {"median": median, "min": min(times), "max": max(times)} if times else None,
        "rounds": list(times),
        "samples_per_second": entry.samples / median if median else None,
        "tflops": tflops,
        "share_of_ceiling": tflops * 1e12 / ceiling if tflops and ceiling else None,
        "times_as_fast_as_plain_fp32": beside(plain_of(row, rows), row),
        "ditwright_is_times_as_fast": beside(row, ours_of(row, rows)),
        "compiled_it_is": beside(row, ours_of(row, rows, compiled=True)),
    }


def beside(slow: Row | None, fast: Row | None) -> dict[str, Any] | None:
    """How many times as fast one is, from the times of both; None where there is nothing to compare."""
    if slow is None or fast is None or slow is fast or not (slow.times and fast.times):
        return None
    return ratio(slow.times, fast.times).as_dict()


def plain_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The row of the plain DiT in fp32 that did the same."""
    return next((one for one in alike(row, rows) if (one.entry.peer, one.entry.variant) == (PLAIN, Variant())), None)


def ours_of(row: Row, rows: Iterable[Row], *, compiled: bool = False) -> Row | None:
    """Our row that did the same in the same precision, compiled if it was; None where the row is ours.

    `compiled`: our compiled row beside one that was not.
    """
    variant = row.entry.variant
    if variant is None or row.entry.peer == OURS or (compiled and variant.compiled):
        return None
    same = Variant("fp32" if variant.products == "fp32" else "bf16", compiled or variant.compiled)
    return next((one for one in alike(row, rows) if (one.entry.peer, one.entry.variant) == (OURS, same)), None)


def alike(row: Row, rows: Iterable[Row]) -> Iterable[Row]:
    """Those that did the same."""
    return (one for one in rows if (one.entry.what, one.entry.size) == (row.entry.what, row.entry.size))


def exponents(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The p of time ~ size^p of each contestant that was measured at two sizes or more."""
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.entry.size is not None and row.times:
            curve = curves.setdefault((row.entry.peer, str(row.entry.variant or "")), {})
            curve[row.entry.size] = statistics.median(row.times)
    return [
        {
            "peer": peer,
            "variant": variant,
            "sizes": sorted(curve),
            "exponent": exponent(curve),
            "exponent_of_the_last_two": exponent(dict(sorted(curve.items())[-2:])),
        }
        for (peer, variant), curve in curves.items()
        if len(curve) > 1
    ]


def exponent(curve: Mapping[int, float]) -> float:
    """The slope of the straight line nearest to log(time) over log(size)."""
    sizes, times = (np.log(np.array(list(values), dtype=float)) for values in (curve.keys(), curve.values()))
    return float(np.polyfit(sizes, times, 1)[0])


def head(facts: Mapping[str, Any]) -> list[str]:
    """Where it was measured, in paragraphs."""
    device, processor = facts["device"], facts["processor"]
    where = processor if device == "cpu" else f"{device} ({processor})"
    versions = ", ".join(f"{name} {found or 'not installed'}" for name, found in facts["versions"].items())
    ceilings = dict(facts["ceilings"])
    copying = ceilings.pop("copy_gb_per_second")
    products = ", ".join(
        f"{brief(value)} TFLOP/s in {name.removesuffix('_tflops')}" for name, value in ceilings.items()
    )
    return [
        f"{where}; {facts['cores']} cores ({', '.join(facts['cpu_flags']) or 'none of the flags looked for'}), "
        f"{facts['threads']} threads; {facts['date']}.",
        f"{versions}, Python {facts['python']}.",
        f"In the minute before, {facts['load_before']:.1f} processes wanted a core.",
        f"Ceilings: matrix products {products or 'not measured'}; copying {brief(copying)} GB/s, read and written.",
    ]


def section(case: Mapping[str, Any]) -> list[str]:
    """A contest, in paragraphs."""
    about = [case["subject"]]
    about += [f"batch {case['batch_size']}"] if "batch_size" in case else []
    about += [f"input {'x'.join(map(str, case['input']))}"] if "input" in case else []
    rows = [cells(row, case["unit_of_sizes"]) for row in case["rows"]]
    parts = [f"## {TITLES[case['case']]}: {', '.join(filter(None, about))}", table(HEADER, rows), *case["notes"]]
    if case["exponents"]:
        found = [
            (one["peer"], one["variant"], f"{one['exponent']:.2f}", f"{one['exponent_of_the_last_two']:.2f}")
            for one in case["exponents"]
        ]
        over = f"time ~ {case['unit_of_sizes']}^p"
        parts.append(table(("contestant", "variant", f"p of {over}", "p of the last two sizes"), found))
    return parts


def cells(row: Mapping[str, Any], unit: str | None) -> list[str]:
    """A row of a page."""
    size = f"{unit} {row['size']:,}" if row["size"] is not None else ""
    variant = ", ".join(filter(None, (row["what"], row["variant"], size)))
    error = max(row["errors"].values(), default=None)
    if row["not_measured"]:
        shown = "-" if error is None or not math.isfinite(error) else f"{error:.0e}"
        return [row["peer"], variant, f"not measured: {row['not_measured']}", "-", "-", shown, "-", "-", "-"]
    seconds = {name: brief(1000 * value) for name, value in row["seconds"].items()}
    return [
        row["peer"],
        variant,
        f"{seconds['median']} ({seconds['min']} to {seconds['max']})",
        brief(row["samples_per_second"]),
        "-" if row["share_of_ceiling"] is None else f"{row['share_of_ceiling']:.1%}",
        "-" if error is None else f"{error:.0e}",
        shown_ratio(row["times_as_fast_as_plain_fp32"]),
        shown_ratio(row["ditwright_is_times_as_fast"]),
        shown_ratio(row["compiled_it_is"]),
    ]


def shown_ratio(found: Mapping[str, Any] | None) -> str:
    """With its spread, or that it is not told."""
    if found is None:
        return "-"
    if found["told"] is None:
        return "not told"
    return f"{found['told']:.2f} [{found['spread'][0]:.2f}, {found['spread'][1]:.2f}]"


def brief(value: float) -> str:
    """In three digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, aligned for a terminal too."""
    lines = [list(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rule = [f"{'-' * width}" if i < 2 else f"{'-' * (width - 1)}:" for i, width in enumerate(widths)]
    lines.insert(1, rule)
    padded = (
        (cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
