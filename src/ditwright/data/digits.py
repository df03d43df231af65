"""1,797 handwritten digits, 8 x 8 pixels, ten classes (UCI optical recognition set, as scikit-learn carries it)."""

from __future__ import annotations

import numpy as np

from ..extras import need
from .base import Pictures

HELD_OUT = 5  # every fifth digit


def digits(part: str = "all") -> Pictures:
    """Uint8 grey images (N, 8, 8, 1): all of them, those to "train" on, or the fifth that is "held out"."""
    found = need("sklearn.datasets", extra="demo").load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]  # 17 grey levels, 0 ... 16
    held = np.arange(len(pixels)) % HELD_OUT == HELD_OUT - 1
    kept = {"all": slice(None), "train": ~held, "held out": held}[part]
    return Pictures(pixels[kept], found.target.astype(np.int64)[kept], tuple(str(n) for n in found.target_names))
