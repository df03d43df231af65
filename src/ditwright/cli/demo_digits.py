"""ditwright demo digits: train on handwritten digits, judge a thousand samples, save pictures that a person enjoys."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pipeline import Pipeline

SAMPLES = 1000
STYLE = {"cell": 64, "smooth": True}  # 8 x 8 pixels read as handwriting when their enlargement is smooth


def show(output: Path) -> int:
    """Run it in a folder, or what is left of it to do."""
    import numpy as np

    from ..data.digits import digits as real_digits
    from ..files import whole_file
    from ..metrics.classes import nearest_real_ratio, spread, train_judge
    from ..pipeline import Pipeline, best_device
    from ..recipes.digits import digits
    from ..run import train
    from ..train.state import read_facts

    checkpoint = train(digits(), output)
    seconds = read_facts(checkpoint)["seconds"]  # of the whole run, also where it was done earlier
    pipe, real = Pipeline.from_pretrained(checkpoint, device=best_device()), real_digits()
    labels = np.arange(SAMPLES) % 10
    start = time.perf_counter()
    samples = pipe.draw(labels.tolist(), seed=0, guidance_scale=1.0)
    sampling = time.perf_counter() - start
    judge = train_judge(real.images, real.targets)
    ours, theirs = spread(samples, labels), spread(real.images, real.targets)
    ratios = {k: ours[k] / theirs[k] for k in theirs}
    report = {
        "samples": SAMPLES,
        "guidance_scale": 1.0,
        "accuracy": judge.accuracy(samples, labels),
        "judge_accuracy_on_held_out_real_digits": judge.real_accuracy,
        "spread_within_class_over_real": {str(k): round(v, 3) for k, v in ratios.items()},
        "distance_to_nearest_real_over_real": round(nearest_real_ratio(samples, real.images), 3),
        "train_seconds": round(seconds, 1),
        "sample_seconds": round(sampling, 1),
    }
    with whole_file(output / "report.json") as half:
        half.write_text(json.dumps(report, indent=1))
    pictures = draw(pipe, output)
    lowest = min(ratios, key=lambda k: ratios[k])
    print(f"training          {seconds:.1f} s")
    print(f"sampling          {sampling:.1f} s for {SAMPLES} samples, guidance 1.0")
    print(f"recognised        {report['accuracy']:.1%} of samples, by a classifier that never saw the model")
    print(f"                  (it is right on {judge.real_accuracy:.1%} of real digits that it was not trained on)")
    print(f"variety           lowest within-class spread {ratios[lowest]:.0%} of the real one (digit {lowest})")
    ratio = report["distance_to_nearest_real_over_real"]
    print(f"nearness          samples lie {ratio:.2f} times as far from the nearest real digit as real digits do")
    print("\n".join(f"picture           {path}" for path in pictures))
    return 0


def draw(pipe: Pipeline, output: Path) -> list[Path]:
    """A labelled grid and a film strip from noise to digits."""
    from ..pictures import save_png, sheet

    names, columns = pipe.card.class_names, 12
    pictures = pipe.draw([label for label in range(10) for _ in range(columns)], seed=1)
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    grid = sheet(rows, row_names=names, title="Sampled digits, a class in each row", **STYLE)
    frames = list(pipe.frames(list(range(10)), seed=2))
    shown = [frames[round(i * (len(frames) - 1) / 9)] for i in range(10)]
    strip = sheet(
        [[frame.images[k] for frame in shown] for k in range(10)],
        row_names=names,
        column_names=[f"t={frame.t:.2f}" for frame in shown],
        title="From noise (left) to digits (right)",
        **STYLE,
    )
    paths = [output / "digits.png", output / "denoising.png"]
    for image, path in zip((grid, strip), paths, strict=True):
        save_png(image, path)
    return paths
