"""How fast ditwright is beside a plain DiT and diffusers: what docs/performance.md tells.

    bench/gpu.sh                                      on a GPU; it tells more
    python bench/speed.py --cpu --output docs/bench   on a CPU, in twenty minutes (without bf16, fifty)

Contests come in the order in which they matter; what the time does not reach is "not measured: time". A peer that is
compiled as a whole takes minutes at XL/2: there peers are compiled block by block, as ours, and as a whole at S/2.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch

from ditwright.bench.ceilings import missing
from ditwright.bench.contest import Variant
from ditwright.bench.measure import Time, measure
from ditwright.bench.plan import Plan
from ditwright.bench.report import Report
from ditwright.bench.subject import Subject
from ditwright.files import whole_file
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.presets import PRESETS

ALLOWED = 420.0  # seconds, after which nothing new begins: what has begun ends well before 9 minutes
SPACE = (32, 32)  # latents of 256 x 256 pixels
TINY = DiTConfig(width=32, heads=2, stages=(Stage(2),), out_channels=8, num_classes=10)


def ours_compiled(peer: str, variant: Variant) -> bool:
    """All in every variant, but compiled only ours, block by block: that is quick."""
    return peer == "ditwright" or not variant.compiled


def fast(peer: str, variant: Variant) -> bool:
    """What fits in the time: bf16 alone, compiled only ours; and the plain one in fp32, with which all is compared."""
    return (variant.products == "bf16" and ours_compiled(peer, variant)) or (peer, variant) == ("plain", Variant())


def compiled(peer: str, variant: Variant) -> bool:
    """All in bf16, by autocast, and compiled."""
    return variant.compiled and variant.precision in ("bf16", "autocast")


def fast_and_compiled(peer: str, variant: Variant) -> bool:
    """Both."""
    return fast(peer, variant) or compiled(peer, variant)


def plans() -> list[Plan]:
    """On a GPU."""
    from ditwright.cli.bench import commands

    one = {name: {name: Subject(PRESETS[name], SPACE)} for name in ("DiT-S/2", "DiT-B/2", "DiT-XL/2")}
    short = {"rounds": 5, "seconds": 0.2}
    walk = {"compiled": True, "steps": 250, "first": 10, "only": fast, "rounds": 3, "seconds": 0.01}
    xl = one["DiT-XL/2"]
    return [
        Plan(xl, ("step",), compiled=True, blocks=True, batch_size=32, only=fast_and_compiled, **short),
        Plan(one["DiT-S/2"], ("forward", "step"), compiled=True, batch_size=64, only=ours_compiled, **short),
        Plan(xl, ("forward",), compiled=True, batch_size=32, only=ours_compiled, **short),
        # 10 of 250 steps: each costs the same, and all of them would take minutes in every round
        Plan(xl, ("sampling",), graphs=True, batch_size=32, **walk),
        Plan(xl, ("sampling",), graphs=True, batch_size=1, **walk),  # where a GPU waits for the CPU
        Plan(one["DiT-B/2"], ("forward", "step"), compiled=True, batch_size=64, only=ours_compiled, **short),
        Plan(xl, ("forward",), compiled=True, blocks=True, batch_size=32, only=compiled, **short),
        Plan(one["DiT-S/2"], ("tokens", "batch"), only=fast, **short),
        Plan(one["DiT-S/2"], ("forward", "step"), compiled=True, batch_size=64, only=compiled, **short),
        Plan(one["DiT-S/2"], ("decode", "loader", "startup"), batch_size=8, commands=commands(), rounds=3, seconds=0.1),
    ]


def best(products: str, peer: str, variant: Variant) -> bool:
    """Every way in a precision of products, compiled only ours; the plain one in fp32; bf16 even where it cannot be."""
    asked = variant.products in (products, "bf16") and ours_compiled(peer, variant)
    return asked or (peer, variant) == ("plain", Variant())


def two(products: str, peer: str, variant: Variant) -> bool:
    """Ours at its best, and the plain one in fp32."""
    return (peer, variant) == ("plain", Variant()) or (
        peer == "ditwright" and variant.compiled and variant.products == products
    )


def three(products: str, peer: str, variant: Variant) -> bool:
    """And diffusers with its weights in that precision: in bf16 the faster of its ways to sample."""
    theirs = Variant("weights") if products == "bf16" else Variant()
    return two(products, peer, variant) or (peer, variant) == ("diffusers", theirs)


def cpu_plans() -> list[Plan]:
    """On a CPU: in bf16, or in fp32 where it has no instructions for that."""
    from ditwright.cli.bench import commands

    products = "fp32" if missing("bf16", torch.device("cpu")) else "bf16"
    all_of_it, ours_and_plain, and_theirs = (partial(only, products) for only in (best, two, three))
    s, b, xl = ({name: Subject(PRESETS[name], SPACE)} for name in ("DiT-S/2", "DiT-B/2", "DiT-XL/2"))
    few = {"rounds": 3, "seconds": 0.01, "compiled": True}
    # how far the last latents are off after all steps, for a minute and a half: a question of bf16
    whole = Plan(xl, ("sampling",), batch_size=1, steps=50, only=ours_and_plain, **{**few, "rounds": 1})
    return [
        Plan(xl, ("sampling",), batch_size=1, steps=50, first=10, only=all_of_it, **{**few, "rounds": 5}),
        Plan(b, ("step",), batch_size=16, only=all_of_it, **{**few, "rounds": 5}),
        *([whole] if products == "bf16" else []),
        Plan(xl, ("sampling",), batch_size=1, steps=250, first=10, only=and_theirs, **few),
        Plan(s, ("step",), batch_size=16, only=all_of_it, **few),
        Plan(s | b, ("forward",), batch_size=4, only=all_of_it, **few),
        Plan(s, ("tokens", "batch"), only=all_of_it, rounds=3, seconds=0.1),
        Plan(s, ("decode", "loader", "startup"), batch_size=2, commands=commands(), rounds=3, seconds=0.1),
    ]


def smoke() -> list[Plan]:
    """The same cases with a tiny network, and few commands."""
    from ditwright.cli.bench import commands

    tiny, short = {"tiny": Subject(TINY, (8, 8))}, {"batch_size": 2, "rounds": 3, "seconds": 1e-6}
    few = dict(list(commands().items())[:2])
    return [
        Plan(tiny, ("step",), compiled=True, blocks=True, only=compiled, **short),
        Plan(tiny, ("forward", "step"), only=ours_compiled, **short),
        Plan(tiny, ("sampling",), graphs=torch.cuda.is_available(), steps=250, first=4, only=fast, **short),
        Plan(tiny, ("tokens", "batch"), sizes=(1, 4), only=fast, **short),
        Plan(tiny, ("decode", "loader", "startup"), precisions=("fp32",), commands=few, **{**short, "batch_size": 1}),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the JSON and the table (default: here)")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU")
    parser.add_argument("--cpu-smoke", action="store_true", help="the same path with tiny networks on the CPU")
    args = parser.parse_args()
    on_cpu = args.cpu or args.cpu_smoke
    if not on_cpu and not torch.cuda.is_available():
        print("bench/gpu.sh: error: there is no CUDA device here; --cpu-smoke tries the path on a CPU", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)

    def keep(report: Report) -> None:
        """All that there is: a run that is cut short has not been for nothing."""
        name = "cpu" if args.cpu else "gpu"
        for ending, text in (("json", json.dumps(report.as_dict(), indent=1) + "\n"), ("md", report.as_markdown())):
            with whole_file(args.output / f"{name}.{ending}") as half:
                half.write_text(text)

    try:
        report = measure(
            smoke() if args.cpu_smoke else cpu_plans() if args.cpu else plans(),
            torch.device("cpu" if on_cpu else "cuda"),
            tell=lambda what: print(what, file=sys.stderr, flush=True),
            allowed=None if args.cpu else Time.allowed(ALLOWED),
            keep=keep,
        )
    except KeyboardInterrupt:  # gpu.sh does it too, after 9 minutes
        print(f"bench/speed.py: interrupted; contests that were over are in {args.output}", file=sys.stderr)
        return 130
    print(report.as_markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
