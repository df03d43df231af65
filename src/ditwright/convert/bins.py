"""Sizes of PixArt's training (its ASPECT_RATIO_256 to 2048): pictures are drawn at the nearest and then resized.

Sizes are (height, width) in pixels; a ratio is height / width.
"""

from __future__ import annotations

SIDES = (256, 512, 1024, 2048)  # of the square among them, in pixels
# In sixteenths of that side, what the rule below gives and PixArt does not list: one pair, whose mirror it lists, and
# the extreme ones of all sides but 2048.
NEVER = {(21, 11)}
AT_2048 = {(8, 31), (8, 30), (26, 9), (28, 9), (29, 8), (30, 8), (31, 8)}


def bins(side: int) -> tuple[tuple[int, int], ...]:
    """From the widest to the tallest: all of 90% to 100% of the square's area up to 4 to 1, but for some."""
    assert side in SIDES, "pictures of another side have no sizes of PixArt's"
    unit, absent = side // 16, NEVER if side == 2048 else NEVER | AT_2048
    pairs = {(h, w) for h in range(8, 33) for w in range(8, 33) if 0.9 * 256 < h * w <= 256} - absent
    return tuple((h * unit, w * unit) for h, w in sorted(pairs, key=lambda pair: pair[0] / pair[1]))


def nearest(height: int, width: int, side: int) -> tuple[int, int]:
    """The size whose ratio, rounded to hundredths as PixArt names it, is nearest."""
    return min(bins(side), key=lambda size: abs(round(size[0] / size[1], 2) - height / width))
