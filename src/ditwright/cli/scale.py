"""ditwright scale plan|run|fit|report STUDY: a ladder of networks, what it costs, and the law that it follows."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import dump_yaml
from ..errors import UserError
from ..scaling.study import STUDIES, STUDY, Study, changed, find_study, read_study
from .main import Parser

if TYPE_CHECKING:
    from ..scaling.fit import Findings
    from ..scaling.plan import Run

ACTIONS = {
    "plan": "what every run costs, and what fits a budget",
    "run": "train what is not trained yet, the held-out network last, after its prediction is written down",
    "fit": "fit the laws, print them, and write fit.json",
    "report": "one page with figures and tables: report/index.html",
}
EPILOG = """
STUDY is a name ({studies}), a YAML file of the keys that --print-study prints, or the folder of a study.
Any of those keys can be set, as --dotted.key VALUE; keys of every run go under --train:
  --widths 64,128,256 --held_out.width 512 --train.optim.warmup 100
The same command run again goes on where it stopped, and any number of processes share the work:
  torchrun --nproc-per-node 8 -m ditwright scale run STUDY
"""
OWN = {"gflops": "plan", "budget_minutes": "plan", "memory_gb": "plan", "predict": "fit"}  # options of one action


def run(words: list[str]) -> int:
    args, rest = parser().parse_known_args(words)
    for option, action in OWN.items():
        if getattr(args, option) is not None and args.action != action:
            raise UserError(f"--{option.replace('_', '-')} is for `ditwright scale {action}`")
    study, name = find_study(args.study)
    folder = args.output or (Path(args.study) if Path(args.study).is_dir() else Path("runs") / f"scale-{name}")
    if args.action in ("fit", "report"):
        if rest:
            raise UserError(f"{rest[0]} would change nothing: {args.action} reads {folder / STUDY}, as it was run")
        study = read_study(folder)
    study = changed(study, rest)
    if args.print_study:
        print(dump_yaml(study), end="")
        return 0
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {str(folder)!r} is a file; name a folder")
    {"plan": plan, "run": work, "fit": fit, "report": report}[args.action](study, folder, args)
    return 0


def parser() -> Parser:
    """The options."""
    made = Parser(
        prog="ditwright scale",
        usage="ditwright scale {plan,run,fit,report} STUDY [options] [--dotted.key VALUE ...]",
        description="Plan, run and fit a ladder of networks.",
        epilog="\n".join(f"  {action:<7} {what}" for action, what in ACTIONS.items())
        + "\n"
        + EPILOG.format(studies=", ".join(STUDIES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    add("study", metavar="STUDY", help="see below")
    add("--output", type=Path, metavar="DIR", help="folder of the study (default: runs/scale-STUDY)")
    add("--print-study", action="store_true", help="print the resolved study and leave")
    add(
        "--gflops",
        type=float,
        metavar="G",
        help="plan: 10^9 operations a second, sustained; else a few steps are timed",
    )
    add("--budget-minutes", type=float, metavar="M", help="plan: which runs fit")
    add("--memory-gb", type=float, metavar="GB", help="plan: of the device (default: what is free here)")
    add("--predict", metavar="WIDTH/PATCH", help="fit: what the laws say of another network")
    return made


def plan(study: Study, folder: Path, args: argparse.Namespace) -> None:
    """Print what every run costs."""
    from ..pipeline import best_device
    from ..scaling.plan import available_memory, plan_table, rates_at, runs_of, seconds
    from ..scaling.probe import measured_rates
    from ..scaling.work import is_done

    for name in ("gflops", "budget_minutes", "memory_gb"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be above 0; got {value:g}")
    runs, device = runs_of(study), best_device()
    available = available_memory(device) if args.memory_gb is None else int(args.memory_gb * 1e9)
    fitting = [run for run in runs if run.bytes <= available]
    rates = rates_at(runs, args.gflops * 1e9) if args.gflops else measured_rates(fitting, device)
    times = seconds(runs, study, rates)
    done = [run.name for run in runs if is_done(folder / run.name)]
    budget = math.inf if args.budget_minutes is None else 60 * args.budget_minutes
    print(plan_table(runs, times, available=available, done=done, budget=budget).as_text())
    basis = f"at {args.gflops:g} GFLOP/s" if args.gflops else f"from steps timed on {device}"
    print(f"\n{len(runs)} runs, {sum(run.flops for run in runs):.2e} training FLOPs; times {basis}, with validation")
    print(f"and {study.samples:,} samples of each network. Gflops are 10^9 multiply-adds of a forward pass.")
    if args.budget_minutes is not None:
        left = [time for run, time in zip(runs, times, strict=True) if run.name not in done]
        fit = next((i for i in range(len(left)) if not sum(left[: i + 1]) <= budget), len(left))
        print(f"{fit} of the {len(left)} runs that are not done fit into {args.budget_minutes:g} minutes.")
    if len(fitting) < len(runs):
        print(f"{len(runs) - len(fitting)} runs do not fit into {available / 1e9:.1f} GB; `scale run` refuses them.")


def work(study: Study, folder: Path, args: argparse.Namespace) -> None:
    """Do the runs, and say where the page will be."""
    from ..pipeline import best_device
    from ..scaling.work import run_study

    run_study(study, folder, best_device())
    if os.environ.get("RANK", "0") == "0":
        print(f"study: {folder}")
        print(f"to fit the law: ditwright scale fit {folder}")
        print(f"to see it: ditwright scale report {folder}")


def fit(study: Study, folder: Path, args: argparse.Namespace) -> None:
    """Print the laws and what they say."""
    from ..scaling.fit import FIT, fit_study
    from ..scaling.report import summary
    from ..scaling.rows import conditioning_table, law_table, prediction_table, slice_table, unet_table
    from ..scaling.score import write_json
    from ..scaling.transfer import sweep_table

    asked = network_asked(study, args.predict) if args.predict else None
    findings = fit_study(study, folder)
    write_json(folder / FIT, findings.as_dict())
    print("\n".join(summary(findings)))
    tables = (law_table(findings), prediction_table(findings), slice_table(findings))
    others = (conditioning_table(findings.conditionings()), unet_table(findings))
    for table in (*tables, *others, sweep_table(findings.sweeps, study.lr)):
        if table.rows:
            print(f"\n{table.as_text()}")
    if asked:
        print(f"\n{predicted(findings, asked)}")
    print(f"\nlaws: {folder / FIT}")


def network_asked(study: Study, text: str) -> Run:
    """The run of WIDTH/PATCH, as the study's rules would make it."""
    from ..scaling.plan import runs_of
    from ..scaling.study import HELD_OUT, HeldOut

    width, _, patch = text.partition("/")
    if not (width.isdecimal() and patch.isdecimal()):
        raise UserError(f"--predict takes WIDTH/PATCH, as in 256/1; got {text!r}")
    (run,) = (r for r in runs_of(replace(study, held_out=HeldOut(int(width), int(patch)))) if r.role == HELD_OUT)
    return run


def predicted(findings: Findings, run: Run) -> str:
    """What the laws say of a network that the study does not have."""
    from ..scaling.fit import predict
    from ..scaling.report import NAMES
    from ..scaling.tables import within

    x = run.macs / 1e9 if findings.study.steps else float(run.flops)
    lines = [f"{run.network}, {run.macs / 1e9:.4g} Gflops, after {run.config.steps:,} steps:"]
    for metric, told in predict(findings.study, findings.laws, x, run.config.model.patch[0]).items():
        lines.append(f"  {NAMES[metric]:<17} {within(told['value'], told['interval'], 4)} by the law of {told['by']}")
        lines += [f"  {'':<17} {within(o['value'], o['interval'], 4)} by {name}" for name, o in told["others"].items()]
    return "\n".join(lines)


def report(study: Study, folder: Path, args: argparse.Namespace) -> None:
    """Write the page."""
    from ..scaling.fit import fit_study
    from ..scaling.report import write_report

    print(f"report: {write_report(fit_study(study, folder), folder, folder.name.removeprefix('scale-'))}")
