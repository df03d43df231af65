"""The tables of a study: what was run, the laws, what was foretold and what came."""

from __future__ import annotations

import numpy as np

from .figures import NAMES
from .fit import Findings, Fitted, scope
from .results import Network, networks
from .study import TRANSFER
from .tables import Table, brief, duration, within

# Quoted from Peebles & Xie 2022, block designs: FID-50K of DiT-XL/2 on ImageNet after 400,000 steps.
QUOTED = {"in-context": 35.24, "cross": 26.14, "adaln": 25.21, "adaln-zero": 19.47}


def equation(fitted: Fitted) -> str:
    """A law in words, with the interval of its exponent."""
    law = fitted.law
    return f"{brief(law.c)} + {brief(law.a)} x^-b, b = {within(law.b, law.interval('b'))}"


def correlation(fitted: Fitted) -> float:
    """Of log cost with log quality."""
    return float(np.corrcoef(np.log(fitted.x), np.log(fitted.y))[0, 1])


def law_table(findings: Findings) -> Table:
    """Every law with its intervals."""
    against = {"gflops": "Gflops", "compute": "training FLOPs", "frontier": "training FLOPs, least loss"}
    rows = [
        (
            f"{NAMES[f.metric]}, {scope(f)}",
            against[f.against],
            str(len(f.x)),
            *(within(getattr(f.law, part), f.law.interval(part)) for part in "bca"),
            f"{100 * float(np.sqrt(np.mean(f.law.errors**2))):.1f}%",
            f"{correlation(f):.2f}",
        )
        for f in findings.laws
    ]
    return Table(("law y = a x^-b + c", "x", "points", "b", "floor c", "a", "scatter", "correlation"), rows)


def prediction_table(findings: Findings) -> Table:
    """What was foretold and what came: the held-out network, and the costliest of the ladder from the others."""
    rows = []
    for metric, miss in findings.misses().items():
        network = findings.held_out.name if findings.held_out else "-"
        row = (f"{network}, {NAMES[metric]}", f"{miss['by']}, written before training")
        rows.append(
            (*row, within(miss["value"], miss["interval"]), brief(miss["actual"]), f"{100 * miss['miss']:+.1f}%")
        )
        for name, other in miss["others"].items():
            told = within(other["value"], other["interval"])
            share = miss["misses_of_others"][name]
            rows.append((row[0], f"{name}, written beside it", told, brief(miss["actual"]), f"{100 * share:+.1f}%"))
    for test in findings.backtests:
        law = "every patch" if test["patch"] is None else f"patch {test['patch']}"
        rows.append(
            (
                f"{test['network']}, {NAMES[test['metric']]}",
                f"{law}, without it",
                within(test["value"], test["interval"]),
                brief(test["actual"]),
                f"{100 * test['miss']:+.1f}%",
            )
        )
    return Table(("network", "law", "predicted", "came to", "miss"), rows)


def slice_table(findings: Findings) -> Table:
    """The best size for each compute."""
    rows = [
        (f"{s.compute:.2e}", str(s.patch), ", ".join(s.networks), s.best, brief(s.minimum)) for s in findings.slices
    ]
    return Table(("training FLOPs", "patch", "networks", "best of them", "lowest point (Gflops)"), rows)


def conditioning_table(found: dict[str, Network]) -> Table:
    """Each way of conditioning beside the paper's number."""
    rows = [
        (
            kind,
            network.name,
            f"{network.runs[0].facts['parameters']:,}",
            brief(network.gflops),
            values(network, "loss"),
            values(network, "frechet"),
            str(QUOTED.get(kind, "-")),
        )
        for kind, network in found.items()
    ]
    return Table(("conditioning", "network", "parameters", "Gflops", "held-out loss", "Frechet", "paper's FID"), rows)


def values(network: Network, metric: str) -> str:
    """The mean over seeds, and the seeds."""
    found = network.values(metric)
    return brief(network.mean(metric)) + (f" ({', '.join(map(brief, found))})" if len(found) > 1 else "")


def network_table(findings: Findings) -> Table:
    """Every network that was trained, with what it came to."""
    rows = []
    for network in networks(r for r in findings.results if r.role != TRANSFER):
        facts = network.runs[0].facts
        rows.append(
            (
                network.name,
                str(facts["depth"]),
                f"{facts['parameters']:,}",
                brief(network.gflops),
                str(facts["tokens"]),
                f"{facts['steps']:,}",
                f"{facts['learning_rate']:g}",
                f"{network.compute:.2e}",
                duration(float(np.mean([run.facts["seconds"] for run in network.runs]))),
                brief(network.mean("train_loss")),
                values(network, "loss"),
                values(network, "frechet"),
            )
        )
    header = "network,depth,parameters,Gflops,tokens,steps,rate,training FLOPs,time,training loss,held-out loss,Frechet"
    return Table(header.split(","), rows)


def unet_table(findings: Findings) -> Table:
    """Each U-Net beside transformers of as many Gflops, by the laws of their patches."""
    rows, patches = [], sorted({n.patch for n in findings.equal})
    by_name = {network.name: network for network in findings.unets}
    for duel in findings.duels():
        network = by_name[duel["network"]]
        cells = []
        for name in (f"patch {patch}" for patch in patches):
            told = duel["transformers"].get(name)
            mark = "" if duel["inside"].get(name) else " *"
            share = "" if told is None else f" ({100 * (duel['value'] / told - 1):+.0f}%)"
            cells.append(brief(told) + share + mark * (told is not None))
        parameters = f"{network.runs[0].facts['parameters']:,}"
        metric = duel["metric"]
        rows.append(
            (f"{network.name}, {NAMES[metric]}", parameters, brief(network.gflops), values(network, metric), *cells)
        )
    return Table(("U-Net", "parameters", "Gflops", "came to", *(f"transformer, patch {p}" for p in patches)), rows)
