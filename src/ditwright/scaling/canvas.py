"""What all figures share: axes, colours, words beside points; nothing of matplotlib's global state."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..extras import need

COLOURS = ("#0b6fb8", "#d1590c", "#15803d", "#8b3fa8", "#b3203a", "#5b5b5b")  # told apart by the colour-blind too
INK, PALE, GRID = "#26262c", "#8a8a92", "#e6e6ea"
FONT, SMALL = 9.5, 8.0


def panels(count: int, *, rows: int = 1, height: float = 4.4, width: float = 5.6) -> tuple[Any, list[Any]]:
    """A figure with plain axes beside each other."""
    figure = need("matplotlib.figure", extra="eval").Figure((width * count, height * rows), 150, layout="constrained")
    need("matplotlib.backends.backend_agg", extra="eval").FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    made = [figure.add_subplot(rows, count, i + 1) for i in range(rows * count)]
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
        axes.tick_params(colors=INK, labelsize=SMALL, which="both", width=0.6, length=3)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.1, y=0.1)
    return figure, made


def named(axes: Any, title: str, x: str, y: str = "") -> None:
    """Title at the left, names of the axes."""
    axes.set_title(title, loc="left", fontsize=FONT + 1.5, color=INK, fontweight="bold", pad=10)
    axes.set_xlabel(x, fontsize=FONT, color=INK)
    axes.set_ylabel(y, fontsize=FONT, color=INK)


def logarithmic(axes: Any, *, plain: bool = True) -> None:
    """Powers along both axes, with numbers a few to a decade; `plain`: those along x without exponents."""
    ticker = need("matplotlib.ticker", extra="eval")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis is axes.xaxis and not plain:
            continue
        wide = limits[1] / limits[0]
        fine = next((step for factor, step in ((1.35, 0.1), (1.6, 0.2), (4, 0.5)) if wide < factor), 0)
        marks = np.arange(1, 10, fine).round(1).tolist() if fine else (1, 2, 5) if wide < 300 else (1,)
        axis.set_major_locator(ticker.LogLocator(subs=marks, numticks=60))
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}" if value >= 1e-4 else f"{value:f}"))
        axis.set_minor_formatter(ticker.NullFormatter())
        if fine or wide < 300:
            axis.set_minor_locator(ticker.NullLocator())
        (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(limits)


def corner(axes: Any, words: str) -> None:
    """Words at the lower left."""
    axes.text(0.02, 0.03, words, color=PALE, fontsize=SMALL, transform=axes.transAxes, va="bottom")


def mark(
    axes: Any,
    x: float,
    y: float | None,
    text: str,
    shade: str,
    by: tuple[float, float],
    *,
    ha: str = "left",
    **style: Any,
) -> None:
    """Words beside a point, `by` so many typographic points."""
    weight = "bold" if style.get("bold") else "normal"
    axes.annotate(
        text, (x, y), xytext=by, textcoords="offset points", fontsize=SMALL, color=shade, ha=ha, fontweight=weight
    )
