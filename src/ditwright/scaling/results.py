"""What the finished runs of a study wrote, read again: their logs and scores, and no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .study import CONDITIONING, HELD_OUT, LADDER, TRANSFER, UNET, Study, named

SCORES, DIVERGED, METRICS = "scores.json", "diverged.json", "metrics.jsonl"


@dataclass(frozen=True)
class Result:
    """One finished run."""

    name: str
    network: str
    role: str  # LADDER, CONDITIONING, UNET, TRANSFER or HELD_OUT
    facts: dict[str, Any]  # scores.json
    curve: tuple[tuple[int, float], ...]  # steps done, loss on held-out data
    train_loss: float  # of the last quarter of its steps

    @property
    def loss(self) -> float:
        """On held-out data, in the end."""
        return self.curve[-1][1]

    @property
    def frechet(self) -> float | None:
        """Distance of its samples from the reference, where samples were asked for."""
        return self.facts["frechet"]["value"] if "frechet" in self.facts else None

    @property
    def gflops(self) -> float:
        """10^9 multiply-adds of a forward pass, as the DiT paper counts."""
        return self.facts["macs"] / 1e9

    @property
    def compute(self) -> float:
        """Floating-point operations of its training."""
        return float(self.facts["training_flops"])

    @property
    def seed(self) -> int:
        """Of weights, order and noise."""
        return self.facts["seed"]

    @property
    def rate(self) -> tuple[bool, float]:
        """Whether it followed muP, and its learning rate (at the base width)."""
        return bool(self.facts.get("mup_width")), self.facts["learning_rate"]

    @property
    def constant(self) -> bool:
        """Whether every point of its curve is the end of a shorter run: the learning rate never fell."""
        return self.facts["schedule"] == "constant"


@dataclass(frozen=True)
class Network:
    """The runs of one network for one number of steps, by seed."""

    runs: tuple[Result, ...]

    @property
    def name(self) -> str:
        """Width and patch, and the conditioning where it is another one."""
        return self.runs[0].network

    @property
    def width(self) -> int:
        """Channels."""
        return self.runs[0].facts["width"]

    @property
    def patch(self) -> int:
        """Latents along the side of a token."""
        return self.runs[0].facts["patch"]

    @property
    def steps(self) -> int:
        """Of its training."""
        return self.runs[0].facts["steps"]

    @property
    def gflops(self) -> float:
        """10^9 multiply-adds of a forward pass."""
        return self.runs[0].gflops

    @property
    def compute(self) -> float:
        """Floating-point operations of its training."""
        return self.runs[0].compute

    def values(self, metric: str) -> list[float]:
        """Of every seed; metric is "loss", "frechet" or "train_loss"."""
        return [value for run in self.runs if (value := getattr(run, metric)) is not None]

    def mean(self, metric: str) -> float | None:
        """Over the seeds."""
        return float(np.mean(values)) if (values := self.values(metric)) else None

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Training compute (K,) and the mean over seeds of the held-out loss (K,)."""
        steps = [step for step, _ in self.runs[0].curve]
        losses = np.mean([[loss for _, loss in run.curve] for run in self.runs], axis=0)
        return np.array(steps) / self.steps * self.compute, losses


def read_results(study: Study, folder: Path) -> tuple[Result, ...]:
    """The finished runs that belong to a study, in the order of their cost. UserError where one is damaged."""
    found = [read_result(study, path.parent) for path in sorted(folder.glob(f"*/{SCORES}"))]
    kept = [result for result in found if result is not None]
    return tuple(sorted(kept, key=lambda result: (result.gflops, result.compute, result.seed)))


def read_result(study: Study, folder: Path) -> Result | None:
    """A finished run; None where the study has no place for it."""
    try:
        facts = json.loads((folder / SCORES).read_text())
        lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        if (role := role_of(study, facts)) is None:
            return None
        curve = tuple((line["step"], float(line["val_loss"])) for line in lines if "val_loss" in line)
        late = [line["loss"] for line in lines if "loss" in line and line["step"] > 0.75 * facts["steps"]]
        if not curve or curve[-1][0] != facts["steps"] or not late:
            raise UserError(f"{str(folder / METRICS)!r} ends before step {facts['steps']}, where the run ended")
        return Result(folder.name, facts["network"], role, facts, curve, float(np.mean(late)))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        kind = type(error).__name__
        raise UserError(f"{str(folder)!r} has damaged logs ({kind}: {error}); remove {SCORES} and run again") from error


def role_of(study: Study, facts: dict[str, Any]) -> str | None:
    """What a run is to a study, which may have grown since: part of the ladder, held out, ..., or nothing."""
    place = (facts["width"], facts["patch"])
    if facts.get("role") in (UNET, TRANSFER):
        return facts["role"] if _stands_beside(study, facts) else None
    own = facts["network"] == named(*place)
    if own and study.held_out and place == (study.held_out.width, study.held_out.patch):
        return HELD_OUT
    if own and facts["width"] in study.widths and facts["patch"] in study.patches and facts["seed"] in study.seeds:
        return LADDER
    paper = study.conditioning
    if paper and place == (paper.width, paper.patch) and facts["conditioning"] in paper.kinds:
        return CONDITIONING
    return None


def _stands_beside(study: Study, facts: dict[str, Any]) -> bool:
    """Whether a U-Net, or a run of the learning rates, is one that the study asks for."""
    if facts["role"] == UNET:
        return bool(study.unets) and facts["width"] in study.unets.widths and facts["seed"] in study.seeds
    part = study.transfer
    if not part or facts["width"] not in part.widths or facts["seed"] not in part.seeds:
        return False
    return (facts["patch"], facts["steps"]) == (part.patch, part.steps) and any(
        math.isclose(facts["learning_rate"], study.lr * factor) for factor in part.factors
    )


def networks(results: Iterable[Result]) -> list[Network]:
    """Runs that differ by seed alone, together; in the order of their cost."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.network, result.facts["steps"]), []).append(result)
    made = [Network(tuple(runs)) for runs in groups.values()]
    return sorted(made, key=lambda network: (network.gflops, network.compute))


def diverged(folder: Path) -> dict[str, str]:
    """Runs that left the numbers, and what they said."""
    return {path.parent.name: json.loads(path.read_text())["why"] for path in sorted(folder.glob(f"*/{DIVERGED}"))}


def at_steps(found: Sequence[Network], steps: int) -> list[Network]:
    """Those that trained for so many steps."""
    return [network for network in found if network.steps == steps]
