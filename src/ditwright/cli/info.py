"""ditwright info DiT-XL/2: what a network is and costs, without allocating its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from ..errors import UserError, lookup
from ..model.config import CONDITIONINGS, DiTConfig, conditioned
from ..model.presets import PRESETS
from .main import Parser

FACTORS = {"LightningDiT": 16}  # pixels per latent of the autoencoder that a preset is for; 8 for the rest


def run(words: list[str]) -> int:
    parser = Parser(prog="ditwright info", description="Parameters, tokens, multiply-adds and FLOPs of a network.")
    parser.add_argument("preset", help=f"one of: {', '.join(PRESETS)}")
    parser.add_argument("--conditioning", default="adaln-zero", metavar="NAME", help=", ".join(CONDITIONINGS))
    parser.add_argument(
        "--image-size", type=int, nargs="+", default=[256], metavar="N", help="pixels: side, or height width"
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="0: unconditional")
    parser.add_argument("--train-steps", type=int, metavar="N", help="work out what training costs")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="over all devices (default: 256)")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument(
        "--tflops", type=float, metavar="T", help="sustained by a device, in 10^12 operations a second: gives the time"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(words)
    config = conditioned(lookup("preset", args.preset, PRESETS), args.conditioning)
    if args.num_classes is not None:
        config = replace(config, num_classes=args.num_classes)
    size = args.image_size * 2 if len(args.image_size) == 1 else args.image_size
    factor = FACTORS.get(args.preset.partition("-")[0], 8)
    if len(size) != 2 or min(size) < 1 or any(s % factor for s in size):
        raise UserError(f"--image-size takes a side or a height and a width, multiples of {factor}; got {size}")
    latent = [s // factor for s in size]
    facts = {"name": args.preset, "conditioning": args.conditioning, "image_size": size, **describe(config, latent)}
    if args.train_steps:
        facts["training"] = training(config, facts, args.train_steps, args.batch_size, args.devices, args.tflops)
    print(json.dumps(facts, indent=1) if args.json else as_text(facts))
    return 0


def describe(config: DiTConfig, latent: list[int]) -> dict[str, Any]:
    """Counts of a network on latents of a size."""
    import torch

    from ..model.dit import DiT
    from ..model.flops import macs, tokens

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


def training(
    config: DiTConfig, facts: dict[str, Any], steps: int, batch_size: int, devices: int, tflops: float | None
) -> dict[str, Any]:
    """Operations, memory of each device and hours of a training run: computed, not measured."""
    from ..train.cost import memory, training_flops

    if min(steps, batch_size, devices) < 1 or batch_size % devices or (tflops or 1) <= 0:
        raise UserError(
            "--train-steps, --batch-size and --devices are at least 1, --batch-size a multiple of --devices, "
            f"--tflops above 0; got {steps}, {batch_size}, {devices}, {tflops}"
        )
    flops = training_flops(config, facts["latent_size"], steps * batch_size)
    parts = memory(config, facts["latent_size"], batch_size // devices, facts["trained_parameters"])
    return {
        "steps": steps,
        "batch_size": batch_size,
        "devices": devices,
        "flops": flops,
        "bytes_per_device": sum(parts.values()),
        "bytes_by_part": parts,
        "hours": flops / (devices * tflops * 1e12) / 3600 if tflops else None,
        "tflops": tflops,
    }


def by(size: list[int]) -> str:
    """[256, 256] as "256 x 256"."""
    return " x ".join(map(str, size))


def as_text(facts: dict[str, Any]) -> str:
    """The facts as an aligned table."""
    shares = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in facts["macs_by_part"].items() if value > 5e6)
    rows = {
        "network": f"{facts['name']}, {facts['conditioning']}",
        "picture": f"{by(facts['image_size'])} pixels, latent {by(facts['latent_size'])}",
        "tokens": f"{facts['tokens']:,}",
        "parameters": f"{facts['parameters']:,} ({facts['position_table']:,} of them the fixed position table)",
        "MACs (the paper's Gflops)": f"{facts['macs'] / 1e9:.2f} G for one forward pass of one sample",
        "FLOPs (2 per MAC)": f"{facts['flops'] / 1e9:.2f} G",
        "MACs by part": f"{shares} (G)",
    }
    if training := facts.get("training"):
        parts = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in training["bytes_by_part"].items())
        run = f"{training['steps']:,} steps of {training['batch_size']} on {training['devices']} device(s)"
        rows["training (computed)"] = f"{run}: {training['flops']:.2e} FLOPs, backward counted as twice forward"
        rows["memory (computed)"] = f"{training['bytes_per_device'] / 1e9:.1f} GB on each: {parts}"
        if training["hours"]:
            rate = f"{training['tflops']:g} TFLOP/s sustained on each"
            rows["time (computed)"] = f"{training['hours']:.1f} h, were {rate}"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
