"""The three ways in which text enters, at equal FLOPs: by what is right in the pictures of prompts never trained on.

    python bench/routes.py train cross runs/routes       # each route by itself; again to go on after a stop
    python bench/routes.py train joint runs/routes
    python bench/routes.py train parallel runs/routes
    python bench/routes.py show runs/routes              # table.md, report.json and routes.png in that folder

All have the recipes of `ditwright demo scenes`, and as many steps as cost the same.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from ditwright.accel.compiling import can_compile
from ditwright.data.scenes import scenes as drawn
from ditwright.evaluate.fidelity import ATTRIBUTES, fidelity
from ditwright.pictures import captioned, save_png
from ditwright.pipeline import Pipeline, best_device
from ditwright.recipes.scenes import ROUTES, after, layout, network, scenes
from ditwright.run import train
from ditwright.train.cost import training_flops
from ditwright.train.processes import at_most, together

PROMPTS, SHOWN = 200, 8  # for each number of things; and of them in the picture
SPACE, TEXT = (32, 32), 16  # pixels, tokens


def steps_of(route, recipe):
    """As many as cost what those of a recipe do for the MM-DiT."""
    cost = {name: training_flops(network(name), SPACE, 1, TEXT) for name in ROUTES}
    return round(recipe().steps * cost["joint"] / cost[route])


def learn(route, folder, processes):
    """Both of the recipe's trainings; what is done of them is not done again."""
    before = folder / f"{route}-layout"
    for recipe, start, output in ((layout, layout, before), (scenes, partial(after, before), folder / route)):
        config = replace(start(route=route), steps=steps_of(route, recipe), compile=can_compile())
        together(processes or at_most(config.data.batch_size), train, config, output)


def show(folder):
    """Ask all of them for the same held-out prompts, with the same noise."""
    held = [drawn("held out", PROMPTS, objects=(count,), seed=1) for count in (1, 2)]
    prompts = [text for part in held for text in part.texts]
    some = [count * PROMPTS + n for count in range(2) for n in range(SHOWN)]
    heads = ("route", "things", "steps", "whole sentence", *ATTRIBUTES)
    rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    report, pictures, words = {}, [], []
    for route in ROUTES:
        pipe = Pipeline.from_pretrained(folder / route, device=best_device()).ready()
        images = pipe.draw(prompts, seed=0)
        found = fidelity(prompts, images)
        steps = sum(steps_of(route, recipe) for recipe in (layout, scenes))
        report[route] = {"steps": steps, **found.plain()}
        for count in (1, 2):
            row = found[count]
            shares = [getattr(row, name) for name in ATTRIBUTES]
            told = [
                route,
                str(count),
                f"{steps:,}",
                str(row.sentence),
                *(f"{s.value:.1%}" if s else "" for s in shares),
            ]
            rows.append("| " + " | ".join(told) + " |")
        pictures += [images[n] for n in some]
        words += [prompts[n] if route == next(iter(ROUTES)) else route for n in some]
    (folder / "table.md").write_text("\n".join(rows) + "\n")
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    title = f"Prompts never trained on, by {', '.join(ROUTES)}"
    save_png(captioned(pictures, words, columns=2 * SHOWN, title=title), folder / "routes.png")
    print("\n".join(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "show"))
    parser.add_argument("route", nargs="?", choices=ROUTES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, help="that train it together (default: one for each core)")
    args = parser.parse_args()
    if args.what == "show":
        show(args.folder)
        return
    learn(args.route, args.folder, args.processes)


if __name__ == "__main__":
    main()
