"""The laws of a study from the logs of its runs: what a network's cost says of its quality, and of a larger one's.

Everything here follows from the files that `run` wrote, and is the same whenever it is computed from them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..rng import generator
from .law import FEWEST, Law, fit_law, fit_points
from .optimum import Slice, frontier, growth, slices
from .plan import Run
from .results import Network, Result, at_steps, diverged, networks, read_results
from .score import FACTS, write_json
from .study import CONDITIONING, HELD_OUT, LADDER, UNET, Study, named
from .transfer import Sweep, drift, sweeps

PREDICTION, FIT = "prediction.json", "fit.json"
METRICS = ("loss", "frechet")
ROUNDS = 1000
RISE = 0.01  # of the held-out loss over its lowest, from which a run is said to over-fit


@dataclass(frozen=True, eq=False)
class Fitted:
    """A law and the networks that it was fitted to."""

    metric: str  # of METRICS
    against: str  # "gflops" of a forward pass, "compute" of training, or "frontier": the least loss for a compute
    patch: int | None  # of its networks; None: of every patch
    networks: tuple[str, ...]
    x: np.ndarray  # (N,)
    y: np.ndarray  # (N,) means over seeds
    law: Law

    def as_dict(self) -> dict[str, Any]:
        """For fit.json."""
        law = self.law
        return {
            "metric": self.metric,
            "against": self.against,
            "patch": self.patch,
            **{name: getattr(law, name) for name in "abc"},
            **{f"{name}_interval": list(law.interval(name)) for name in "abc"},
            "points": [
                {"network": name, "x": float(x), "y": float(y), "over_law": float(error)}
                for name, x, y, error in zip(self.networks, self.x, self.y, law.errors, strict=True)
            ],
        }


@dataclass(frozen=True, eq=False)
class Findings:
    """All that the finished runs of a study say."""

    study: Study
    results: tuple[Result, ...]
    ladder: list[Network]  # every length
    laws: list[Fitted]
    backtests: list[dict[str, Any]]  # the costliest network of the ladder, from the others
    slices: list[Slice]
    prediction: dict[str, Any] | None  # as it was written before the held-out network was trained
    held_out: Network | None  # as it came out
    unets: list[Network]  # U-Nets beside the ladder
    sweeps: list[Sweep]  # of learning rates
    diverged: dict[str, str]
    reference: dict[str, Any]  # what samples were compared with

    def law(self, metric: str, against: str, patch: int | None = None) -> Fitted | None:
        """One of the laws."""
        keys = (metric, against, patch)
        return next((f for f in self.laws if (f.metric, f.against, f.patch) == keys), None)

    @property
    def equal(self) -> list[Network]:
        """The ladder at equal steps, the most there are."""
        return equal_steps(self.study, self.ladder)

    def misses(self) -> dict[str, dict[str, Any]]:
        """What the held-out network came to beside its prediction, by metric."""
        if not self.prediction or not self.held_out:
            return {}
        found = {}
        for metric, told in self.prediction["metrics"].items():
            if (actual := self.held_out.mean(metric)) is not None:
                low, high = told["interval"]
                miss = {"actual": actual, "miss": actual / told["value"] - 1, "inside": low <= actual <= high}
                others = {name: actual / other["value"] - 1 for name, other in told["others"].items()}
                found[metric] = {**told, **miss, "misses_of_others": others}
        return found

    def conditionings(self) -> dict[str, Network]:
        """The network of each way of conditioning, in the study's order."""
        part = self.study.conditioning
        here = [r for r in self.results if part and (r.facts["width"], r.facts["patch"]) == (part.width, part.patch)]
        groups = equal_steps(self.study, networks(r for r in here if r.role in (LADDER, CONDITIONING)))
        by_kind = {network.runs[0].facts["conditioning"]: network for network in groups}
        return {kind: by_kind[kind] for kind in part.kinds if kind in by_kind} if part else {}

    def duels(self) -> list[dict[str, Any]]:
        """Each U-Net beside what the law of each patch says of a transformer of as many Gflops."""
        found = []
        for network, metric in product(self.unets, METRICS):
            laws = [f for f in self.laws if (f.metric, f.against) == (metric, "gflops")]
            if (value := network.mean(metric)) is not None and laws:
                told = {scope(f): float(f.law.at(network.gflops)) for f in laws if f.patch is not None}
                inside = {scope(f): f.law.span[0] <= network.gflops <= f.law.span[1] for f in laws}
                one = {"network": network.name, "gflops": network.gflops, "metric": metric, "value": value}
                found.append({**one, "transformers": told, "inside": {name: inside[name] for name in told}})
        return found

    def overfitted(self) -> dict[str, float]:
        """Runs whose held-out loss rose again, and by what share over its lowest."""
        rises = {r.name: r.loss / min(loss for _, loss in r.curve) - 1 for r in self.results}
        return {name: rise for name, rise in rises.items() if rise > RISE}

    def as_dict(self) -> dict[str, Any]:
        """For fit.json."""
        return {
            "runs": len(self.results),
            "laws": [fitted.as_dict() for fitted in self.laws],
            "slices": [
                {"compute": s.compute, "patch": s.patch, "best": s.best, "minimum_gflops": s.minimum}
                for s in self.slices
            ],
            "best_size_grows_as_compute_to_the": growth(self.slices),
            "backtests": self.backtests,
            "held_out": self.misses(),
            "unets": self.duels(),
            "best_rates": [{"width": s.width, "mup": s.mup, "rate": s.best, "open": s.open} for s in self.sweeps],
            "best_rates_drift": {name: drift(self.sweeps, mup) for name, mup in (("standard", False), ("mup", True))},
            "over_fitted": self.overfitted(),
            "diverged": self.diverged,
        }


def fit_study(study: Study, folder: Path, *, rounds: int = ROUNDS) -> Findings:
    """All findings from the runs that are finished. UserError where they are too few for any law."""
    results = read_results(study, folder)
    ladder = networks(r for r in results if r.role == LADDER)
    held_out = networks(r for r in results if r.role == HELD_OUT)
    told = read_predictions(folder)
    facts = folder / FACTS
    return Findings(
        study,
        results,
        ladder,
        all_laws(study, ladder, rounds),
        backtests(study, ladder, min(rounds, 300)),
        slices(ladder, study.flops),
        told.get(named(study.held_out.width, study.held_out.patch)) if study.held_out else None,
        held_out[-1] if held_out else None,
        networks(r for r in results if r.role == UNET),
        sweeps(results),
        diverged(folder),
        json.loads(facts.read_text()) if facts.exists() else {},
    )


def equal_steps(study: Study, found: Sequence[Network]) -> list[Network]:
    """Those that trained for the most steps that the study gives to all; none where it gives none."""
    return at_steps(found, max(study.steps)) if study.steps else []


def abscissa(study: Study) -> str:
    """What costs of networks are compared by: a forward pass at equal steps, or else the training."""
    return "gflops" if study.steps else "compute"


def all_laws(study: Study, ladder: Sequence[Network], rounds: int = ROUNDS) -> list[Fitted]:
    """Every law that there are networks enough for. UserError where there is none."""
    equal, found = equal_steps(study, ladder), list[Fitted]()
    for metric in METRICS:
        if equal:
            found += scopes(metric, "gflops", equal, rounds)
        if not equal or len(ladder) > len(equal):
            found += scopes(metric, "compute", ladder, rounds)
    if not found:
        count = len({network.gflops for network in ladder})
        raise UserError(
            f"a power law has three parameters and needs at least {FEWEST} finished networks of different cost; "
            f"there are {count}: `ditwright scale run` makes more"
        )
    return found + least_losses(ladder, rounds)


def scopes(metric: str, against: str, found: Sequence[Network], rounds: int = ROUNDS) -> list[Fitted]:
    """The law of all networks, and those of each patch that has one network more than a law has parameters."""
    having = [network for network in found if network.values(metric)]
    made = []
    for patch in (None, *sorted({network.patch for network in having})):
        part = [network for network in having if patch in (None, network.patch)]
        x = [getattr(network, against) for network in part]
        if len(set(x)) >= FEWEST + (patch is not None):
            law = fit_law(x, [network.values(metric) for network in part], rounds=rounds)
            y = np.array([network.mean(metric) for network in part])
            made.append(Fitted(metric, against, patch, tuple(n.name for n in part), np.array(x), y, law))
    return made


def least_losses(ladder: Sequence[Network], rounds: int = ROUNDS) -> list[Fitted]:
    """The law of the least loss that any network reaches for a compute, where curves tell it."""
    curved = [n for n in ladder if n.runs[0].constant and len(n.runs[0].curve) > 1]
    if len(curved) < FEWEST:
        return []
    x, y = frontier([network.curve() for network in curved])
    samples = []
    for number in range(rounds):
        draws = generator(0, number, "scaling-frontier")
        drawn = [curved[i] for i in draws.integers(len(curved), size=len(curved))]
        again = [Network(tuple(n.runs[i] for i in draws.integers(len(n.runs), size=len(n.runs)))) for n in drawn]
        samples.append(frontier([network.curve() for network in again]))
    law = fit_points(x, y, samples)
    return [Fitted("loss", "frontier", None, tuple(f"{value:.3g}" for value in x), x, y, law)]


def backtests(study: Study, ladder: Sequence[Network], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """The same prediction where its outcome is known: the costliest network of the ladder from the others."""
    against, found = abscissa(study), []
    for metric in METRICS:
        for full in scopes(metric, against, equal_steps(study, ladder) or ladder, 2):
            part = [n for n in equal_steps(study, ladder) or ladder if full.patch in (None, n.patch)]
            last = max(part, key=lambda network: getattr(network, against))
            less = scopes(metric, against, [n for n in part if n.name != last.name], rounds)
            if fitted := next((f for f in less if f.patch == full.patch), None):
                told = outlook(fitted, getattr(last, against))
                actual = last.mean(metric)
                told |= {"actual": actual, "miss": actual / told["value"] - 1} if actual else {}
                found.append({"metric": metric, "patch": full.patch, "network": last.name, **told})
    return found


def outlook(fitted: Fitted, x: float) -> dict[str, Any]:
    """What a law says of a network of cost x."""
    law = fitted.law
    return {"value": float(law.at(x)), "interval": list(law.predicted(x)), "law": {"a": law.a, "b": law.b, "c": law.c}}


def predict(study: Study, laws: Sequence[Fitted], x: float, patch: int) -> dict[str, dict[str, Any]]:
    """By metric: what the law of the network's own patch says, or that of every patch where it has none.

    The others' word is kept beside it. UserError where there is no law to ask.
    """
    found = {}
    for metric in METRICS:
        asked = [f for f in laws if (f.metric, f.against) == (metric, abscissa(study)) and f.patch in (None, patch)]
        said = {scope(fitted): outlook(fitted, x) for fitted in sorted(asked, key=lambda f: f.patch is None)}
        if said:
            first, *others = said
            found[metric] = {"by": first, **said[first], "others": {name: said[name] for name in others}}
    if not found:
        raise UserError(f"there is no law for patch {patch} yet: too few networks are finished")
    return found


def scope(fitted: Fitted) -> str:
    """Whose law it is, for people."""
    return "every patch" if fitted.patch is None else f"patch {fitted.patch}"


def keep_prediction(study: Study, folder: Path, run: Run, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Write down what the finished ladder says of a network that nobody has trained; what is written stays."""
    told = read_predictions(folder)
    if run.network not in told:
        ladder = networks(r for r in read_results(study, folder) if r.role == LADDER)
        x = run.macs / 1e9 if study.steps else float(run.flops)
        told[run.network] = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "steps": run.config.steps,
            "gflops": run.macs / 1e9,
            "training_flops": run.flops,
            "against": abscissa(study),
            "metrics": predict(study, all_laws(study, ladder, rounds), x, run.config.model.patch[0]),
            "made_from": [result.name for network in ladder for result in network.runs],
        }
        write_json(folder / PREDICTION, told)
    return told[run.network]


def read_predictions(folder: Path) -> dict[str, Any]:
    """What was predicted in a study's folder, by network."""
    path = folder / PREDICTION
    return json.loads(path.read_text()) if path.exists() else {}
