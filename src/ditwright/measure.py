"""Samples of the averaged weights against a reference as training goes: the numbers of `ditwright eval`, every N steps.

Sample i of a seed, its class or prompt included, follows from (seed, i): the same noise, classes and prompts at every
step, in every run and on any number of processes, so that differences are those of the weights.
B batch, H height, W width, C channels, M prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import to_dict
from .data.base import Dataset
from .data.prompts import Prompts, captions_of, has_captions
from .data.sources import open_dataset
from .diffusion.config import SampleConfig
from .errors import UserError, lookup
from .evaluate import METRICS, Images, Reading, Score, Side, completed, evaluate, plan, reference_from
from .evaluate.presets import plain
from .experiment import MeasureConfig
from .metrics.extractors import extractor_from
from .metrics.features import Extractor
from .pipeline import Pipeline
from .text.base import TextEncoder
from .text.cache import CachedText
from .train.log import Found
from .train.parallel import World

KEPT = 10_000  # features of the reference, as many as `ditwright eval ref` keeps
TWO = {"pr": ("precision", "recall"), "dc": ("density", "coverage")}  # metrics that are two numbers


@dataclass(frozen=True)
class Gauge:
    """All that stays the same from one measurement to the next."""

    config: MeasureConfig
    extractor: Extractor
    metrics: tuple[str, ...]
    reference: Side | None  # with all that the metrics need; None where they need none
    world: World
    prompts: Prompts | None = None  # where the network hears text

    @property
    def tells(self) -> tuple[str, ...]:
        """The names of its numbers, as TensorBoard has them."""
        return tuple(self.called(name) for metric in self.metrics for name in TWO.get(metric, (metric,)))

    def called(self, name: str) -> str:
        """A number by its name and by what sees the pictures."""
        return f"{name}/{self.extractor.name}"

    def measure(self, pipe: Pipeline) -> Found | None:
        """Draw samples and measure them: every process calls this and does its share, the main one gets the numbers."""
        samples = drawn(self.config, pipe, self.prompts)
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
        curves = {self.called(score.facts["metric"]): score.value for score in scores}
        told = {score.facts["metric"]: flat(score) for score in scores}
        return Found({"scores": told, "drawn": dict(samples.origin), "cautions": list(scores.cautions)}, curves)


def gauge_of(
    config: MeasureConfig,
    pipe: Pipeline,
    data: Dataset,
    held_out: Dataset | None = None,
    *,
    source: str,
    world: World,
) -> Gauge:
    """A gauge for what `pipe` draws; `data`, by the name `source`, is what trains it, `held_out` what validates it.

    The reference's pictures are seen here, once, by all processes together. UserError where anything does not fit.
    """
    for name in config.metrics:
        lookup("metric", name, METRICS)
    prompts = None
    if pipe.encoder is not None:
        prompts = prompts_for(config, data, held_out, source=source, size=side_of(pipe))
        check_known(prompts, pipe.encoder)
    samples, extractor = drawn(config, pipe, prompts), extractor_from(config.extractor, world.device)
    reference = None
    if compares(config):
        reference = reference_of(config, pipe, data, source)
    metrics = plan(config.metrics or None, extractor, reference, picture=samples.first(), count=samples.count)
    if reference is not None:
        if any(METRICS[name].theirs - reference.parts.keys() for name in metrics):
            world.say(
                f"seeing pictures of {reference.name} once, to measure against; ditwright eval ref keeps the outcome"
            )
        reference = completed(reference, extractor, metrics, Reading(world, KEPT, pipe.card.sample.batch_size))
    return Gauge(config, extractor, metrics, reference, world, prompts)


def prompts_for(
    config: MeasureConfig, data: Dataset, held_out: Dataset | None, *, source: str, size: int | None
) -> Prompts:
    """What samples hear: the captions of the pictures that they are compared with, evenly spread over them.

    Where a reference has none, those of held-out data, or else of the data itself. UserError where nothing has any.
    """
    own = (source, data)
    several = [own] if held_out is None else [("data.validation", held_out), own]
    if not config.reference:
        several = [own]
    elif compares(config) and Path(config.reference).suffix != ".npz":
        several = [(config.reference, open_dataset(config.reference, size)), *several]
    name, chosen = next((one for one in several if has_captions(one[1])), own)
    return Prompts(name, captions_of(chosen, config.samples, name))


def check_known(prompts: Prompts, encoder: TextEncoder) -> None:
    """UserError where an encoder that knows the captions of `ditwright prepare` alone does not know a prompt."""
    if isinstance(encoder, CachedText) and (unknown := [text for text in prompts.texts if text not in encoder]):
        raise UserError(
            f"the captions of data.source are encoded, those of {prompts.source!r} are not ({unknown[0]!r}): give "
            "measure.reference an .npz that ditwright eval ref makes of its pictures"
        )


def compares(config: MeasureConfig) -> bool:
    """Whether any metric looks at a reference."""
    return not config.metrics or any(METRICS[name].theirs for name in config.metrics)


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
    return reference_from(config.reference or source, side_of(pipe))


def side_of(pipe: Pipeline) -> int | None:
    """Of the pictures in pixels, where they are square."""
    height, width = pipe.card.image_size or (0, 0)
    return height if height and height == width else None


def settings(config: MeasureConfig, pipe: Pipeline) -> SampleConfig:
    """How samples are drawn: by the run's sampler and steps, with no guidance but the scale that is asked for."""
    return replace(plain(pipe.card.sample), guidance_scale=config.guidance_scale)


def drawn(config: MeasureConfig, pipe: Pipeline, prompts: Prompts | None = None) -> Images:
    """Samples that are drawn when they are looked at; number i is of class i modulo the number of classes.

    Where the network hears text, of prompt i modulo M.
    """
    how, classes, size = settings(config, pipe), pipe.card.model.num_classes, pipe.card.image_size
    blank = torch.zeros(1, pipe.card.model.channels, *pipe.plan(how).space, device=pipe.device)

    def batches(size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        stop = min(stop, config.samples)
        for first in range(start, stop, size):
            numbers = range(first, min(first + size, stop))
            asked = [i % classes if classes else None for i in numbers] if prompts is None else prompts.of(numbers)
            yield pipe.draw(asked, seed=config.seed, first=first, **asdict(how))

    origin = {"num_samples": config.samples, "seed": config.seed, "size": list(size or ()), **to_dict(how)}
    origin |= {} if prompts is None else {"captions": prompts.source}
    return Images("samples of the average", config.samples, batches, origin, like=pipe.codec.ready().decode(blank))


def flat(score: Score) -> dict[str, Any]:
    """A score as a line of metrics.jsonl has it: number, interval, and what they depend on, of the drawing in short."""
    drawn = {key: score.facts["drawn"][key] for key in ("sampler", "num_inference_steps", "guidance_scale", "seed")}
    told = score.plain() | dict(score.facts) | drawn
    return {key: value for key, value in told.items() if key not in ("facts", "metric", "samples_from", "drawn")}
