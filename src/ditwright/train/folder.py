"""The folder of a run: held for one run alone, its configuration the one that it began with."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import differences, dump_yaml, from_dict, read_yaml, to_dict
from ..errors import UserError
from ..files import whole_file
from .config import LogConfig
from .log import last_noted, naming
from .parallel import World
from .precision import in_software, resolve
from .state import checkpoints, read_facts

# What a run may be continued with; a codec or an encoder that was moved has the same fingerprint.
MAY_CHANGE = ("steps", "log.", "sample.", "measure.", "data.prefetch", "parallel.", "codec.source", "codec.revision")
MAY_CHANGE += ("text.source", "text.revision", "optim.skip_nonfinite", "optim.rollbacks")
MAY_CHANGE += ("checkpoint_activations", "memory_gb")  # neither changes a result
SOURCE = "data.source"  # may change too, where the data are known to be the same
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # the answers of file systems without any


@contextmanager
def claimed(output: Path, world: World) -> Iterator[None]:
    """Hold the run folder for this run alone. UserError, on all processes alike, where another holds it.

    By a lock on a file that is gone afterwards: over a network there are none on folders.
    """
    output.mkdir(parents=True, exist_ok=True)
    path, handle = output / ".lock", -1
    if world.main and os.access(output, os.W_OK):  # where not, nobody trains
        handle = _lock(path, world.say)
    if world.agree("" if handle is not None else "held"):
        raise UserError(f"another process trains in {str(output)!r}; wait, or choose another --output")
    try:
        yield
    finally:
        if handle is not None and handle >= 0:
            try:
                if _is_still(path, handle) and os.access(output, os.W_OK):  # one that stays does no harm
                    path.unlink()
            finally:
                os.close(handle)


def _lock(path: Path, say: Callable[[str], None]) -> int | None:
    """What holds a lock file until it is closed; None where another process does."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                say(f"{path.parent} cannot be locked ({error.strerror}): see that no other process trains in it")
                return handle
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                raise
            return None
        if _is_still(path, handle):
            return handle
        os.close(handle)  # its last holder has just removed it


def _is_still(path: Path, handle: int) -> bool:
    """Whether a path leads to the file that is open."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def settle(config: Any, output: Path, world: World, newest: Path | None, *, moved: bool = False) -> Any:
    """The configuration as it will run, kept in the run folder; checked against the one that is there.

    `moved`: the data are known to be those of then, wherever they lie now.
    """
    _no_folders(output, config.log)
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
        for key, (old, new) in fixed(there, config, *(SOURCE,) * moved).items():
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
    if line := in_software(config.precision, world.device):
        world.say(f"note: {line}")
    if world.main:
        _write(path, config)
    return config


def _write(path: Path, config: Any) -> None:
    with naming(path), whole_file(path) as half:
        half.write_text(dump_yaml(config))


def _no_folders(output: Path, log: LogConfig) -> None:
    """UserError where a folder has a name that the run needs for something else."""
    for name in ("config.yaml", "metrics.jsonl", *(("best",) if log.keep_best else ())):
        if (path := output / name).is_dir() and not path.is_symlink():
            raise UserError(
                f"{str(path)!r} is a folder, and the run needs its name: move it, or choose another --output"
            )


def _no_more_noted(output: Path, log: LogConfig) -> None:
    """UserError where a run without checkpoints tells of steps that it cannot have done without saving one."""
    noted, due = last_noted(output / "metrics.jsonl"), log.checkpoint_every * (2 if log.async_save else 1)
    if due and noted > due:
        raise UserError(
            f"{str(output)!r} has no checkpoint, though {noted} steps are noted and every {log.checkpoint_every} one "
            "is saved: bring its checkpoints/ back, or remove its metrics.jsonl to begin anew"
        )


def fixed(there: Any, now: Any, *also: str) -> dict[str, tuple[Any, Any]]:
    """Where two configurations differ in what a run may not be continued with. `also`: more that may change."""
    changed = differences(to_dict(there), to_dict(now))
    return {key: values for key, values in changed.items() if not key.startswith((*MAY_CHANGE, *also))}


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
    also = (SOURCE,) if facts.get("data") else ()  # whoever reads them knows whether they are the same
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
            if saved is None or not (changed := fixed(saved, there, *also)):
                return there, ""
            key, (old, new) = next(iter(changed.items()))
            wrong = f"has {key} {new} where that was trained with {old}"
    return saved, wrong
