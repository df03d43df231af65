"""Pictures of scenes under what was asked of them, and the words of it that are not right.

H height, W width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..data.scene_reader import check
from ..data.scene_words import parse
from ..pictures import captioned
from .pictures import Images

EACH, COLUMNS = 16, 8


def page(captions: Sequence[str], images: Images) -> Image.Image:
    """The first pictures (H, W, 3) uint8 of each number of things, whatever they look like, and their captions."""
    places: dict[int, list[int]] = defaultdict(list)
    for n, caption in enumerate(captions):
        places[len(parse(caption).things)].append(n)
    chosen = [n for count in sorted(places) for n in places[count][:EACH]]
    pictures = [next(iter(images.batches(1, n, n + 1)))[0] for n in chosen]
    said = [told(captions[n], picture) for n, picture in zip(chosen, pictures, strict=True)]
    return captioned(pictures, said, columns=COLUMNS, title=images.name)


def told(caption: str, picture: np.ndarray) -> str:
    """A caption, and what of it is not right."""
    flags = check(caption, np.broadcast_to(picture, (*picture.shape[:2], 3)))
    wrong = [name for name, right in flags.items() if not right and name != "sentence"]
    return f"{caption} (wrong: {', '.join(wrong)})" if wrong else caption
