"""1,797 handwritten digits, 8 x 8 pixels, ten classes (UCI optical recognition set, as scikit-learn carries it)."""

from __future__ import annotations

import numpy as np

from ..extras import need
from .base import Pictures


def digits() -> Pictures:
    """All of them, as uint8 grey images (N, 8, 8, 1)."""
    found = need("sklearn.datasets", extra="demo").load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]  # 17 grey levels, 0 ... 16
    return Pictures(pixels, found.target.astype(np.int64), tuple(str(n) for n in found.target_names))
