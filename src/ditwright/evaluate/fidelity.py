"""Whether pictures of scenes show what their captions say, as shares of pictures, read back by a rule.

N pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.scene_reader import check
from ..errors import UserError
from ..metrics.bootstrap import interval

ATTRIBUTES = ("count", "size", "colour", "shape", "relation")


def fidelity(pictures: np.ndarray, captions: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """The share of pictures (N, H, W, 3) uint8 whose whole caption is true, with an interval, and of each attribute.

    An attribute's share is over all things (or relations) of all captions. UserError where there are fewer than 2.
    """
    if len(pictures) != len(captions) or len(captions) < 2:
        raise UserError(
            f"fidelity takes 2 captions or more, one each; got {len(captions)} for {len(pictures)} pictures"
        )
    told = [check(caption, picture) for caption, picture in zip(captions, pictures, strict=True)]
    right = np.array([one["sentence"] for one in told])
    low, high = interval(lambda drawn: float(right[drawn].mean()), len(right), seed=seed)
    shares: dict[str, Any] = {"pictures": len(told), "sentence": float(right.mean()), "low": low, "high": high}
    for attribute in ATTRIBUTES:
        flags = [flag for one in told for name, flag in one.items() if name.split()[0] == attribute]
        if flags:
            shares[attribute] = float(np.mean(flags))
    return shares
