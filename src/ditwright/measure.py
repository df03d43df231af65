"""Samples of the averaged weights against a reference as training goes: the numbers of `ditwright eval`, every N steps.

Sample i of a seed, its class included, follows from (seed, i): the same noise and classes at every step, in every run
and on any number of processes, so that differences are those of the weights. B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from .config import to_dict
from .data.base import Dataset
from .diffusion.config import SampleConfig
from .errors import UserError, lookup
from .evaluate import METRICS, Images, Reading, Score, Side, completed, evaluate, plan, reference_from
from .evaluate.presets import plain
from .experiment import MeasureConfig
from .metrics.extractors import extractor_from
from .metrics.features import Extractor
from .pipeline import Pipeline
from .train.log import Found
from .train.parallel import World

KEPT = 10_000  # features of the reference, as many as `ditwright eval ref` keeps


@dataclass(frozen=True)
class Gauge:
    """All that stays the same from one measurement to the next."""

    config: MeasureConfig
    extractor: Extractor
    metrics: tuple[str, ...]
    reference: Side | None  # with all that the metrics need; None where they need none
    world: World

    def measure(self, pipe: Pipeline) -> Found | None:
        """Draw samples and measure them: every process calls this and does its share, the main one gets the numbers."""
        samples = drawn(self.config, pipe)
        scores = evaluate(
            samples,
            self.reference,
            self.extractor,
            self.metrics,
            rounds=self.config.rounds,
            seed=self.config.seed,
            batch_size=pipe.card.sample.batch_size,
            world=self.world,
        )
        if scores is None:
            return None
        curves = {f"{score.facts['metric']}/{self.extractor.name}": score.value for score in scores}
        told = {score.facts["metric"]: flat(score) for score in scores}
        return Found({"scores": told, "drawn": dict(samples.origin), "cautions": list(scores.cautions)}, curves)


def gauge_of(config: MeasureConfig, pipe: Pipeline, data: Dataset, *, source: str, world: World) -> Gauge:
    """A gauge for what `pipe` draws; `data`, by the name `source`, is what trains it.

    The reference's pictures are seen here, once, by all processes together. UserError where anything does not fit.
    """
    if pipe.encoder is not None:
        raise UserError("measure.every draws a sample of each class in turn, and this network hears text; leave it 0")
    for name in config.metrics:
        lookup("metric", name, METRICS)
    samples, extractor = drawn(config, pipe), extractor_from(config.extractor, world.device)
    reference = None
    if not config.metrics or any(METRICS[name].theirs for name in config.metrics):
        reference = reference_of(config, pipe, data, source)
    metrics = plan(config.metrics or None, extractor, reference, picture=samples.first(), count=samples.count)
    if reference is not None:
        if any(METRICS[name].theirs - reference.parts.keys() for name in metrics):
            world.say(
                f"seeing pictures of {reference.name} once, to measure against; ditwright eval ref keeps the outcome"
            )
        reference = completed(reference, extractor, metrics, Reading(world, KEPT, pipe.card.sample.batch_size))
    return Gauge(config, extractor, metrics, reference, world)


def reference_of(config: MeasureConfig, pipe: Pipeline, data: Dataset, source: str) -> Side:
    """What samples are compared with, no picture of it seen yet: what is named, or the pictures that are trained on."""
    if not config.reference:
        latents = data.codec is not None and data.codec["kind"] != "pixels"
        if latents or len(data.groups) != 1:
            what = "latents" if latents else "pictures of several sizes"
            raise UserError(
                f"measure.reference is missing: {source!r} holds {what}, and metrics look at pictures of one size; "
                "name those that it was prepared from, or an .npz that ditwright eval ref made of them"
            )
    height, width = pipe.card.image_size or (0, 0)
    return reference_from(config.reference or source, height if height and height == width else None)


def settings(config: MeasureConfig, pipe: Pipeline) -> SampleConfig:
    """How samples are drawn: by the run's sampler and steps, with no guidance but the scale that is asked for."""
    return replace(plain(pipe.card.sample), guidance_scale=config.guidance_scale)


def drawn(config: MeasureConfig, pipe: Pipeline) -> Images:
    """Samples that are drawn when they are looked at; number i is of class i modulo the number of classes."""
    how, classes, size = settings(config, pipe), pipe.card.model.num_classes, pipe.card.image_size
    blank = torch.zeros(1, pipe.card.model.channels, *pipe.plan(how).space, device=pipe.device)

    def batches(size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        stop = min(stop, config.samples)
        for first in range(start, stop, size):
            labels = [number % classes if classes else None for number in range(first, min(first + size, stop))]
            yield pipe.draw(labels, seed=config.seed, first=first, **asdict(how))

    origin = {"num_samples": config.samples, "seed": config.seed, "size": list(size or ()), **to_dict(how)}
    return Images("samples of the average", config.samples, batches, origin, like=pipe.codec.ready().decode(blank))


def flat(score: Score) -> dict[str, Any]:
    """A score as a line of metrics.jsonl has it: number, interval, and what they depend on, of the drawing in short."""
    drawn = {key: score.facts["drawn"][key] for key in ("sampler", "num_inference_steps", "guidance_scale", "seed")}
    told = score.plain() | dict(score.facts) | drawn
    return {key: value for key, value in told.items() if key not in ("facts", "metric", "samples_from", "drawn")}
