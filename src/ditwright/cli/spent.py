"""The half of `ditwright info` that is about a run: what it took."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .notes import say

if TYPE_CHECKING:
    from ..experiment import CodecTrainConfig, TrainConfig
    from ..train.config import LogConfig
    from ..train.energy import Estimate, Span

OF_PRESETS = ("conditioning", "image_size", "text_tokens", "num_classes")
OF_PRESETS += ("train_steps", "batch_size", "devices", "memory_gb", "tflops")
OF_PRESETS += ("parallel.data", "parallel.shard", "parallel.sequence", "parallel.tensor")


def run_facts(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Steps, samples, operations, seconds and energy of the run that a folder holds, until its newest checkpoint.

    UserError where there is none, and for options that would change nothing.
    """
    from ..experiment import TrainConfig
    from ..train.job import spans_in
    from ..train.state import read_facts

    for name in OF_PRESETS:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for a preset; {str(folder)!r} is a folder")
    newest = _newest(folder)
    config, facts = _config(folder, newest), read_facts(newest)
    if not all(isinstance(facts.get(name), (int, float)) for name in ("seconds", "step")):
        raise UserError(f"{str(newest)!r} does not say its step and its seconds; its train.json is damaged")
    seconds, samples = facts["seconds"], facts["step"] * config.data.batch_size * config.optim.accumulate
    counted = isinstance(config, TrainConfig)  # an autoencoder's operations are not
    flops = sample_flops(newest) * samples if counted else None
    energy = stated_too(spans_in(facts), seconds, args, config.log)
    return {
        "run": str(folder),
        "steps": facts["step"],
        "steps_asked": config.steps,
        "samples": samples,
        "flops": flops,
        "seconds": seconds,
        "tflops": flops / seconds / 1e12 if flops and seconds else None,
        "energy": energy.as_dict(),
    }


def _newest(folder: Path) -> Path:
    """The newest checkpoint of a run whose facts are as they were written. UserError where there is none."""
    from ..replay import newest_sure
    from ..train.keep import doubt
    from ..train.state import checkpoints

    found, sure = checkpoints(folder), newest_sure(folder)
    if not found:
        raise UserError(
            f"{str(folder)!r} holds no run with a checkpoint; name a preset, or what `ditwright train` wrote"
        )
    if sure != found[-1]:
        damaged = f"{str(found[-1])!r} is damaged ({doubt(found[-1])})"
        if sure is None:
            raise UserError(f"{damaged}, and no other checkpoint is whole")
        say(f"note: {damaged}: told until {sure.name}")
    return sure


def _config(folder: Path, newest: Path) -> TrainConfig | CodecTrainConfig:
    """The configuration of a run, by its file, or by its newest checkpoint where that is not as it was."""
    from ..config import load_yaml
    from ..experiment import CodecTrainConfig, TrainConfig
    from ..train.folder import read_config
    from ..train.state import read_facts

    path, told = folder / "config.yaml", read_facts(newest).get("config")  # not in those of before
    kind = TrainConfig if "codec" in (told or load_yaml(path)) else CodecTrainConfig
    config, wrong = read_config(kind, path, newest)
    if config is None:
        raise UserError(f"{path} {wrong}")
    if wrong:
        say(f"note: {path} {wrong}: taken as {newest} has it")
    return config


def sample_flops(checkpoint: Path) -> int:
    """Operations of training on one sample of the network that a checkpoint holds."""
    from ..config import read_yaml
    from ..files import damage
    from ..pipeline.card import CARD, Card
    from ..train.cost import training_flops

    if why := damage(checkpoint, only=(CARD,)):
        raise UserError(f"{str(checkpoint)!r} is not as it was written: {why}")
    card = read_yaml(Card, checkpoint / CARD)
    if card.image_size is None:
        raise UserError(f"{str(checkpoint / CARD)!r} does not say how large the pictures are")
    text = card.text.length if card.text.kind != "none" else 0
    return training_flops(card.model, [side // card.codec.factor for side in card.image_size], 1, text)


def stated_too(spans: tuple[Span, ...], seconds: float, args: argparse.Namespace, log: LogConfig) -> Estimate:
    """The energy of a run: as it was measured, else at the power that is stated now, else at what was stated then."""
    from ..train.energy import Estimate, by_power

    if args.watts is not None:
        spans = tuple(span for span in spans if not span.stated)
        rest = seconds - sum(span.seconds for span in spans)
        if rest < 0.001 * seconds:
            raise UserError("--watts would change nothing: all of the run's energy was measured")
        spans = (*spans, *by_power(args.watts, rest))
    for name in ("pue", "grams_per_kwh"):
        if getattr(args, name) is not None and not spans:
            raise UserError(f"--{name.replace('_', '-')} needs the run's energy, which is not known: state --watts too")
    pue = log.pue if args.pue is None else args.pue
    grams = log.grams_per_kwh if args.grams_per_kwh is None else args.grams_per_kwh
    return Estimate(spans, seconds, pue, grams)


def run_text(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as rows of a table."""
    counted = "model's operations, backward counted as twice forward; what is computed anew is not"
    rows = {"run": f"{facts['run']}, step {facts['steps']:,} of {facts['steps_asked']:,}"}
    rows["samples"] = f"{facts['samples']:,}"
    if facts["flops"] is not None:
        rows["FLOPs (computed)"] = f"{facts['flops']:.3g}: the {counted}"
    rows["time (measured)"] = f"{facts['seconds']:,.1f} s, with previews, measurements and checkpoints"
    if facts["tflops"] is not None:
        rows["mean speed"] = f"{facts['tflops']:.3g} TFLOP/s over all devices, in all of that time"
    return rows | {"energy": facts["energy"]["text"]}
