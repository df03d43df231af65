"""Real photographs that scikit-image and scikit-learn carry, cut into crops: enough to train and judge an autoencoder.

Only colour photographs whose licence is stated, and free, are taken (scikit-image's docstrings of `skimage.data`;
scikit-learn's `datasets/images/README.txt`). Pictures made from those under CC BY 2.0 name their photographers.

| name | what | by | licence |
|---|---|---|---|
| astronaut | Eileen Collins | NASA, Great Images | public domain |
| chelsea | a cat | Stefan van der Walt | CC0 |
| china | the Summer Palace | danielbuechele, flickr.com/photos/danielbuechele/6061409035 | CC BY 2.0 |
| coffee | a cup | Rachel Michetti, Pikolo Espresso Bar | CC0 |
| flower | a flower | vultilion, flickr.com/photos/vultilion/6056698931 | CC BY 2.0 |
| hubble | the eXtreme Deep Field | NASA, HubbleSite | public domain |
| retina | a retina | Mikael Häggström | CC0 |
| rocket | DSCOVR on Falcon 9 | SpaceX | public domain |

The third quarter of each photograph, from the left, is held out: it shows something in every one of them, and no crop
for training has a pixel of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image

from ..errors import UserError
from ..extras import need
from .base import Pictures

NAMES = ("astronaut", "chelsea", "china", "coffee", "flower", "hubble", "retina", "rocket")
SKIMAGE = {"hubble": "hubble_deep_field"}  # where its function has another name
SKLEARN = ("china", "flower")
LONGEST = 640  # pixels: larger photographs are reduced, or their crops would be most of the set
SCALES = (1.0, 1.5, 2.0)  # reductions, so that crops show both detail and whole things
FLAT = 4.0  # grey levels of standard deviation; a crop with less in every channel shows nothing
SIZES = range(8, 113)  # a quarter of the narrowest photograph has 112 columns


def photos(size: int = 64) -> Pictures:
    """Crops for training (N, size, size, 3), on a grid of half their size; the label is the photograph."""
    return _cut(size, ((0, 2), (3, 4)), -(-size // 2))


def held_out(size: int = 64) -> Pictures:
    """Crops (N, size, size, 3) for measuring, side by side, from the quarters that training never saw."""
    return _cut(size, ((2, 3),), size)


@lru_cache(maxsize=4)
def _cut(size: int, quarters: tuple[tuple[int, int], ...], stride: int) -> Pictures:
    if size not in SIZES:
        raise UserError(f"photos come in crops of {SIZES[0]} to {SIZES[-1]} pixels; got {size}")
    images, targets = [], []
    for label, photo in enumerate(_photographs()):
        quarter = photo.width // 4
        for first, last in quarters:
            part = photo.crop((first * quarter, 0, last * quarter, photo.height))
            for crop in _crops(part, size, stride):
                images.append(crop)
                targets.append(label)
    return Pictures(np.stack(images), np.array(targets, dtype=np.int64), NAMES)


def _crops(part: Image.Image, size: int, stride: int) -> Iterator[np.ndarray]:
    """Squares on a grid over a picture and its reductions, without those that show nothing."""
    for scale in SCALES:
        width, height = round(part.width / scale), round(part.height / scale)
        pixels = np.asarray(part.resize((width, height), Image.Resampling.LANCZOS))
        for top in range(0, height - size + 1, stride):
            for left in range(0, width - size + 1, stride):
                crop = pixels[top : top + size, left : left + size]
                if crop.std(axis=(0, 1)).max() >= FLAT:
                    yield crop


def _photographs() -> Iterator[Image.Image]:
    """In the order of NAMES, none larger than LONGEST."""
    learn, shown = need("sklearn.datasets", extra="data"), need("skimage.data", extra="data")
    for name in NAMES:
        pixels = (
            learn.load_sample_image(f"{name}.jpg") if name in SKLEARN else getattr(shown, SKIMAGE.get(name, name))()
        )
        photo = Image.fromarray(np.asarray(pixels))
        ratio = min(1.0, LONGEST / max(photo.size))
        yield photo.resize((round(photo.width * ratio), round(photo.height * ratio)), Image.Resampling.LANCZOS)
