"""ditwright info DiT-XL/2: what a network is and costs, without allocating its weights; or what a run took."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import UserError, lookup
from ..model.baseline import NetConfig, UNetConfig
from ..model.config import CONDITIONINGS, DiTConfig, conditioned
from ..model.presets import BASELINES, PRESETS
from .main import Parser
from .spent import run_facts, run_text

NETWORKS: dict[str, NetConfig] = {**PRESETS, **BASELINES}
FACTORS = {"LightningDiT": 16, "ADM": 1}  # pixels per latent of the autoencoder that a preset is for; 8 for the rest
TEXT = {  # start of a preset's name -> tokens of text that it is for; 77 for the rest, as CLIP reads
    "FLUX.1-dev": 512,
    "FLUX.1-schnell": 256,
    "PixArt-alpha": 120,
    "PixArt-sigma": 300,
    "SD3": 333,
}
WAYS = {  # what a run is spread over, in the words of `ditwright train`
    "data": "copies of the weights",
    "shard": "devices that hold a part of each copy (FSDP2)",
    "sequence": "devices that share the tokens of a sample",
    "tensor": "devices that share the matrices of blocks",
}
OFFLOADED = ("weights", "gradients", "optimizer", "average")  # what waits in the host's memory with parallel.offload
NEEDS = {  # an option, and the one without which it would change nothing
    "tflops": "train_steps",
    "watts": "tflops",
    "pue": "watts",
    "grams_per_kwh": "watts",
}


def run(words: list[str]) -> int:
    args = parser().parse_args(words)
    for option, low in (("tflops", 0), ("watts", 0), ("grams_per_kwh", 0), ("memory_gb", 0), ("pue", 1)):
        value = getattr(args, option)
        if value is not None and not (0 < value < math.inf and value >= low):
            least = "of at least 1" if low else "above 0"
            raise UserError(f"--{option.replace('_', '-')} must be a number {least}; got {value:g}")
    if args.preset not in NETWORKS and Path(args.preset).is_dir():
        if vars(args)["parallel.offload"] is not None:
            raise UserError(f"--parallel.offload is for a preset; {args.preset!r} is a folder")
        facts = run_facts(Path(args.preset), args)
        print(json.dumps(facts, indent=1) if args.json else table(run_text(facts)))
        return 0
    facts = preset_facts(args)
    print(json.dumps(facts, indent=1) if args.json else as_text(facts))
    return 0


def parser() -> Parser:
    """The options."""
    parser = Parser(
        prog="ditwright info",
        description="Parameters, tokens, multiply-adds and FLOPs of a network; or what a run took.",
    )
    parser.add_argument("preset", metavar="preset-or-run", help=f"a run folder, or one of: {', '.join(NETWORKS)}")
    parser.add_argument("--conditioning", metavar="NAME", help=f"{', '.join(CONDITIONINGS)} (default: adaln-zero)")
    parser.add_argument(
        "--image-size", type=int, nargs="+", metavar="N", help="pixels: side, or height width (default: 256)"
    )
    parser.add_argument("--text-tokens", type=int, metavar="N", help="of a prompt (default: what the preset is for)")
    parser.add_argument("--num-classes", type=int, metavar="N", help="0: unconditional")
    parser.add_argument("--train-steps", type=int, metavar="N", help="work out what training costs")
    parser.add_argument("--batch-size", type=int, metavar="N", help="over all devices (default: 256)")
    parser.add_argument("--devices", type=int, metavar="N", help="(default: 1)")
    for name, what in WAYS.items():
        parser.add_argument(f"--parallel.{name}", type=int, metavar="N", help=f"memory of each device, with N {what}")
    parser.add_argument(
        "--parallel.offload", choices=("true", "false"), help="what a device holds waits in the memory of the host"
    )
    parser.add_argument(
        "--memory-gb", type=float, metavar="GB", help="of each device: how many blocks to compute again to fit into it"
    )
    parser.add_argument(
        "--tflops", type=float, metavar="T", help="sustained by a device, in 10^12 operations a second: gives the time"
    )
    parser.add_argument(
        "--watts", type=float, metavar="W", help="that each device takes; of a run: all together, where not measured"
    )
    parser.add_argument("--pue", type=float, metavar="P", help="what the building takes for a kWh of them (default: 1)")
    parser.add_argument("--grams-per-kwh", type=float, metavar="G", help="of CO2, of the grid there: gives the CO2")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def preset_facts(args: Namespace) -> dict[str, Any]:
    """What a network is, and what its training would cost where that is asked."""
    config, conditioning = lookup("preset", args.preset, NETWORKS), args.conditioning
    if isinstance(config, DiTConfig) and not config.text_width:
        conditioning = conditioning or "adaln-zero"
        config = conditioned(config, conditioning)
    elif conditioning:
        told, what = (" told a class", "reads text") if isinstance(config, DiTConfig) else ("", "is a U-Net")
        raise UserError(f"--conditioning is for transformers{told}; {args.preset} {what}")
    text = text_tokens(config, args.preset, args.text_tokens)
    for option, other in NEEDS.items():
        if getattr(args, option) is not None and getattr(args, other) is None:
            option, other = (f"--{name.replace('_', '-')}" for name in (option, other))
            raise UserError(f"{option} would change nothing without {other}")
    ways = {name: vars(args)[f"parallel.{name}"] for name in WAYS}
    ways = {name: count for name, count in ways.items() if count is not None}
    offload = vars(args)["parallel.offload"]
    asked = args.train_steps is not None or args.memory_gb is not None or bool(ways) or offload is not None
    for option in ("batch_size", "devices"):
        if getattr(args, option) is not None and not asked:
            option = option.replace("_", "-")
            raise UserError(f"--{option} would change nothing without --train-steps, --parallel or --memory-gb")
    if args.num_classes is not None:
        config = replace(config, num_classes=args.num_classes)
    size, latent = sizes(args.preset, args.image_size or [256])
    facts = {"name": args.preset, "conditioning": conditioning, "image_size": size}
    facts |= {"text_tokens": text, **describe(config, latent, text)}
    batch_size = 256 if args.batch_size is None else args.batch_size
    if asked:
        spread = spread_over(config, batch_size, args.devices, ways)
        most = args.memory_gb
        facts["memory"] = memory_facts(config, facts, batch_size, spread=spread, most=most, offload=offload == "true")
    if args.train_steps is not None:
        facts["training"] = training(config, facts, args.train_steps, args.tflops)
        if args.watts is not None:
            facts["training"]["energy"] = energy(facts["training"], args.watts, args.pue, args.grams_per_kwh)
    return facts


def text_tokens(config: NetConfig, preset: str, given: int | None) -> int:
    """Tokens of the text that a network reads; 0 where it reads none."""
    reads = isinstance(config, DiTConfig) and config.text_width > 0
    if given is not None and (not reads or given < 1):
        raise UserError(f"--text-tokens is 1 or more, of a network that reads text; got {given} for {preset}")
    known = next((count for start, count in TEXT.items() if preset.startswith(start)), 77)
    return (given or known) if reads else 0


def sizes(preset: str, side: list[int]) -> tuple[list[int], list[int]]:
    """Height and width of a preset's pictures and of their latents, from a side or both."""
    size = side * 2 if len(side) == 1 else side
    factor = FACTORS.get(preset.partition("-")[0], 8)
    if len(size) != 2 or min(size) < 1 or any(s % factor for s in size):
        raise UserError(f"--image-size takes a side or a height and a width, multiples of {factor}; got {size}")
    return size, [s // factor for s in size]


def describe(config: NetConfig, latent: list[int], text: int) -> dict[str, Any]:
    """Counts of a network on latents of a size and a text of so many tokens."""
    from ..model.build import parameters
    from ..model.flops import macs, tokens

    parts, length, trained = macs(config, latent, text), tokens(config, latent), parameters(config)
    fixed = isinstance(config, DiTConfig) and config.sincos and not config.text_width  # a parameter in DiT's code alone
    table = length * config.width if fixed else 0
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


def spread_over(config: NetConfig, batch_size: int, devices: int | None, ways: dict[str, int]) -> dict[str, int]:
    """The ways that training is spread over, those that are not asked for too. `devices` hold all weights each.

    UserError, with the option at fault, where that cannot be.
    """
    if devices is not None and ways:
        raise UserError("--devices are copies of the weights, as --parallel.data is; give one of them")
    given = {f"--parallel.{name}": count for name, count in ways.items()}
    given |= {} if devices is None else {"--devices": devices}
    for option, count in ({"--batch-size": batch_size} | given).items():
        if count < 1:
            raise UserError(f"{option} must be at least 1; got {count}")
    spread = {"data": 1 if devices is None else devices, "shard": 1, "sequence": 1} | ways
    parts = spread["data"] * spread["shard"]  # of a batch
    if batch_size % parts:
        what = product(given, "--devices", "--parallel.data", "--parallel.shard")
        raise UserError(f"--batch-size {batch_size} is not a multiple of {what}, the parts of a batch")
    each = spread["sequence"] * spread.get("tensor", 1)
    if spread["sequence"] > 1 and isinstance(config, UNetConfig):
        raise UserError("--parallel.sequence is for transformers, whose tokens can be shared; a U-Net has none")
    if spread["sequence"] > 1 and config.heads % each:
        what = product(given, "--parallel.sequence", "--parallel.tensor")
        raise UserError(f"{what} shares {config.heads} heads, which {each} does not divide")
    if each > spread["sequence"]:
        check_parts(config, spread["tensor"])
    return spread


def product(given: dict[str, int], *options: str) -> str:
    """Those of some options that part anything, in words."""
    return " times ".join(f"{option} {given[option]}" for option in options if given.get(option, 1) > 1)


def memory_facts(
    config: NetConfig, facts: dict[str, Any], batch: int, *, spread: dict[str, int], most: float | None, offload: bool
) -> dict[str, Any]:
    """Memory of each device in training, by part, and what each takes of its host's: computed, not measured.

    `batch`: over all devices; `most`: GB that it may be; for that, some blocks compute their activations again.
    """
    from ..train.cost import memory, recomputed_within

    count, parts = facts["trained_parameters"], spread["data"] * spread["shard"]
    ways = {name: number for name, number in spread.items() if name != "data"}  # each copy holds what one does
    sizes = (facts["latent_size"], batch // parts, count, facts["text_tokens"])
    more: dict[str, Any] = {}
    if most is None:
        found = memory(config, *sizes, **ways)
    elif offload:
        raise UserError("--memory-gb counts weights on the device, --parallel.offload keeps them off: give one of them")
    else:
        again, found = recomputed_within(1e9 * most, config, *sizes, **ways)
        more = {"memory_gb": most, "recomputed_blocks": again, "blocks": config.depth}
    if offload:
        host = {part: found[part] for part in OFFLOADED}
        found = offloaded(config, memory(config, *sizes, **ways | {"shard": max(2, ways["shard"])}), ways)
        more = {"host_bytes_per_device": sum(host.values()), "host_bytes_by_part": host}
    return {
        "batch_size": batch,
        "devices": math.prod(spread.values()),
        "parallel": spread | ({"offload": True} if offload else {}),
        "bytes_per_device": sum(found.values()),
        "bytes_by_part": found,
    } | more


def offloaded(config: NetConfig, parts: dict[str, int], ways: dict[str, int]) -> dict[str, int]:
    """Bytes that stay on a device whose weights wait in the memory of the host, by part.

    `parts`: of two shards or more, as FSDP2 trains, which offloads one as well: what is whole at once is the same for
    any number. Besides, the device's part of weights of whole blocks and of gradients of one passes through, in fp32.
    """
    from ..train.cost import AHEAD, largest_block

    block, rest = largest_block(config, ways.get("tensor", 1))
    kept = {name: count for name, count in parts.items() if name not in OFFLOADED}
    return kept | {"on the way": 4 * math.ceil(((AHEAD + 1) * block + rest) / ways["shard"])}


def check_parts(config: NetConfig, processes: int) -> None:
    """UserError where so many processes cannot share a network's matrices."""
    import torch

    from ..model.build import empty
    from ..model.tensor_parallel import blocks_of, check

    with torch.device("meta"):
        blocks = blocks_of(empty(config))
    try:
        check(blocks, processes)
    except UserError as error:
        raise UserError(f"--parallel.tensor {processes}: {error}") from None


def training(config: NetConfig, facts: dict[str, Any], steps: int, tflops: float | None) -> dict[str, Any]:
    """Operations, memory of each device and hours of a training run: computed, not measured.

    Hours are also for what is computed again, operations are not.
    """
    from ..train.cost import BACKWARD, training_flops

    if steps < 1 or (tflops or 1) <= 0:
        raise UserError(f"--train-steps is at least 1, --tflops above 0; got {steps} and {tflops}")
    memory = facts["memory"]
    flops = training_flops(config, facts["latent_size"], steps * memory["batch_size"], facts["text_tokens"])
    again = memory.get("recomputed_blocks", 0) / memory.get("blocks", 1) / (1 + BACKWARD)  # nearly all is in blocks
    return {
        "steps": steps,
        **{key: memory[key] for key in ("batch_size", "devices")},
        "flops": flops,
        **{key: memory[key] for key in ("bytes_per_device", "bytes_by_part")},
        "hours": (1 + again) * flops / (memory["devices"] * tflops * 1e12) / 3600 if tflops else None,
        "tflops": tflops,
    }


def energy(training: dict[str, Any], watts: float, pue: float | None, grams: float | None) -> dict[str, Any]:
    """Energy and CO2 of a training run at a stated power of each device: computed, not measured."""
    from ..train.energy import Estimate, by_power

    seconds, devices = 3600 * training["hours"], training["devices"]
    basis = f"{watts:g} W for each of {devices} device(s) as stated, for the hours above"
    return Estimate(by_power(devices * watts, seconds, basis), seconds, pue or 1.0, grams or 0.0).as_dict()


def by(size: list[int]) -> str:
    """[256, 256] as "256 x 256"."""
    return " x ".join(map(str, size))


def as_text(facts: dict[str, Any]) -> str:
    """The facts as an aligned table."""
    shares = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in facts["macs_by_part"].items() if value > 5e6)
    stored = f" ({facts['position_table']:,} of them the fixed position table)" if facts["position_table"] else ""
    rows = {
        "network": facts["name"] + (f", {facts['conditioning']}" if facts["conditioning"] else ""),
        "picture": f"{by(facts['image_size'])} pixels, latent {by(facts['latent_size'])}",
        "tokens": f"{facts['tokens']:,}" + (f", and {facts['text_tokens']} of text" if facts["text_tokens"] else ""),
        "parameters": f"{facts['parameters']:,}{stored}",
        "MACs (the paper's Gflops)": f"{facts['macs'] / 1e9:.2f} G for one forward pass of one sample",
        "FLOPs (2 per MAC)": f"{facts['flops'] / 1e9:.2f} G",
        "MACs by part": f"{shares} (G)",
    }
    training, memory = facts.get("training"), facts.get("memory")
    if training:
        run = f"{training['steps']:,} steps of {training['batch_size']} on {training['devices']} device(s)"
        rows["training (computed)"] = f"{run}: {training['flops']:.2e} FLOPs, backward counted as twice forward"
    if memory:
        parts = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in memory["bytes_by_part"].items())
        each = (
            "each" if training else f"each of {memory['devices']} device(s) training batches of {memory['batch_size']}"
        )
        rows["memory (computed)"] = f"{memory['bytes_per_device'] / 1e9:.1f} GB on {each}: {parts}"
        if "host_bytes_per_device" in memory:
            host = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in memory["host_bytes_by_part"].items())
            rows["host (computed)"] = f"{memory['host_bytes_per_device'] / 1e9:.1f} GB of its memory for each: {host}"
        if "memory_gb" in memory:
            again = f"{memory['recomputed_blocks']} of {memory['blocks']} blocks"
            rows["recomputed (computed)"] = f"{again}, the fewest for at most {memory['memory_gb']:g} GB"
    if training:
        if training["hours"]:
            rate = f"{training['tflops']:g} TFLOP/s sustained on each"
            again = ", what is recomputed counted in" if memory and memory.get("recomputed_blocks") else ""
            rows["time (computed)"] = f"{training['hours']:.1f} h, were {rate}{again}"
        if "energy" in training:
            rows["energy (computed)"] = training["energy"]["text"]
    return table(rows)


def table(rows: dict[str, str]) -> str:
    """Rows of a name and what it is, aligned."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
