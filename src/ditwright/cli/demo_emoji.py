"""ditwright demo emoji: train on the emoji of a font, see which of them come back by their names, draw new ones."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

COMPOSED = (  # in words of the captions, put together as no caption has them
    "blue apple",
    "green heart with arrow",
    "cat face with heart-shaped eyes and tears",
    "purple fish",
    "red frog face",
    "black sun with face",
    "yellow rabbit face",
    "smiling pear",
)
SHOWN, COLUMNS = 24, 8


def show(output: Path) -> int:
    """Run it in a folder, or what is left of it to do."""
    import numpy as np
    from tqdm import tqdm

    from ..accel.compiling import can_compile
    from ..data.base import spread
    from ..data.emoji import emoji as drawn
    from ..files import whole_file
    from ..pictures import captioned, save_png
    from ..pipeline import Pipeline, best_device
    from ..recipes.emoji import emoji
    from ..run import train
    from ..train.processes import at_most, together
    from ..train.state import checkpoints, read_facts

    config = emoji()
    real = drawn(config.data.image_size or 32)
    together(at_most(config.data.batch_size), train, replace(config, compile=can_compile()), output)
    seconds = read_facts(checkpoints(output)[-1])["seconds"]  # of the whole run, also where it was done earlier
    pipe = Pipeline.from_pretrained(output, device=best_device()).ready()
    start = time.perf_counter()
    with tqdm(total=pipe.card.sample.num_inference_steps, unit="step", desc="sampling") as bar:
        pictures = pipe.draw([*real.texts, *COMPOSED], seed=0, progress=bar.update)
    sampling = time.perf_counter() - start
    back = nearest(pictures[: len(real.texts)], real.images) == np.arange(len(real.texts))
    report = {
        "names": len(real.texts),
        "nearest_real_emoji_is_the_one_named": round(float(back.mean()), 4),
        "train_seconds": round(seconds, 1),
        "sample_seconds": round(sampling, 1),
    }
    with whole_file(output / "report.json") as half:
        half.write_text(json.dumps(report, indent=1))
    some = [*spread(len(real.texts), SHOWN).tolist(), *range(len(real.texts), len(pictures))]
    prompts = [*real.texts, *COMPOSED]
    title = f"Emoji by their names; the last {len(COMPOSED)} prompts are nobody's name"
    page = captioned([pictures[n] for n in some], [prompts[n] for n in some], columns=COLUMNS, title=title)
    save_png(page, output / "emoji.png")
    print(f"training          {seconds:.1f} s")
    print(f"sampling          {sampling:.1f} s for all {len(real.texts):,} names and {len(COMPOSED)} prompts besides")
    print(f"came back         {back.mean():.1%} of names: of all real emoji the one so named is nearest to the sample")
    print("                  (what was trained on: this is memory, not invention; for that look at the last prompts)")
    print(f"picture           {output / 'emoji.png'}")
    return 0


def nearest(pictures: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Which of (M, H, W, C) uint8 has the least squared difference in pixels from each of (N, H, W, C): (N,)."""
    import numpy as np

    flat, known = (x.reshape(len(x), -1).astype(np.float32) for x in (pictures, real))
    return ((known**2).sum(1) - 2 * flat @ known.T).argmin(1)
