"""ditwright info DiT-XL/2: what a network is and costs, without allocating its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from ..errors import UserError, lookup
from ..model.config import CONDITIONINGS, DiTConfig, conditioned
from ..model.presets import PRESETS
from .main import Parser

LATENT_FACTOR = 8  # pixels per latent of the autoencoder that the presets are for


def run(words: list[str]) -> int:
    parser = Parser(prog="ditwright info", description="Parameters, tokens, multiply-adds and FLOPs of a network.")
    parser.add_argument("preset", help=f"one of: {', '.join(PRESETS)}")
    parser.add_argument("--conditioning", default="adaln-zero", metavar="NAME", help=", ".join(CONDITIONINGS))
    parser.add_argument(
        "--image-size", type=int, nargs="+", default=[256], metavar="N", help="pixels: side, or height width"
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="0: unconditional")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(words)
    config = conditioned(lookup("preset", args.preset, PRESETS), args.conditioning)
    if args.num_classes is not None:
        config = replace(config, num_classes=args.num_classes)
    size = args.image_size * 2 if len(args.image_size) == 1 else args.image_size
    if len(size) != 2 or min(size) < 1 or any(s % LATENT_FACTOR for s in size):
        raise UserError(f"--image-size takes a side or a height and a width, multiples of {LATENT_FACTOR}; got {size}")
    facts = {"name": args.preset, "conditioning": args.conditioning, "image_size": size, **describe(config, size)}
    print(json.dumps(facts, indent=1) if args.json else as_text(facts))
    return 0


def describe(config: DiTConfig, size: list[int]) -> dict[str, Any]:
    """Counts of a network on latents of a picture size."""
    import torch

    from ..model.dit import DiT
    from ..model.flops import macs, tokens

    latent = [s // LATENT_FACTOR for s in size]
    parts, length = macs(config, latent), tokens(config, latent)
    with torch.device("meta"):
        trained = sum(p.numel() for p in DiT(config).parameters())
    table = length * config.width if config.sincos else 0
    return {
        "latent_size": latent,
        "tokens": length,
        "parameters": trained + table,
        "trained_parameters": trained,
        "position_table": table,
        "macs": sum(parts.values()),
        "flops": 2 * sum(parts.values()),
        "macs_by_part": parts,
        "config": asdict(config),
    }


def by(size: list[int]) -> str:
    """[256, 256] as "256 x 256"."""
    return " x ".join(map(str, size))


def as_text(facts: dict[str, Any]) -> str:
    """The facts as an aligned table."""
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in facts["macs_by_part"].items() if value > 5e6)
    rows = {
        "network": f"{facts['name']}, {facts['conditioning']}",
        "picture": f"{by(facts['image_size'])} pixels, latent {by(facts['latent_size'])}",
        "tokens": f"{facts['tokens']:,}",
        "parameters": f"{facts['parameters']:,} ({facts['position_table']:,} of them the fixed position table)",
        "MACs (the paper's Gflops)": f"{facts['macs'] / 1e9:.2f} G for one forward pass of one sample",
        "FLOPs (2 per MAC)": f"{facts['flops'] / 1e9:.2f} G",
        "MACs by part": f"{parts} (G)",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
