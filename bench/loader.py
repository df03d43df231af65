"""What a data loader gives: latents from prepared shards, beside pictures decoded on the fly.

    python bench/loader.py

One thread does everything that training's loader does for a batch of 64: the order, the flips, reading, and for shards
drawing the latents. Files are read once before, so they are in memory. Printed are medians over batches, in samples per
second and core. Decoded pictures would still have to be encoded.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch come

import platform
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from skimage import data as photographs

from ditwright.codec.base import codec_from
from ditwright.codec.config import CodecConfig
from ditwright.config import to_dict
from ditwright.data.base import Record, batch_items, mirrored
from ditwright.data.decoded import Decoded
from ditwright.data.parts import FORMAT, Settings, Sums
from ditwright.data.shards import Shards
from ditwright.data.sources import open_source
from ditwright.prepare.cut import Cut
from ditwright.prepare.folder import Making
from ditwright.rng import Draws, generator

BATCH, SECONDS = 64, 3.0
CODEC = CodecConfig("kl", 4, 8, scale=(0.18215,), shift=(0.0,), fingerprint="none")  # shaped as Stable Diffusion's


def shards(folder, items):
    """Moments of pictures of 256 x 256: random numbers."""
    cut = Cut([Record(str(number), bytes, 0) for number in range(items)], 1024)
    settings = Settings(FORMAT, to_dict(CODEC), "float16", True, 256, None, cut.size, ("all",), cut.origin("random"))
    making = Making(folder, settings, cut, 0)
    making.settle()
    sums = Sums(1, (0.0,) * 4, (1.0,) * 4)
    for number, jobs in cut:
        with making.part(number) as part:
            for key, record in jobs:
                moments = generator(0, key, "bench").standard_normal((2, 8, 32, 32), dtype=np.float32)
                facts = {"name": record.name, "label": 0, "caption": None, "size": [256, 256]}
                part.add(key, (256, 256), moments.astype(np.float16), sums, facts)
    making.finish()
    return Shards(folder)


def jpegs(folder, items, size):
    """Crops of photographs, `size` (height, width), saved as JPEG of quality 90."""
    whole = [Image.fromarray(image) for image in (photographs.astronaut(), photographs.coffee(), photographs.rocket())]
    folder.mkdir()
    for number in range(items):
        draw, photograph = generator(0, number, "crop"), whole[number % len(whole)]
        top, left = (draw.integers(0, max(1, a - b + 1)) for a, b in zip(photograph.size[::-1], size, strict=True))
        photograph.crop((left, top, left + size[1], top + size[0])).save(folder / f"{number:05d}.jpg", quality=90)
    return Decoded(open_source(str(folder)), 256, threads=1)


def seconds(data, codec):
    """How long each batch takes."""
    start = time.perf_counter()
    for number in count():
        begun = time.perf_counter()
        _, items = batch_items(0, data.groups, BATCH, number)
        places = range(number * BATCH, (number + 1) * BATCH)
        raw = data.read(items, mirrored(0.5, 0, places))
        data.labels(items)
        if codec is not None:
            codec.latents(torch.from_numpy(raw), Draws(0, places, "latent").normal)
        yield time.perf_counter() - begun
        if time.perf_counter() - start > SECONDS:
            return


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            ("shards, moments 8 x 32 x 32 float16, latents drawn", shards(folder / "shards", 4096), codec_from(CODEC)),
            ("JPEGs of 256 x 256, decoded", jpegs(folder / "small", 256, (256, 256)), None),
            ("JPEGs of 375 x 400, decoded and cropped to 256", jpegs(folder / "large", 256, (375, 400)), None),
        ]
        for what, data, codec in rows:
            for group in data.groups:
                data.read(group.items, np.zeros(len(group.items), bool))
            print(f"{BATCH / statistics.median(seconds(data, codec)):9.0f} samples/s per core  {what}")
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}"
    print(f"on {model.partition(':')[2].strip() or platform.machine()}, {versions}, Pillow {PIL.__version__}")


if __name__ == "__main__":
    main()
