"""Tables for a terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column is a name, the others are numbers or short words."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_text(self) -> str:
        """Aligned for a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def as_html(self) -> str:
        """For a page."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in self.rows)
        return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def brief(value: float | None, digits: int = 3) -> str:
    """A number of so many digits as people write it: 1,234 or 0.0120 or 1.2e+15; a dash where there is none."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if 10**digits <= abs(value) < 1e6:
        return f"{value:,.0f}"
    if 1e-5 <= abs(value) < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))))
        return f"{value:.{places}f}"
    return f"{value:.{digits - 1}e}"


def within(value: float, interval: Sequence[float] | None, digits: int = 3) -> str:
    """A number with its interval."""
    if interval is None:
        return brief(value, digits)
    return f"{brief(value, digits)} [{brief(interval[0], digits)}, {brief(interval[1], digits)}]"


def duration(seconds: float) -> str:
    """As 45 s, 12.3 min or 5.1 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
