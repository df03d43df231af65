"""The folder of a run: held for one run alone, its configuration the one that it began with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import differences, dump_yaml, from_dict, read_yaml, to_dict
from ..errors import UserError
from ..files import whole_file
from .config import LogConfig
from .log import last_noted
from .parallel import World
from .precision import resolve
from .state import checkpoints, read_facts

# What a run may be continued with; a codec or an encoder that was moved has the same fingerprint.
MAY_CHANGE = ("steps", "log.", "sample.", "measure.", "data.prefetch", "parallel.", "codec.source", "codec.revision")
MAY_CHANGE += ("text.source", "text.revision", "optim.skip_nonfinite", "optim.rollbacks")
MAY_CHANGE += ("checkpoint_activations", "memory_gb")  # neither changes a result


@contextmanager
def claimed(output: Path, world: World) -> Iterator[None]:
    """Hold the run folder for this run alone."""
    output.mkdir(parents=True, exist_ok=True)
    if not world.main:
        yield
        return
    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process trains in {str(output)!r}; wait, or choose another --output") from None
        yield
    finally:
        os.close(folder)


def settle(config: Any, output: Path, world: World, newest: Path | None) -> Any:
    """The configuration as it will run, kept in the run folder; checked against the one that is there."""
    path = output / "config.yaml"
    there = kept_config(type(config), path, world, newest)
    if newest is None and not last_noted(output / "metrics.jsonl"):
        there = None  # refused at its first step, or out of memory: there is nothing to go on with
    ended = newest is not None and int(newest.name[5:]) >= config.steps
    if there is not None:
        if newest is None:
            _no_more_noted(output, there.log)
        if config.precision == "auto":
            config = replace(config, precision=there.precision)
        for key, (old, new) in fixed(there, config).items():
            raise UserError(
                f"{str(output)!r} holds another run: {key} is {old} there and {new} now; "
                "choose another --output, or the settings of that run"
            )
        if ended:  # nothing is left to do, and what is asked for now is not what the run was trained with
            if world.main and (not path.exists() or read_config(type(config), path, newest)[1]):
                _write(path, there)
            return config
        for key, (old, new) in differences(to_dict(there), to_dict(config)).items():
            world.say(f"{key}: {old} -> {new}")
    elif checkpoints(output) or last_noted(output / "metrics.jsonl"):
        raise UserError(f"{str(output)!r} holds a run without its config.yaml; choose another --output")
    config = replace(config, precision=world.agree(resolve(config.precision, world.device)))
    if world.main:
        _write(path, config)
    return config


def _write(path: Path, config: Any) -> None:
    with whole_file(path) as half:
        half.write_text(dump_yaml(config))


def _no_more_noted(output: Path, log: LogConfig) -> None:
    """UserError where a run without checkpoints tells of steps that it cannot have done without saving one."""
    noted, due = last_noted(output / "metrics.jsonl"), log.checkpoint_every * (2 if log.async_save else 1)
    if due and noted > due:
        raise UserError(
            f"{str(output)!r} has no checkpoint, though {noted} steps are noted and every {log.checkpoint_every} one "
            "is saved: bring its checkpoints/ back, or remove its metrics.jsonl to begin anew"
        )


def fixed(there: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Where two configurations differ in what a run may not be continued with."""
    changed = differences(to_dict(there), to_dict(now))
    return {key: values for key, values in changed.items() if not key.startswith(MAY_CHANGE)}


def kept_config(kind: type, path: Path, world: World, newest: Path | None) -> Any:
    """The configuration of a run as `read_config` finds it; what was wrong with its file is said."""
    kept, wrong = read_config(kind, path, newest)
    if wrong and kept is not None:
        world.say(f"{path} {wrong}: written again as {newest} has it")
    return kept


def read_config(kind: type, path: Path, newest: Path | None) -> tuple[Any, str]:
    """The configuration of a run, and what is wrong with its file ("": nothing).

    It is its file's, or that of its newest checkpoint, which is whole, where the file is not as it was; else None.
    """
    facts = read_facts(newest) if newest else {}
    saved = from_dict(kind, facts["config"], "config") if "config" in facts else None  # not in those of before
    if not path.exists():
        wrong = "is missing"
    else:
        try:
            there = read_yaml(kind, path)
        except UserError as error:
            if saved is None:
                raise
            wrong = f"is damaged ({error})"
        else:
            if saved is None or not (changed := fixed(saved, there)):
                return there, ""
            key, (old, new) = next(iter(changed.items()))
            wrong = f"has {key} {new} where that was trained with {old}"
    return saved, wrong
