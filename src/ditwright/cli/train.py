"""ditwright train RECIPE: train by a recipe, or go on with the run that the output folder holds."""

from __future__ import annotations

import os

from ..recipes import RECIPES
from .info import NETWORKS
from .recipe import asked

EXAMPLE = "--optim.lr 1e-3 --data.batch_size 128 --model.stages.0.depth 8"

MORE = """
--init PLACE starts from weights that are there: a run, a checkpoint, another project's file or folder, a hub name.
With --model init the network, its process, its sampling and its text encoder are as there: fine-tuning."""


def run(words: list[str]) -> int:
    what = "Train a network by a recipe."
    found = asked(words, RECIPES, verb="train", what=what, example=EXAMPLE, more=MORE, networks=NETWORKS)
    if found is None:
        return 0
    config, output = found

    from ..pipeline.asks import hears_text
    from ..run import train
    from ..train.fit import NonFinite
    from ..train.keep import left_in

    try:
        checkpoint = train(config, output)
    except NonFinite as error:
        raise SystemExit(f"ditwright: stopped: {error}; {left_in(output)}") from error
    if os.environ.get("RANK", "0") == "0":
        asks = ' --prompt "..."' if hears_text(config.model) else ""
        print(f"checkpoint: {checkpoint}\nto sample: ditwright sample {output}{asks}")
    return 0
