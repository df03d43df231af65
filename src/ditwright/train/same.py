"""Whether a run is one run: the same for all of its processes, and on the data that it was trained on until now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..config import differences, to_dict
from ..errors import UserError
from .parallel import World

NAMED = 4  # ranks, or keys, in a line for people
T = TypeVar("T")


def on_all(world: World, check: Callable[[], T]) -> T:
    """What a check finds. A UserError of any process is raised on all, in the words of the first that has one."""
    error = ""
    try:
        found = check()
    except UserError as wrong:
        error = str(wrong)
    if error := next(filter(None, world.gather(error)), ""):
        raise UserError(error)
    return found


def check_alike(config: Any, data: Mapping[str, Any], world: World) -> None:
    """UserError, on all processes alike, where not all have the same configuration and the same data.

    `data`: what they are known by, {} where nothing is.
    """
    everyones = world.gather((to_dict(config), dict(data)))
    if told := apart([asked for asked, _ in everyones]):
        more = f" and {len(told) - NAMED} more" * (len(told) > NAMED)
        raise UserError(
            "not all processes were started with the same configuration: "
            f"{'; '.join(f'{key} {_by_rank(values)}' for key, values in list(told.items())[:NAMED])}{more}; "
            "give all of them the same options"
        )
    if told := apart([known for _, known in everyones]):
        lines = {key: _by_rank(values) for key, values in told.items()}
        others = [rank for value, ranks in told.get("names", {}).items() if 0 not in ranks for rank in ranks]
        raise UserError(
            f"{config.data.source!r} is not the same to all processes: "
            f"{_of_data(lines, f'as many on 0, of other names, labels or captions on {_named(sorted(others))}')}; "
            "bring the data of one to all"
        )


def apart(everyones: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Dotted keys in which what the processes have differs: by value, the ranks of those that have it."""
    found: dict[str, dict[str, list[int]]] = {}
    others = [differences(everyones[0], other) for other in everyones]
    for key, first in {key: values[0] for other in others for key, values in other.items()}.items():
        found[key] = {}
        for rank, other in enumerate(others):
            found[key].setdefault(str(other[key][1] if key in other else first), []).append(rank)
    return found


def check_data(config: Any, data: Mapping[str, Any], facts: Mapping[str, Any], output: Path) -> None:
    """UserError where a run's data are not those that it was trained on, by the facts of a checkpoint of it.

    Those of before data were known by anything tell nothing. `data`: what they are known by now.
    """
    if not data or not facts.get("data"):
        return
    if changed := differences(facts["data"], data):
        lines = {name: f"{was} then, {now} now" for name, (was, now) in changed.items()}
        anew = " from its weights (--init)" if hasattr(config, "init") else ""
        raise UserError(
            f"{config.data.source!r} is not what {str(output)!r} was trained on until step {facts['step']}: "
            f"{_of_data(lines, 'as many as then, of other names, labels or captions')}; "
            f"bring those back, or begin another run{anew} with another --output"
        )


def _of_data(lines: Mapping[str, str], renamed: str) -> str:
    """What differs in what data are known by. `renamed`: what to say where that is nothing but names."""
    told = [f"{name} {line}" for name, line in lines.items() if name != "names"]
    told = [line for line in told if not line.startswith("sizes.")] or told[:3]  # these often say the same again
    return "; ".join(told or [renamed])


def _by_rank(values: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{value} on {_named(ranks)}" for value, ranks in values.items())


def _named(ranks: Sequence[int]) -> str:
    more = [f"{len(ranks) - NAMED} more"] if len(ranks) > NAMED else []
    return " and ".join([*map(str, ranks[:NAMED]), *more])
