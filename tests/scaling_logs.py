"""Logs of studies that nobody trained, with losses from a law that is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ditwright.config import dump_yaml
from ditwright.pictures import save_png, to_pil
from ditwright.scaling.plan import Run, runs_of
from ditwright.scaling.score import tiled
from ditwright.scaling.study import (
    HELD_OUT,
    STUDIES,
    STUDY,
    TRANSFER,
    UNET,
    Conditioning,
    HeldOut,
    Study,
    Transfer,
    UNets,
)

SPACE = (8, 8)
SMALL = replace(
    STUDIES["digits"](),
    widths=(32, 48, 64, 96),
    patches=(2, 4),
    steps=(400,),
    held_out=HeldOut(128, 2),
    conditioning=Conditioning(64, 2, ("adaln", "adaln-zero")),
    unets=None,
    transfer=None,
    mup=False,
)
WHOLE = replace(SMALL, unets=UNets((8, 32)), transfer=Transfer((32, 64, 128), 4, 100, (0.25, 0.5, 1, 2, 4)))


class Truth(NamedTuple):
    """loss = a Gflops^-b + c at the end of training, and a little more before it."""

    a: float = 0.03
    b: float = 0.25
    c: float = 0.3

    def loss(self, gflops: float, done: float = 1.0) -> float:
        """After the share `done` of the steps."""
        return self.a * gflops**-self.b + self.c + 0.1 * (done**-0.5 - 1)


def write_logs(folder: Path, study: Study = SMALL, *, noise: float = 0.0, held_out: bool = True) -> None:
    """A study folder as if every run had finished; `noise`: standard deviation of a run's losses, relative."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STUDY).write_text(dump_yaml(study))
    real = {"value": 0.9, "interval": [0.8, 1.0]}
    facts = {"extractor": "judge-made-up", "reference": "digits-train", "pictures": 1438, "held_out_pictures": 359}
    (folder / "reference.json").write_text(json.dumps(facts | {"held_out_frechet": real}))
    for number, run in enumerate(runs_of(study, SPACE)):
        if run.role != HELD_OUT or held_out:
            draws = np.random.Generator(np.random.Philox(number))
            write_run(folder / run.name, run, float(np.exp(noise * draws.standard_normal())))


def best_rate(width: int, mup: bool, base: float = SMALL.lr) -> float:
    """The learning rate of the least loss: with muP that of width 64, without it falling as one over the width."""
    return base if mup else base * 64 / width


def handicap(run: Run) -> float:
    """What a run's losses are times the law's: U-Nets are worse, and so are rates away from the best."""
    if run.role == UNET:
        return 1.25
    if run.role != TRANSFER:
        return 1.0
    optim = run.config.optim
    away = np.log(optim.lr / best_rate(run.config.model.width, optim.mup_width > 0))
    return float(np.exp(0.05 * away**2))


def write_run(folder: Path, run: Run, factor: float) -> None:
    """The files of a finished run whose losses are the law's, times a factor."""
    folder.mkdir(exist_ok=True)
    steps, model, truth = run.config.steps, run.config.model, Truth()
    factor *= handicap(run)
    lines = []
    for step in sorted({-(-steps * tenth // 10) for tenth in range(1, 11)}):
        loss = factor * truth.loss(run.macs / 1e9, step / steps)
        lines += [{"step": step, "loss": 0.97 * loss}, {"step": step, "val_loss": loss, "val_loss_bins": [loss]}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    distance = 10 * factor * (truth.loss(run.macs / 1e9) - 0.2)
    frechet = {"name": "FD (judge-made-up)", "extractor": "judge-made-up", "value": distance, "samples": 20}
    facts = {
        "network": run.network,
        "role": run.role,
        "width": model.width,
        "depth": model.depth,
        "patch": model.patch[0],
        "conditioning": run.kind,
        "seed": run.config.seed,
        "steps": steps,
        "learning_rate": run.config.optim.lr,
        "mup_width": run.config.optim.mup_width,
        "schedule": run.config.optim.schedule,
        "parameters": run.parameters,
        "macs": run.macs,
        "tokens": run.tokens,
        "training_flops": run.flops,
        "seconds": run.flops / 1e11,
        "frechet": frechet | {"interval": [0.9 * distance, 1.1 * distance]},
    }
    (folder / "scores.json").write_text(json.dumps(facts))
    shades = [np.full((8, 8, 1), 10 * i, np.uint8) for i in range(20)]
    save_png(to_pil(tiled(shades)), folder / "samples.png")
