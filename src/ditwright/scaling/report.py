"""One page of a study: what was run, what the law says, where it fails; pictures inside, nothing fetched.

The same logs give the same page, byte for byte, with the same matplotlib.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import whole_file
from ..pictures import PAPER, enlarged, save_png, sheet
from .figures import NAMES, save_figures
from .fit import Findings
from .law import EXPONENTS
from .results import Network
from .rows import (
    conditioning_table,
    correlation,
    equation,
    law_table,
    network_table,
    prediction_table,
    slice_table,
    unet_table,
)
from .score import COLUMNS, PICTURES
from .score import SHOWN as SAMPLES_SHOWN
from .tables import Table, brief, duration, within
from .transfer import drift, sweep_table

PAGE = "index.html"
SHOWN, ACROSS, CELL = 10, 10, 40  # samples of a network on the sheet, and pixels of each at least
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #26262c; background: #fff; max-width: 60rem;
       margin: 3rem auto 6rem; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { font-size: 1.25rem; margin: 3rem 0 .4rem; }
p, li { max-width: 44rem; } figure { margin: 1rem 0 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #63636b; font-size: .9rem; max-width: 44rem; }
code { font-size: .88em; background: #f3f3f6; padding: .1em .35em; border-radius: 4px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; margin: .8rem 0;
       font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ececf0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: #63636b; font-weight: 600; }
"""


def write_report(findings: Findings, folder: Path, name: str) -> Path:
    """The page and its figures, in STUDY/report. Returns the page."""
    report = folder / "report"
    figures = save_figures(findings, report)
    if (samples := sample_sheet(findings, folder)) is not None:
        figures["samples"] = report / "samples.png"
        save_png(samples, figures["samples"])
    body = "\n".join(sections(findings, figures, name))
    title = f"Scaling study: {name}"
    page = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
    page += f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
    page += f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    with whole_file(report / PAGE) as half:
        half.write_text(page)
    return report / PAGE


def sections(findings: Findings, figures: dict[str, Path], name: str) -> Iterator[str]:
    """The page from top to bottom."""
    run, fit = (f"ditwright scale {verb} {name}" for verb in ("run", "fit"))
    yield from (f"<p>{escape(line)}</p>" for line in summary(findings))
    yield f"<p class=note>Every number here follows from the logs of <code>{escape(run)}</code>.</p>"
    yield from shown(
        figures,
        "quality",
        "Gflops against quality",
        "Each point is a network, its width beside it, all trained for equally many steps; lines from one seed to the "
        "other. Solid lines are laws y = a x^-b + c of one patch; the bar is the 95% interval of the prediction.",
    )
    yield table(law_table(findings), fit)
    low, high = brief(EXPONENTS[0], 1), brief(EXPONENTS[-1], 1)
    yield f"<p class=note>b was looked for between {low} and {high}: an interval that ends there is open.</p>"
    yield table(prediction_table(findings), fit)
    yield from shown(
        figures,
        "residuals",
        "What the laws leave unexplained",
        "Above: networks around one law for all, by patch; a law in Gflops alone would leave no order among patches. "
        "Below: around the law of their own patch.",
    )
    yield from shown(figures, "curves", "Training curves by compute", "Lines are networks, thicker for wider ones.")
    yield from shown(
        figures,
        "slices",
        "Equal compute",
        "Loss of networks of one patch after equal training compute; a triangle is the lowest point of the parabola "
        "through them, where that lies among them.",
    )
    yield table(slice_table(findings), fit)
    if "samples" in figures:
        caption = "Size by patch, equal steps, equal noise, seed by seed the same; no guidance."
        yield from shown(figures, "samples", "Samples", caption)
    if conditionings := findings.conditionings():
        yield "<h2>Four ways of conditioning</h2>"
        yield table(conditioning_table(conditionings), run)
        yield (
            "<p class=note>Paper: FID-50K of DiT-XL/2 on ImageNet after 400,000 steps, quoted from Peebles &amp; Xie "
            "2022.</p>"
        )
    yield from beside(findings, figures, run, fit)
    yield "<h2>Every network</h2>"
    yield table(network_table(findings), run)
    yield "<h2>What does not follow the law, and what is not shown</h2>"
    yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in exceptions(findings)) + "</ul>"


def beside(findings: Findings, figures: dict[str, Path], run: str, fit: str) -> Iterator[str]:
    """What stands beside the ladder: U-Nets, and learning rates by width."""
    yield from shown(
        figures,
        "unets",
        "Transformer against U-Net",
        "Squares are ADM-style U-Nets, their width beside them, trained as long on the same batches; lines from one "
        "seed to the other. Transformers' laws are those of the figure at the top.",
    )
    if findings.unets:
        yield table(unet_table(findings), fit)
        yield "<p class=note>In brackets the U-Net over the transformer; * beyond the networks of that law.</p>"
    yield from shown(
        figures,
        "rates",
        "One learning rate for every width",
        "Each line is a width at several rates; a triangle marks the lowest point of a parabola through the least "
        "three. muP divides the rate of matrices whose inputs grow with the width.",
    )
    yield table(sweep_table(findings.sweeps, findings.study.lr), run)


def shown(figures: dict[str, Path], name: str, title: str, caption: str) -> Iterator[str]:
    """A figure under its title, inside the page."""
    if name in figures:
        data = base64.b64encode(figures[name].read_bytes()).decode()
        yield f"<h2>{escape(title)}</h2>"
        yield f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}">'
        yield f"<figcaption>{escape(caption)}</figcaption></figure>"


def table(made: Table, command: str) -> str:
    """A table with the command that made it; nothing where it has no rows."""
    return f"{made.as_html()}<p class=note><code>{escape(command)}</code></p>" if made.rows else ""


def summary(findings: Findings) -> Iterator[str]:
    """The findings in sentences."""
    results, ladder = findings.results, findings.equal or findings.ladder
    time, compute = sum(r.facts["seconds"] for r in results), sum(r.compute for r in results)
    seeds = sorted(len(network.runs) for network in ladder)
    several = f"{seeds[0]}" if seeds[0] == seeds[-1] else f"{seeds[0]} to {seeds[-1]}"
    yield (
        f"{len(results)} runs, {compute:.2g} floating-point operations and {duration(time)} of training: "
        f"{len(ladder)} networks of {brief(ladder[0].gflops)} to {brief(ladder[-1].gflops)} Gflops, "
        f"{several} seed{'s' if seeds[-1] > 1 else ''} each."
    )
    for metric in NAMES:
        if fitted := findings.law(metric, "gflops"):
            scatter = float(np.sqrt(np.mean(fitted.law.errors**2)))
            yield (
                f"{NAMES[metric].capitalize()} against Gflops: {equation(fitted)}, the networks "
                f"{100 * scatter:.1f}% around it (root mean square); correlation with log Gflops "
                f"{correlation(fitted):.2f}."
            )
    for metric, miss in findings.misses().items():
        side = "above" if miss["miss"] > 0 else "below"
        yield (
            f"Prediction of {NAMES[metric]}: {within(miss['value'], miss['interval'])}, written down before "
            f"{findings.prediction and findings.held_out and findings.held_out.name} was trained; it came to "
            f"{brief(miss['actual'])}, {abs(100 * miss['miss']):.1f}% {side}, "
            f"{'inside' if miss['inside'] else 'outside'} the interval."
        )
    if findings.prediction and not findings.held_out:
        said = findings.prediction["metrics"]
        yield "Predicted, and not trained yet: " + "; ".join(
            f"{NAMES[metric]} {within(one['value'], one['interval'])}" for metric, one in said.items()
        )


def exceptions(findings: Findings) -> Iterator[str]:
    """Where the study departs from a law in Gflops, and what it does not look at."""
    for metric in NAMES:
        for kind, (kept, count) in order(findings.equal, metric).items():
            if count:
                yield f"{NAMES[metric].capitalize()}: {kind} is better in {kept} of {count} pairs."
    over = findings.overfitted()
    worst = max(over, key=lambda name: over[name], default="")
    yield (
        f"Over-fitting: the held-out loss of {len(over)} of {len(findings.results)} runs rose by over 1% from its "
        f"lowest; most in {worst}, by {100 * over[worst]:.1f}%."
        if over
        else "Over-fitting: the held-out loss of no run rose by over 1% from its lowest."
    )
    if findings.held_out and not findings.prediction:
        yield f"Nothing was predicted of {findings.held_out.name} before it was trained."
    if real := findings.reference.get("held_out_frechet"):
        facts = findings.reference
        yield (
            f"Frechet distances are between features of {facts['extractor']}, a small classifier, and no FID; "
            f"{facts['held_out_pictures']:,} real pictures that nobody trained on lie at {within(**_told(real))} from "
            f"the {facts['pictures']:,} of {facts['reference']}."
        )
    yield from (f"Left out: {name}, {why}." for name, why in findings.diverged.items())
    yield from _rates(findings)
    if not findings.unets:
        yield "Not in this study: a U-Net at equal Gflops."


def _rates(findings: Findings) -> Iterator[str]:
    """How learning rates were chosen, and whether one serves all."""
    study = findings.study
    if study.mup:
        yield f"The learning rate is {study.lr:g}, meant at width {study.lr_width} and carried to the others by muP."
    else:
        power = f" (width / {study.lr_width})^-{study.lr_power:g}" if study.lr_power else ""
        yield f"The learning rate is {study.lr:g}{power}, a rule and not tuned for each size."
    if study.unets and findings.unets:
        yield f"The U-Nets' learning rate is {study.unets.lr:g} for all of them."
    for mup, name in ((False, "Without muP"), (True, "With muP")):
        if (times := drift(findings.sweeps, mup)) is not None:
            yield f"{name} the best learning rates of the widths tried lie within a factor of {times:.2g}."


def _told(real: dict) -> dict:
    return {"value": real["value"], "interval": real["interval"]}


def order(found: Sequence[Network], metric: str) -> dict[str, tuple[int, int]]:
    """In how many pairs of neighbours more Gflops are better: wider at equal patch, smaller patch at equal width."""
    kept = {}
    for kind, same, along in (
        ("the wider network of one patch", "patch", lambda network: network.width),
        ("the smaller patch of one width", "width", lambda network: -network.patch),
    ):
        pairs = list[bool]()
        for value in {getattr(network, same) for network in found}:
            part = [n for n in found if getattr(n, same) == value and n.values(metric)]
            line = [n.mean(metric) for n in sorted(part, key=along)]
            pairs += [after < before for before, after in pairwise(line)]
        kept[kind] = (sum(pairs), len(pairs))
    return kept


def sample_sheet(findings: Findings, folder: Path) -> Image.Image | None:
    """Samples laid out size by patch, the same noise in each; None where none were drawn."""
    cells = {}
    for network in [*findings.equal, *([findings.held_out] if findings.held_out else [])]:
        path = folder / network.runs[0].name / PICTURES
        if path.exists():
            cells[network.width, network.patch] = cell(path, network.runs[0].facts["frechet"]["samples"])
    if not cells:
        return None
    widths, patches = (sorted({key[i] for key in cells}) for i in (0, 1))
    blank = np.full_like(next(iter(cells.values())), PAPER)
    patches.reverse()
    rows = [[cells.get((width, patch), blank) for patch in patches] for width in widths]
    names, above = [f"width {width}" for width in widths], [f"patch {patch}" for patch in patches]
    return sheet(rows, row_names=names, column_names=above, cell=blank.shape[1] // 2, gap=14)


def cell(path: Path, count: int) -> np.ndarray:
    """The first of `count` samples in a picture, enlarged, ACROSS beside each other: (H, W, 3) uint8."""
    with Image.open(path) as file:
        tiles = np.array(file.convert("RGB"))
    columns, rows = min(count, COLUMNS), -(-min(count, SAMPLES_SHOWN) // COLUMNS)
    height, width = tiles.shape[0] // rows, tiles.shape[1] // columns
    images = [
        tiles[r * height : (r + 1) * height, c * width : (c + 1) * width] for r in range(rows) for c in range(columns)
    ]
    large = [np.array(enlarged(image, CELL, smooth=True)) for image in images[: min(count, SHOWN)]]
    large = [np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=PAPER[0]) for image in large]
    large += [np.full_like(large[0], PAPER)] * (-len(large) % ACROSS)
    return np.concatenate([np.concatenate(large[i : i + ACROSS], 1) for i in range(0, len(large), ACROSS)])
