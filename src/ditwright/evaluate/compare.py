"""Samples against a reference, by any of the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.distributed as dist

from ..errors import UserError, lookup
from ..metrics.extractors import extractor_from
from ..metrics.features import Extractor, describe
from ..train.parallel import World, join
from .measures import METRICS, Bootstrap, cautions
from .pictures import Images, images_from
from .reference import check_fits, reference_from
from .scores import Scores
from .side import MOST_KEPT, Need, Reading, Side, Watch, collect, nothing, offered

Pictures = str | Path | np.ndarray | Images


def evaluate(
    samples: Pictures,
    reference: Pictures | Side | None,
    extractor: Extractor | str,
    metrics: Sequence[str] | None = None,
    *,
    size: int | None = None,
    rounds: int = 1000,
    seed: int = 0,
    keep: int = MOST_KEPT,
    batch_size: int = 64,
    world: World | None = None,
    watch: Watch = nothing,
) -> Scores | None:
    """Measure samples against a reference; each number comes with an interval and with all that it depends on.

    samples     an .npz with arr_0, a folder, a name of a data set, or an array (N, H, W, C) uint8
    reference   the same; an .npz of statistics; a `Side`, for several comparisons with one; None for `is` alone
    extractor   what sees the pictures, or its name, such as "judge:FILE"
    metrics     keys of METRICS; by default all that the extractor and the reference allow
    size        side to which pictures of folders are cropped, as ADM crops them
    rounds      of the bootstrap; 0 for no intervals, and no features in memory where the metric needs none
    keep        features of at most so many pictures of each set are kept, evenly spread

    Under torchrun every process calls this with the same arguments and sees its share; unless `world` says otherwise.
    The main one returns the scores, the others None. UserError where anything does not fit, before the long work if
    it can be known by then.
    """
    began = dist.is_available() and dist.is_initialized()
    world = world or join()
    try:
        if isinstance(extractor, str):
            extractor = extractor_from(extractor, world.device)
        if keep < 2:
            raise UserError(f"features of at least 2 pictures must be kept; got {keep}")
        ours = images_from(samples, size)
        theirs = None if reference is None else reference_from(reference, size)
        asked = plan(metrics, extractor, theirs, picture=ours.first(), count=ours.count)
        reading = Reading(world, keep, batch_size, watch)
        if theirs is not None:
            theirs = completed(theirs, extractor, asked, reading)
        needs = _union(METRICS[name].ours | (METRICS[name].for_interval if rounds else set()) for name in asked)
        found = collect(ours, extractor, needs, reading)
        return _measured(asked, found, theirs, extractor, Bootstrap(rounds, seed)) if world.main else None
    finally:
        if not began:
            world.leave()


def plan(
    metrics: Sequence[str] | None,
    extractor: Extractor,
    reference: Side | None,
    *,
    picture: np.ndarray,
    count: int,
) -> tuple[str, ...]:
    """The metrics of a comparison of `count` samples, which are like `picture` (1, H, W, C).

    UserError where one is not known or cannot be had; by default those that can.
    """
    if reference is not None:
        check_fits(reference, extractor)
    asked = tuple(dict.fromkeys(METRICS if metrics is None else metrics))
    if not asked:
        raise UserError(f"no metric is asked for; known: {', '.join(METRICS)}")
    parts = offered(extractor, picture)
    refusals = {name: why for name in asked if (why := _refusal(name, extractor, parts, reference, count))}
    if refusals and (metrics is not None or len(refusals) == len(asked)):
        raise UserError(next(iter(refusals.values())))
    return tuple(name for name in asked if name not in refusals)


def _refusal(name: str, extractor: Extractor, parts: set[str], reference: Side | None, count: int) -> str:
    """Why a metric cannot be had; nothing where it can."""
    metric = lookup("metric", name, METRICS)
    for _, of in sorted(metric.ours):
        if of not in parts:
            return f"{name} needs {of} features, which {extractor.name} does not give"
    if count < metric.least:
        return f"{count} samples are too few for {name}: at least {metric.least} are needed"
    if not metric.theirs:
        return ""
    if reference is None:
        return f"{name} needs a reference; without one only is can be had"
    missing = metric.theirs - reference.parts.keys()
    if missing and reference.images is None:
        of = next(iter(missing))[1]
        lacks = "spatial statistics (mu_s, sigma_s)" if of == "spatial" else "features of single pictures"
        return (
            f"{name} needs {lacks}, which {reference.name!r} does not hold; make a reference that does: "
            "ditwright eval ref PICTURES --extractor ... --output FILE"
        )
    if reference.count is not None and reference.count < metric.least:
        return f"{reference.count} pictures in {reference.name!r} are too few for {name}: at least {metric.least}"
    return ""


def _union(several: Iterable[frozenset[Need]]) -> set[Need]:
    return set().union(*several)


def completed(theirs: Side, extractor: Extractor, metrics: Sequence[str], reading: Reading) -> Side:
    """A reference with all that some metrics need of it: what it does not hold yet is made from its pictures.

    It must be planned so. Many comparisons with the outcome see the pictures once.
    """
    needs = _union(METRICS[name].theirs for name in metrics)
    held = {need: part for need, part in theirs.parts.items() if need in needs}
    if not (missing := needs - held.keys()):
        return replace(theirs, parts=held)
    assert theirs.images is not None, "it was planned so"
    made = collect(theirs.images, extractor, missing, reading)
    return replace(made, extractor=theirs.extractor if held else made.extractor, parts={**held, **made.parts})


def _measured(
    asked: tuple[str, ...], ours: Side, theirs: Side | None, extractor: Extractor, bootstrap: Bootstrap
) -> Scores:
    general = {**describe(extractor), "samples_from": ours.name, "drawn": dict(ours.origin)}
    scores = []
    for name in asked:
        of = theirs.name if theirs is not None and METRICS[name].theirs else None
        for score in METRICS[name].measure(ours, theirs, bootstrap):
            scores.append(replace(score, facts={**score.facts, **general, "reference_from": of}))
    return Scores(tuple(scores), tuple(dict.fromkeys(cautions(ours, theirs))))
