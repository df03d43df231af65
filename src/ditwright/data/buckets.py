"""Aspect-ratio buckets: sizes of about equal area, so that pictures keep most of their edges (NovelAI 2022).

Sizes are (height, width) in pixels; a ratio is height / width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..errors import UserError


class Dropped(UserError):
    """A picture that no bucket takes. The text is what follows its name."""


class TooSmall(Dropped):
    """It would have to be enlarged."""


class TooLong(Dropped):
    """It is longer and thinner than any bucket."""


@dataclass(frozen=True)
class Buckets:
    """Sizes of about side * side pixels: multiples of `step`, no side over `max_aspect` times the other."""

    side: int
    step: int = 64
    max_aspect: float = 2.0
    enlarge: bool = False  # take pictures that are smaller than their bucket

    def __post_init__(self) -> None:
        if min(self.side, self.step) < 1 or self.side % self.step:
            raise UserError(f"buckets need a side that is a multiple of their step; got {self.side} and {self.step}")
        if not 1 <= self.max_aspect < math.inf:
            raise UserError(f"max_aspect must be a ratio of at least 1; got {self.max_aspect}")

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """From the widest to the tallest; the square is always there.

        For every multiple of `step` as one side, the multiple that comes nearest to the area as the other, both ways
        round. No size is therefore off the area by more than half a step along one side.
        """
        found = set()
        for one in range(self.step, math.ceil(self.side * self.max_aspect) + 1, self.step):
            other = max(1, round(self.side**2 / one / self.step)) * self.step
            if max(one, other) <= self.max_aspect * min(one, other):
                found |= {(one, other), (other, one)}
        return tuple(sorted(found, key=lambda size: (size[0] / size[1], size)))

    def assign(self, height: int, width: int) -> tuple[int, int]:
        """The size nearest in ratio, by its logarithm. Raises Dropped.

        Too long is what, scaled to the area, is more than half a step longer than `max_aspect` allows: a picture of
        2000 x 999 pixels still counts as 2 to 1.
        """
        ratio = height / width
        longest = self.side * math.sqrt(self.max_aspect) + self.step / 2
        if self.side * math.sqrt(max(ratio, 1 / ratio)) > longest:
            raise TooLong(
                f"is {height} x {width}, {max(ratio, 1 / ratio):.3g} to 1; buckets go to {self.max_aspect:g} to 1"
            )
        size = min(self.sizes, key=lambda size: abs(math.log(ratio * size[1] / size[0])))
        if not self.enlarge and (height < size[0] or width < size[1]):
            raise TooSmall(f"is {height} x {width}, smaller than its bucket of {size[0]} x {size[1]}")
        return size
