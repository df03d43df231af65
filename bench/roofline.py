"""A picture of what `bench/speed.py` measured: FLOP/s against FLOPs a byte, under what the machine can do at all.

    python bench/roofline.py docs/bench/cpu.json docs/roofline.png

FLOP/s and both ceilings are measured. Bytes are computed, the least that a pass must move: weights once in its
precision, the residual stream in fp32 in and out of every branch; a training step three times that, and for every
weight 28 bytes of AdamW (weight, gradient and two moments read, weight and moments written) and 12 of the average.
"""

import json
import sys
from math import prod

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ditwright.model.build import parameters
from ditwright.model.presets import PRESETS

WIDTHS = {"fp32": 4, "bf16": 2}
COLOURS = {"ditwright": "#0b6e4f", "plain": "#8d99ae", "diffusers": "#e07a2f"}
MARKS = {"forward": "o", "step": "s", "sampling": "^"}


def moved(case, row):
    """Bytes of a call."""
    config = PRESETS[case["subject"]]
    weights, fp32 = parameters(config), row["variant"].startswith("fp32")
    tokens = prod(side // p for side, p in zip(case["input"], config.patch, strict=True))
    rows = case["batch_size"] * (2 if case["case"] == "sampling" else 1)
    stream = rows * tokens * config.width * 4 * 2 * 2 * config.depth  # in and out of two branches a block
    once = weights * WIDTHS["fp32" if fp32 else "bf16"] + stream
    if case["case"] == "step":
        return 3 * once + weights * (28 + 12)
    return once * case.get("steps_walked", 1)


def main(source, target):
    with open(source) as file:
        report = json.load(file)
    products = {name: report["ceilings"][f"{name}_tflops"] for name in WIDTHS}
    copying = report["ceilings"]["copy_gb_per_second"] / 1e3  # TB/s
    figure, axes = plt.subplots(figsize=(9, 5.2), dpi=130)
    across = [10, 5000]
    for name, top in products.items():
        turn = top / copying
        axes.plot([across[0], turn, across[1]], [across[0] * copying, top, top], color="black", lw=1)
        axes.annotate(
            f"{name} products {top:.2f} TFLOP/s", (across[1], top), (-4, 4), textcoords="offset points", ha="right"
        )
    seen, shown = set(), set()
    for case in report["cases"]:
        place = case["case"], case["subject"]  # one point each: more steps of sampling are at the same
        if case["case"] not in MARKS or case["rounds"] == 1 or place in shown:
            continue
        shown.add(place)
        for peer, colour in COLOURS.items():
            rows = [row for row in case["rows"] if row["peer"] == peer and row["tflops"]]
            if peer == "plain":
                rows = [row for row in rows if row["variant"] == "fp32"]
            if not rows:
                continue
            row = max(rows, key=lambda row: row["tflops"])
            x, y = row["flops_of_a_call"] / moved(case, row), row["tflops"]
            label = f"{peer}, {case['case']}"
            axes.scatter(
                x, y, marker=MARKS[case["case"]], color=colour, label=None if label in seen else label, zorder=3
            )
            seen.add(label)
            axes.annotate(case["subject"].removeprefix("DiT-"), (x, y), (5, -3), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", yscale="log", xlim=across, xlabel="FLOPs a byte (computed)", ylabel="TFLOP/s (measured)")
    where = f"{report['processor']}, {report['threads']} threads, {report['date'][:10]}"
    axes.set_title(f"{where}: plain in fp32, others at their best")
    ticks = [0.1, 0.2, 0.3, 0.5, 1, 2]
    axes.set_yticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
