"""The figures of a study: drawn on canvases of their own, with nothing of matplotlib's global state.

Equal findings give equal bytes with the same matplotlib: no date and no version is written into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import need
from ..files import whole_file
from .canvas import COLOURS, FONT, INK, PALE, SMALL, corner, logarithmic, mark, named, panels
from .fit import Findings, Fitted
from .results import Network
from .tables import brief

LABELS = ((-6, -13), (6, -3), (-2, 6))  # where widths stand, by patch, so that neighbours do not collide
BEYOND = 1.25  # times the narrowest width's least loss: larger ones are above the figure of learning rates
NAMES = {"loss": "held-out loss", "frechet": "Frechet distance"}
GFLOPS = "Gflops: $10^9$ multiply-adds of a forward pass"


def save_figures(findings: Findings, folder: Path) -> dict[str, Path]:
    """Every figure that the findings have the numbers for, by name."""
    drawn: dict[str, Callable[[Findings], Any]] = {
        "quality": quality,
        "unets": unets,
        "curves": curves,
        "slices": slices,
        "residuals": residuals,
        "rates": rates,
    }
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    with need("matplotlib.style", extra="eval").context("default"):  # whatever the user's own defaults are
        for name, draw in drawn.items():
            if (figure := draw(findings)) is not None:
                made[name] = folder / f"{name}.png"
                with whole_file(made[name]) as half:
                    figure.savefig(half, format="png", metadata={"Software": None})
    return made


def colours(found: Sequence[Network]) -> dict[int, str]:
    """By patch."""
    patches = sorted({network.patch for network in found})
    return {patch: COLOURS[i % len(COLOURS)] for i, patch in enumerate(patches)}


def metrics_of(findings: Findings) -> list[str]:
    """Those that there are numbers of."""
    return [metric for metric in NAMES if any(n.values(metric) for n in findings.ladder)]


def quality(findings: Findings) -> Any:
    """Cost of a forward pass against quality, for every network at equal steps: the DiT paper's central figure."""
    if not findings.equal:
        return None
    metrics = metrics_of(findings)
    figure, axes = panels(len(metrics))
    for one, metric in zip(axes, metrics, strict=True):
        colour = colours(findings.equal)
        for place, (patch, shade) in enumerate(colour.items()):
            part = [n for n in findings.equal if n.patch == patch and n.values(metric)]
            points(one, part, metric, shade, LABELS[place % len(LABELS)])
            fitted = findings.law(metric, "gflops", patch)
            if fitted:
                lawline(one, fitted, shade)
            elif part:
                one.plot([n.gflops for n in part], [n.mean(metric) for n in part], color=shade, linewidth=1)
            if part:
                mark(
                    one, part[0].gflops, part[0].mean(metric), f"patch {patch}", shade, (0, 17), bold=True, ha="center"
                )
        held_out(one, findings, metric, colour)
        if whole := findings.law(metric, "gflops"):
            lawline(one, whole, PALE, dashed=True)
            corner(one, "dashed: one law for every patch")
        yardstick(one, findings, metric)
        one.margins(x=0.2)
        logarithmic(one)
        named(
            one, f"{NAMES[metric].capitalize()} after {findings.equal[0].steps:,} steps", GFLOPS, unit(findings, metric)
        )
    return figure


def unets(findings: Findings) -> Any:
    """U-Nets among the transformers, by the cost of a forward pass."""
    if not findings.unets or not findings.equal:
        return None
    metrics, colour = metrics_of(findings), colours(findings.equal)
    figure, axes = panels(len(metrics))
    for one, metric in zip(axes, metrics, strict=True):
        for patch, shade in colour.items():
            part = [n for n in findings.equal if n.patch == patch and n.values(metric)]
            one.plot([n.gflops for n in part], [n.mean(metric) for n in part], "o", color=shade, markersize=3.4)
            if part:
                first = part[0]
                mark(one, first.gflops, first.mean(metric), f"patch {patch}", shade, (0, 8), bold=True, ha="center")
            if fitted := findings.law(metric, "gflops", patch):
                lawline(one, fitted, shade)
        part = [n for n in findings.unets if n.values(metric)]
        one.plot([n.gflops for n in part], [n.mean(metric) for n in part], color=INK, linewidth=1)
        points(one, part, metric, INK, (5, 5), marker="s")
        if part:
            mark(one, part[0].gflops, part[0].mean(metric), "U-Net", INK, (-8, -3), bold=True, ha="right")
        one.margins(x=0.22)
        logarithmic(one)
        title = f"{NAMES[metric].capitalize()}: transformers and U-Nets"
        named(one, title, GFLOPS, unit(findings, metric))
    return figure


def rates(findings: Findings) -> Any:
    """Loss against the learning rate for each width, without muP and with it."""
    kinds = [mup for mup in (False, True) if any(sweep.mup == mup for sweep in findings.sweeps)]
    if not kinds:
        return None
    figure, axes = panels(len(kinds))
    widths = sorted({sweep.width for sweep in findings.sweeps})
    least, most = (f(min(sweep.losses) for sweep in findings.sweeps) for f in (min, max))
    low, high = 0.97 * least, BEYOND * most
    for one, mup in zip(axes, kinds, strict=True):
        one.set_ylim(low, high)
        for sweep in (s for s in findings.sweeps if s.mup == mup):
            shade = COLOURS[widths.index(sweep.width) % len(COLOURS)]
            inside = [(rate, loss) for rate, loss in zip(sweep.rates, sweep.losses, strict=True) if loss < high]
            one.plot(*zip(*inside, strict=True), "o-", color=shade, markersize=3.6, linewidth=1)
            over = [rate for rate, loss in zip(sweep.rates, sweep.losses, strict=True) if loss >= high]
            place = 0.99 - 0.025 * widths.index(sweep.width)
            one.plot(over, [place] * len(over), "^", color=shade, markersize=6, transform=one.get_xaxis_transform())
            one.plot(
                [sweep.best], [min(sweep.losses)], "v", color=shade, markersize=8, markerfacecolor="white", zorder=4
            )
        one.axvline(findings.study.lr, color=PALE, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        corner(one, "dotted: the study's rate; filled triangles: losses above the picture")
        logarithmic(one)
        title = "With muP" if mup else "Standard parameterisation"
        named(one, title, f"learning rate at width {findings.study.lr_width}" if mup else "learning rate")
        _legend(one, {width: COLOURS[i % len(COLOURS)] for i, width in enumerate(widths)}, "width", 0.52, "left")
    part = findings.study.transfer
    axes[0].set_ylabel(f"held-out loss after {part.steps if part else 0:,} steps", fontsize=FONT, color=INK)
    return figure


def unit(findings: Findings, metric: str) -> str:
    """What a metric's numbers are of."""
    if metric == "loss":
        return "on held-out data, fixed noise"
    facts = next(r.facts["frechet"] for r in findings.results if "frechet" in r.facts)
    return f"{facts['name']}, {facts['samples']:,} samples"


def points(
    axes: Any,
    part: Sequence[Network],
    metric: str,
    shade: str,
    by: tuple[float, float] = (4, 4),
    *,
    marker: str = "o",
) -> None:
    """Networks with their width beside them; a line from the least to the largest of their seeds."""
    for network in part:
        values = network.values(metric)
        axes.plot([network.gflops] * 2, [min(values), max(values)], color=shade, linewidth=1.2, solid_capstyle="butt")
        axes.plot([network.gflops], [network.mean(metric)], marker, color=shade, markersize=4.6)
        mark(axes, network.gflops, network.mean(metric), str(network.width), shade, by)


def lawline(axes: Any, fitted: Fitted, shade: str, *, dashed: bool = False, until: float = 0) -> None:
    """A law over its own points and, thinner, as far as it foretells."""
    low, high = fitted.law.span
    x = np.geomspace(low, high, 80)
    axes.plot(x, fitted.law.at(x), color=shade, linewidth=1, linestyle=(0, (5, 3)) if dashed else "-", zorder=1)
    if until > high:
        beyond = np.geomspace(high, until, 40)
        axes.plot(beyond, fitted.law.at(beyond), color=shade, linewidth=1, linestyle=(0, (1, 2)), zorder=1)


def held_out(axes: Any, findings: Findings, metric: str, colour: dict[int, str]) -> None:
    """What was predicted of the held-out network, and what came."""
    told, network = findings.prediction, findings.held_out
    if not told or metric not in told["metrics"]:
        return
    said, x = told["metrics"][metric], told["gflops"]
    patch = findings.study.held_out.patch if findings.study.held_out else None
    shade = colour.get(patch, INK)  # type: ignore[arg-type]
    fitted = findings.law(metric, "gflops", patch) or findings.law(metric, "gflops")
    if fitted:
        lawline(axes, fitted, shade, until=x)
    axes.plot([x, x], said["interval"], color=shade, linewidth=5, alpha=0.22, solid_capstyle="butt", zorder=1)
    axes.plot([x], [said["value"]], "_", color=shade, markersize=9, markeredgewidth=1.4)
    mark(axes, x, said["interval"][1], f"predicted\n{brief(said['value'])}", shade, (0, 4), ha="center")
    if network and (actual := network.mean(metric)) is not None:
        axes.plot([x], [actual], "*", color=INK, markersize=9, zorder=5)
        words = f"{network.width}: {brief(actual)}"
        mark(axes, x, min(actual, said["interval"][0]), words, INK, (0, -13), ha="center", bold=True)


def yardstick(axes: Any, findings: Findings, metric: str) -> None:
    """Where real pictures lie that nobody trained on."""
    if metric == "frechet" and (real := findings.reference.get("held_out_frechet")):
        axes.axhline(real["value"], color=PALE, linewidth=0.9, linestyle=(0, (1, 2)))
        left = min(network.gflops for network in findings.equal)
        mark(axes, left, real["value"], "real pictures that were held out", PALE, (0, 4))


def curves(findings: Findings) -> Any:
    """Held-out loss against training compute, a line for each network; the least of them, and its law."""
    found = findings.ladder + ([findings.held_out] if findings.held_out else [])
    figure, (axes,) = panels(1, height=5.0, width=8.6)
    colour = colours(found)
    largest = max(network.width for network in found)
    for network in found:
        x, y = network.curve()
        shade = colour[network.patch]
        axes.plot(x, y, color=shade, linewidth=0.7 + 1.3 * network.width / largest, alpha=0.85)
        axes.plot(x[-1:], y[-1:], "o", color=shade, markersize=3)
        mark(axes, x[-1], y[-1], str(network.width), shade, (4, -3))
    for patch, shade in colour.items():
        first = min((n for n in found if n.patch == patch), key=lambda network: network.compute)
        x, y = first.curve()
        mark(axes, x[0], y[0], f"patch {patch}", shade, (0, 5), bold=True, ha="center")
    if fitted := findings.law("loss", "frontier"):
        lawline(axes, fitted, INK, dashed=True)
        law = fitted.law
        corner(axes, f"dashed: least loss for a compute up to $C$, {brief(law.c)} + {power(law.a, law.b, 'C')}")
    logarithmic(axes, plain=False)
    named(
        axes, "Held-out loss as training goes on", "training compute, floating-point operations", unit(findings, "loss")
    )
    return figure


def power(a: float, b: float, name: str) -> str:
    """a C^-b, as (C / C1)^-b: the compute at which the term is 1 says more than a factor."""
    if a <= 0:
        return "0"
    exponent = math.log10(a) / b
    if abs(exponent) > 3:
        base, ten = f"{10 ** (exponent % 1):.1e}".split("e")
        unit = f"{base}\\!\\times\\!10^{{{math.floor(exponent) + int(ten)}}}"
        return f"$({name}\\,/\\,{unit})^{{-{b:.3f}}}$"
    return f"{brief(a)} ${name}^{{-{b:.3f}}}$"


def slices(findings: Findings) -> Any:
    """Loss against size at equal compute, with parabolas and their lowest points."""
    patches = sorted({part.patch for part in findings.slices})
    if not patches:
        return None
    figure, axes = panels(len(patches), width=4.2, height=3.9)
    cm = need("matplotlib", extra="eval").colormaps["viridis"]
    computes = sorted({part.compute for part in findings.slices})
    shades = {compute: cm(0.85 * (1 - i / max(1, len(computes) - 1))) for i, compute in enumerate(computes)}
    for one, patch in zip(axes, patches, strict=True):
        for part in (p for p in findings.slices if p.patch == patch):
            shade = shades[part.compute]
            one.plot(part.gflops, part.losses, "o", color=shade, markersize=4)
            x = np.geomspace(part.gflops[0], part.gflops[-1], 60)
            one.plot(x, np.exp(np.polyval(part.parabola, np.log(x))), color=shade, linewidth=1)
            exponent = math.log10(part.compute)
            words = f"$10^{{{exponent:.3g}}}$"
            mark(one, part.gflops[-1], part.losses[-1], words, shade, (5, -3))
            if part.minimum:
                lowest = float(np.exp(np.polyval(part.parabola, math.log(part.minimum))))
                one.plot([part.minimum], [lowest], "v", color=shade, markersize=7, markerfacecolor="white")
        logarithmic(one)
        named(one, f"Equal compute, patch {patch}", GFLOPS)
    axes[0].set_ylabel("held-out loss", fontsize=FONT, color=INK)
    return figure


def residuals(findings: Findings) -> Any:
    """How far every network is from the law of all, and from that of its own patch, in percent."""
    if not findings.equal or not any(f.against == "gflops" for f in findings.laws):
        return None
    metrics, colour = metrics_of(findings), colours(findings.equal)
    figure, axes = panels(len(metrics), rows=2, height=3.2)
    for column, metric in enumerate(metrics):
        rows = [[None], list(colour)]
        for row, scopes in enumerate(rows):
            one = axes[row * len(metrics) + column]
            for fitted in (f for scope in scopes if (f := findings.law(metric, "gflops", scope))):
                for name, x, error in zip(fitted.networks, fitted.x, fitted.law.errors, strict=True):
                    width, patch = (int(part[1:]) for part in name.split("-")[:2])
                    one.plot([x], [100 * error], "o", color=colour[patch], markersize=4.6)
                    mark(one, x, 100 * error, str(width), colour[patch], (4, 4))
            one.axhline(0, color=PALE, linewidth=0.9)
            one.set_xscale("log")
            one.set_xlim(*_span(findings))
            one.xaxis.set_major_formatter(
                need("matplotlib.ticker", extra="eval").FuncFormatter(lambda v, _: f"{v:f}".rstrip("0").rstrip("."))
            )
            title = "from the law of every patch" if row == 0 else "from the law of its own patch"
            named(one, f"{NAMES[metric].capitalize()} {title}", GFLOPS if row else "", "percent above it")
    _legend(axes[0], colour)
    return figure


def _span(findings: Findings) -> tuple[float, float]:
    low, high = findings.equal[0].gflops, findings.equal[-1].gflops
    return low / 1.6, high * 1.8


def _legend(axes: Any, colour: dict[int, str], what: str = "patch", x: float = 0.99, ha: str = "right") -> None:
    """Names of the colours at the top."""
    for i, (value, shade) in enumerate(colour.items()):
        axes.text(
            x,
            0.97 - 0.07 * i,
            f"{what} {value}",
            color=shade,
            fontsize=SMALL,
            fontweight="bold",
            transform=axes.transAxes,
            ha=ha,
            va="top",
        )
