"""ditwright plot times: which times a run trains, as a picture, so that nobody has to guess which way a shift goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import merge, overrides
from ..diffusion.config import ObjectiveConfig, ProcessConfig
from ..errors import UserError
from ..files import whole_file
from .main import Parser

if TYPE_CHECKING:
    from ..diffusion.process import Process

SHOWN = {  # where nothing is asked for
    "uniform": {},
    "logit-normal": {"times": "logit-normal"},
    "mode": {"times": "mode"},
    "logit-normal, shift 3": {"times": "logit-normal", "shift": 3.0},
}
PROCESSES = {"log-normal": ProcessConfig("karras", "edm"), "discrete": ProcessConfig("ddpm", "noise")}  # by times
EPILOG = """
Without more, the usual ones beside each other. With keys of the objective, those times alone:
  ditwright plot times --times logit-normal --mean -0.5 --shift 3
  ditwright plot times --times logit-normal --shift_base 1024    # a shift by the size of latents: at three
"""


def run(words: list[str]) -> int:
    parser = Parser(prog="ditwright plot", usage="ditwright plot times [--output FILE.png] [--KEY VALUE ...]")
    parser.description, parser.epilog = "Draw the density of the times that a run trains.", EPILOG
    parser.add_argument("what", choices=("times",), metavar="times")
    parser.add_argument("--output", type=Path, default=Path("times.png"), metavar="FILE", help="(default: times.png)")
    args, rest = parser.parse_known_args(words)
    if args.output.suffix != ".png":
        raise UserError(f"--output takes a .png file; got {str(args.output)!r}")
    asked = {" ".join(rest): overrides(rest)} if rest else SHOWN
    configs = {name: merge(ObjectiveConfig(), keys) for name, keys in asked.items()}
    draw(configs, args.output)
    print(f"densities of {len(configs)} distribution(s) of times: {args.output}")
    return 0


def process_of(config: ObjectiveConfig) -> Process:
    """One that such times are for."""
    from ..diffusion.process import process_from

    return process_from(PROCESSES.get(config.times, ProcessConfig()))


def at_sizes(name: str, config: ObjectiveConfig) -> dict[str, ObjectiveConfig]:
    """What is trained, by name: at three sizes of latents where the shift goes by the size, else at all."""
    from ..diffusion.times import resolution_shift

    if not (base := config.shift_base):
        return {name: config}
    shifts = {size: config.shift * resolution_shift(size, base) for size in (max(base // 4, 1), base, 4 * base)}
    return {
        f"{size:,} positions: shift {shift:.3g}": replace(config, shift=shift, shift_base=0)
        for size, shift in shifts.items()
    }


def draw(configs: dict[str, ObjectiveConfig], output: Path) -> None:
    """Lines for each, and one at their medians. UserError where a run would not train them."""
    import torch

    from ..diffusion.objective import Objective, objective_from
    from ..scaling.canvas import COLOURS, INK, SMALL, named, panels

    for config in configs.values():
        objective_from(config, process_of(config))
    lines = {name: told for key, config in configs.items() for name, told in at_sizes(key, config).items()}
    figure, (axes,) = panels(1, height=4.2, width=7.6)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for i, (name, config) in enumerate(lines.items()):
        loss = objective_from(config, process_of(config))
        t = (loss if isinstance(loss, Objective) else loss.objective).times(u)
        heights, edges = torch.histogram(t, 100, density=True)
        shade = COLOURS[i % len(COLOURS)]
        axes.stairs(heights.numpy(), edges.numpy(), color=shade, linewidth=1.4, label=name)
        axes.axvline(t.median().item(), color=shade, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK)
    told = "t: 0 is data, 1 is noise"
    if any(config.times == "log-normal" for config in configs.values()):
        told = "t: the noise level, 0 is data"
    named(axes, "Times that are trained", f"{told}; dotted: the median", "density")
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as half:
        figure.savefig(half, format="png", metadata={"Software": None})
