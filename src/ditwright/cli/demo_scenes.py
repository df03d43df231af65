"""ditwright demo scenes: train on captioned scenes, check prompts that were never trained on, save what was drawn."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

PROMPTS = 200  # for each number of things
SHOWN, COLUMNS = 16, 8  # of each, in the picture


def show(output: Path) -> int:
    """Run it in a folder, or what is left of it to do."""
    import numpy as np
    from tqdm import tqdm

    from ..accel.compiling import can_compile
    from ..data.scenes import scenes as drawn
    from ..evaluate.fidelity import fidelity
    from ..files import whole_file
    from ..pictures import captioned, save_png
    from ..pipeline import Pipeline, best_device
    from ..recipes.scenes import after, layout
    from ..run import train
    from ..train.processes import at_most, together
    from ..train.state import checkpoints, read_facts

    before = output / "layout"
    for recipe, folder in ((layout, before), (partial(after, before), output)):
        config = replace(recipe(), compile=can_compile())
        together(at_most(config.data.batch_size), train, config, folder)
    seconds = sum(read_facts(checkpoints(run)[-1])["seconds"] for run in (before, output))  # whenever they were done
    pipe = Pipeline.from_pretrained(output, device=best_device()).ready()
    held = [drawn("held out", PROMPTS, objects=(count,), seed=1) for count in (1, 2)]
    prompts = [prompt for part in held for prompt in part.texts]
    start = time.perf_counter()
    with tqdm(total=pipe.card.sample.num_inference_steps, unit="step", desc="sampling") as bar:
        pictures = pipe.draw(prompts, seed=0, progress=bar.update)
    sampling = time.perf_counter() - start
    found = fidelity(prompts, pictures)
    real = fidelity(prompts, np.concatenate([part.images for part in held]))
    report = {
        "prompts": "held out: each says a combination of words that no caption for training has",
        "samples": found.plain(),
        "real_renders": real.plain(),
        "train_seconds": round(seconds, 1),
        "sample_seconds": round(sampling, 1),
    }
    with whole_file(output / "report.json") as half:
        half.write_text(json.dumps(report, indent=1))
    some = [count * PROMPTS + n for count in range(len(held)) for n in range(SHOWN)]
    title = "Prompts never trained on"
    picture = captioned([pictures[n] for n in some], [prompts[n] for n in some], columns=COLUMNS, title=title)
    save_png(picture, output / "scenes.png")
    print(f"training          {seconds:.1f} s")
    print(f"sampling          {sampling:.1f} s for {len(prompts)} prompts, none of whose combinations was trained on")
    print(found.text())
    print(f"reader            right on {real[None].sentence.value:.1%} of real renders of the same captions")
    print(f"picture           {output / 'scenes.png'}")
    return 0
