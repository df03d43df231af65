"""The metrics: what each needs of the two sets, and how its numbers come of that.

N samples, K of them kept, D features, R rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from ..metrics.bootstrap import Interval, interval, percentiles
from ..metrics.features import frechet_name
from ..metrics.frechet import frechet, linearised, sampling_bias
from ..metrics.kernel import kid, mmd, resampled
from ..metrics.manifold import crowding, shared
from ..metrics.score import Score as InceptionScore
from .scores import LEVEL, Score
from .side import KEPT, MOMENTS, PARTS_OF_SCORE, SPLITS, Need, Side

NEIGHBOUR = {"pr": 3, "dc": 5}  # k, as in the papers
SUBSET, SUBSETS = 1000, 100  # of KID as papers report it
KERNEL_ROUNDS = 200  # of its interval: each needs a column of N weights
BLOCK = 4096  # rows that are looked at together


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made; `rounds` 0 for none."""

    rounds: int = 1000
    seed: int = 0

    def of_mean(self, values: np.ndarray) -> Interval:
        """Of the mean of values (N,), each from one sample."""
        mean = lambda drawn: float(values[drawn].mean())  # noqa: E731
        return interval(mean, len(values), rounds=self.rounds, seed=self.seed, level=LEVEL)


Measure = Callable[[Side, Any, Bootstrap], Iterator[Score]]  # (samples, reference, ...) -> numbers


@dataclass(frozen=True)
class Metric:
    """A name that people type."""

    what: str
    measure: Measure
    ours: frozenset[Need]  # of the samples
    theirs: frozenset[Need] = frozenset()  # of the reference
    for_interval: frozenset[Need] = frozenset()  # of the samples, where an interval is wanted
    least: int = 2  # samples, and pictures of the reference


def frechet_distance(ours: Side, theirs: Side, bootstrap: Bootstrap, *, metric: str, of: str) -> Iterator[Score]:
    """Heusel et al. 2017; on spatial features Nash et al. 2021. The interval takes the reference as exact."""
    reference, samples = theirs[MOMENTS, of], ours[MOMENTS, of]
    value, between = frechet(reference, samples), None
    if bootstrap.rounds:
        moved = linearised(reference, ours[KEPT, of], ours.extractor)
        between = bootstrap.of_mean(moved - moved.mean() + value)
        between = Interval(max(between.low, 0.0), between.high)
    name = frechet_name(ours.extractor)
    if of == "spatial":
        name = "sFID" if name == "FID" else f"spatial FD ({ours.extractor})"
    yield _score(metric, name, value, between, samples=samples.count, reference=reference.count)


def inception_score(ours: Side, theirs: Any, bootstrap: Bootstrap) -> Iterator[Score]:
    """Salimans et al. 2016, over 10 splits. The interval is that of its logarithm over all samples, linearised."""
    splits = ours[SPLITS, "probabilities"]
    values, between = [split.value for split in splits], None
    value, count = float(np.mean(values)), sum(split.count for split in splits)
    if bootstrap.rounds:
        surprise = _surprise(ours[KEPT, "probabilities"], sum(split.classes for split in splits) / count)
        found = bootstrap.of_mean(surprise - surprise.mean())
        between = Interval(*(value * float(np.exp(move)) for move in found))
    facts = {"samples": count, "reference": None, "splits": len(splits), "std": float(np.std(values))}
    yield _score("is", _called("IS", ours), value, between, **facts)


def kernel_distance(ours: Side, theirs: Side, bootstrap: Bootstrap) -> Iterator[Score]:
    """Binkowski et al. 2018: the unbiased estimate from all pairs; facts have the mean over subsets beside it.

    Both are right on average; this one varies less and draws nothing. The interval resamples both sets.
    """
    real, fake = theirs[KEPT, "pool"], ours[KEPT, "pool"]
    subset, between = min(SUBSET, len(real), len(fake)), None
    of_subsets = kid(real, fake, subsets=SUBSETS, subset_size=subset, seed=bootstrap.seed)
    if bootstrap.rounds:
        values = resampled(real, fake, min(bootstrap.rounds, KERNEL_ROUNDS), bootstrap.seed)
        between = percentiles(values, LEVEL)
    facts = {"subset_size": subset, "subsets": SUBSETS, "subsets_mean": of_subsets.mean, "subsets_std": of_subsets.std}
    yield _score("kid", _called("KID", ours, "KD"), mmd(real, fake), between, **_counts(ours, theirs), **facts)


def precision_recall(ours: Side, theirs: Side, bootstrap: Bootstrap) -> Iterator[Score]:
    """Kynkaanniemi et al. 2019, k = 3 as in ADM. Intervals take the manifolds as given."""
    flags = shared(theirs[KEPT, "pool"], ours[KEPT, "pool"], NEIGHBOUR["pr"])
    for name, values in zip(("precision", "recall"), flags, strict=True):
        yield _mean(name, values, bootstrap, **_counts(ours, theirs), k=NEIGHBOUR["pr"])


def density_coverage(ours: Side, theirs: Side, bootstrap: Bootstrap) -> Iterator[Score]:
    """Naeem et al. 2020, k = 5. Intervals take the real balls as given."""
    counts, covered = crowding(theirs[KEPT, "pool"], ours[KEPT, "pool"], NEIGHBOUR["dc"])
    for name, values in (("density", counts / NEIGHBOUR["dc"]), ("coverage", covered)):
        yield _mean(name, values, bootstrap, **_counts(ours, theirs), k=NEIGHBOUR["dc"])


def _needs(*needs: Need) -> frozenset[Need]:
    return frozenset(needs)


_FEATURES, _STATISTICS, _SPATIAL = _needs((KEPT, "pool")), _needs((MOMENTS, "pool")), _needs((MOMENTS, "spatial"))
METRICS = {
    "fid": Metric(
        "Frechet distance; called FID with the published Inception alone",
        partial(frechet_distance, metric="fid", of="pool"),
        _STATISTICS,
        _STATISTICS,
        for_interval=_FEATURES,
    ),
    "sfid": Metric(
        "the same of spatial features (inception)",
        partial(frechet_distance, metric="sfid", of="spatial"),
        _SPATIAL,
        _SPATIAL,
        for_interval=_needs((KEPT, "spatial")),
    ),
    "is": Metric(
        "Inception Score; needs no reference",
        inception_score,
        _needs((SPLITS, "probabilities")),
        for_interval=_needs((KEPT, "probabilities")),
        least=PARTS_OF_SCORE,
    ),
    "kid": Metric("kernel distance, unbiased", kernel_distance, _FEATURES, _FEATURES),
    "pr": Metric("precision and recall", precision_recall, _FEATURES, _FEATURES, least=NEIGHBOUR["pr"] + 1),
    "dc": Metric("density and coverage", density_coverage, _FEATURES, _FEATURES, least=NEIGHBOUR["dc"] + 1),
}


def cautions(ours: Side, theirs: Side | None) -> Iterator[str]:
    """What a person should know before trusting the numbers, a line each."""
    for of in ("pool", "spatial"):
        if (MOMENTS, of) in ours.parts and theirs is not None:
            samples, reference = ours[MOMENTS, of], theirs[MOMENTS, of]
            for line in samples.cautions():
                bias = sampling_bias(reference, samples.count)
                yield f"samples: {line}; about {bias:.3g} for samples of the reference itself"
            yield from (f"reference: {line}" for line in reference.cautions())
    if (SPLITS, "probabilities") in ours.parts:
        yield from _of_splits(ours[SPLITS, "probabilities"])
    for side in (ours, theirs) if theirs is not None else (ours,):
        kept = [len(rows) for (what, _), rows in side.parts.items() if what == KEPT]
        if kept and side.count is not None and min(kept) < side.count:
            yield f"{side.name}: features of {min(kept):,} of {side.count:,} pictures are kept, evenly spread"
    if theirs is not None and theirs.parts and not theirs.extractor:
        yield f"{theirs.name} does not say what made its features; they must be those of {ours.extractor}"
    if theirs is not None and theirs.size and ours.size and theirs.size != ours.size:
        (h, w), (height, width) = ours.size, theirs.size
        yield f"samples are of {h} x {w} pixels, the reference of {height} x {width}"


def _of_splits(splits: tuple[InceptionScore, ...]) -> Iterator[str]:
    """Of an Inception Score: each split sees a part of the samples, in their order."""
    classes, count = len(splits[0].classes), splits[0].count
    if count < 4 * classes:
        few = f"{count} samples to a split are few for {classes} classes"
        yield f"samples: {few}; Inception Scores come out too low, comparable only at equal sample counts"
    together, mean = reduce(lambda one, other: one.merge(other), splits).value, np.mean([s.value for s in splits])
    if np.log(together / mean) > classes / count + 0.1:  # twice what so few samples explain, and a tenth
        yield (
            f"samples: their classes come in an order, for the Inception Score is {together:.4g} over all of them and "
            f"{mean:.4g} over parts; shuffle them"
        )


def _score(metric: str, name: str, value: float, between: Interval | None, **facts: Any) -> Score:
    low, high = between or (None, None)
    return Score(name, value, low, high, {"metric": metric, **facts})


def _mean(name: str, values: np.ndarray, bootstrap: Bootstrap, **facts: Any) -> Score:
    return _score(name, name, float(values.mean()), bootstrap.of_mean(values) if bootstrap.rounds else None, **facts)


def _called(short: str, ours: Side, general: str = "") -> str:
    """The name that papers know, for the network that they use; with the extractor's name for any other."""
    return short if frechet_name(ours.extractor) == "FID" else f"{general or short} ({ours.extractor})"


def _counts(ours: Side, theirs: Side) -> dict[str, int]:
    return {"samples": len(ours[KEPT, "pool"]), "reference": len(theirs[KEPT, "pool"])}


def _surprise(probabilities: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(K,) divergence of each sample's classes from those of all: their mean is the logarithm of the score."""
    found = np.empty(len(probabilities))
    for start in range(0, len(found), BLOCK):
        rows = probabilities[start : start + BLOCK].astype(np.float64)
        ratio = np.divide(rows, mean, out=np.ones_like(rows), where=rows > 0)
        found[start : start + BLOCK] = (rows * np.log(ratio)).sum(1)
    return found
