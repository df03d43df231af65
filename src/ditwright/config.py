"""Frozen dataclasses <-> plain dicts, YAML and dotted overrides. Strict: a key or a type that does not fit is an error.

One reader serves YAML files and the command line, so both accept and refuse the same things in the same words.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from .errors import UserError, did_you_mean, lookup

T = TypeVar("T")
# What else safe_load raises over values that are none: 2001-99-99, 0b_, numbers of 5,000 digits, brackets 20,000 deep.
UNREADABLE = (ValueError, RecursionError, LookupError, AttributeError, TypeError, ArithmeticError)
SHOWN = 200  # characters of a value that is refused


def to_dict(config: Any) -> Any:
    """Dataclasses to dicts and tuples to lists, all the way down: what YAML and JSON can hold."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    return config


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """The dataclass that `to_dict` came from. UserError for unknown or missing keys and wrong types."""
    return _dataclass(cls, data, where, base=None)


def merge(base: T, data: Mapping[str, Any], where: str = "") -> T:
    """`base` with some keys replaced, nested dicts merged into nested dataclasses."""
    return _dataclass(type(base), data, where, base=base)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of keys, or one clear line."""
    import yaml

    if not Path(path).is_file():
        raise UserError(f"there is no config file {str(path)!r}")
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, *UNREADABLE) as error:
        raise UserError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{str(path)!r} must hold keys and values; it holds {type(data).__name__}")
    return data


def read_yaml(cls: type[T], path: str | Path) -> T:
    """The dataclass that a YAML file holds; errors name the file."""
    try:
        return from_dict(cls, load_yaml(path))
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{str(path)!r}: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """What foreign JSON holds, of whatever kind. ValueError for all that is wrong with it, and nothing else."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump_yaml(config: Any) -> str:
    """A dataclass as YAML, short lists on one line."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=100)


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--optim.lr 1e-3 --data.batch_size=64` -> {"optim": {"lr": "1e-3"}, "data": {"batch_size": "64"}}."""
    tree: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"unexpected word {word!r}; overrides look like --optim.lr 1e-3")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and not _is_number(rest[0])):
                raise UserError(f"--{key} needs a value, as in --{key} VALUE")
            value = rest.pop(0)
        node, *path = tree, *key.replace("-", "_").split(".")
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"--{key} and --{part} cannot both be set")
        if isinstance(node.get(path[-1]), dict):
            raise UserError(f"--{key} is set as a whole and in part")
        node[path[-1]] = value
    return tree


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two configurations of the same kind, as (old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(k for k in new if k not in old)]:
            found |= differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return found
    return {} if old == new else {where: (old, new)}


def _dataclass(cls: type[T], data: Any, where: str, base: T | None) -> T:
    if not isinstance(data, Mapping):
        raise UserError(f"{where or cls.__name__} must be a group of keys; got {_shown(data)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    dot = f"{where}." if where else ""
    for key in data:
        if key not in fields:
            known = ", ".join(fields)
            name = key if isinstance(key, str) else _shown(key)
            raise UserError(f"unknown key {_shown(dot + name)}; known: {known}{did_you_mean(name, fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], dot + name, getattr(base, name, None))
        elif base is not None:
            values[name] = getattr(base, name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"missing key {f'{dot}{name}'!r}")
    return cls(**values)


def _value(hint: Any, value: Any, where: str, base: Any) -> Any:
    """`value` as the type `hint`; text is read as the command line and YAML's `1e-4` need it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where, base)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if type(None) in args and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        return _value(kinds[0], value, where, base) if len(kinds) == 1 else _of_kind(kinds, value, where, base)
    if origin is Literal:
        if value not in args:
            near = did_you_mean(value, args) if isinstance(value, str) else ""
            raise UserError(f"{where} must be one of {', '.join(args)}; got {_shown(value)}{near}")
        return value
    if origin is tuple:
        return _tuple(args, value, where, base)
    return _scalar(hint, value, where)


def _of_kind(kinds: Sequence[Any], value: Any, where: str, base: Any) -> Any:
    """One of several dataclasses: the one that the key `kind` names, or that of `base`, or else the first."""
    named = {kind.kind: kind for kind in kinds}
    given = value.get("kind") if isinstance(value, Mapping) else None
    default = kinds[0] if base is None else type(base)
    kind = default if given is None else lookup(f"{where}.kind", given, named)
    return _dataclass(kind, value, where, base if isinstance(base, kind) else None)


def _tuple(args: tuple[Any, ...], value: Any, where: str, base: Any) -> tuple[Any, ...]:
    if isinstance(value, Mapping) and base:  # --model.stages.0.depth 4
        items = list(base)
        for key, part in value.items():
            if not str(key).isdecimal() or int(key) >= len(items):
                raise UserError(f"unknown key '{where}.{key}'; known: {', '.join(map(str, range(len(items))))}")
            items[int(key)] = _value(args[0], part, f"{where}.{key}", items[int(key)])
        return tuple(items)
    if isinstance(value, str):
        value = [part.strip() for part in value.strip("[]()").split(",") if part.strip()]
    if not isinstance(value, Sequence):
        raise UserError(f"{where} must be a list; got {_shown(value)}")
    if args[-1] is not Ellipsis and len(value) != len(args):
        raise UserError(f"{where} must have {len(args)} values; got {len(value)}: {_shown(list(value))}")
    kinds: Iterable[Any] = [args[0]] * len(value) if args[-1] is Ellipsis else args
    return tuple(_value(kind, v, f"{where}.{i}", None) for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))


def _scalar(hint: Any, value: Any, where: str) -> Any:
    wrong = UserError(f"{where} must be {_KINDS.get(hint, hint)}; got {_shown(value)}")
    if hint is bool:
        words = {"true": True, "false": False}
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.lower() not in words:
            raise wrong
        return words[value.lower()]
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise wrong
        whole = isinstance(value, int) or (isinstance(value, str) and value.lstrip("+-").isdecimal())
        try:
            number = int(str(value)) if whole and hint is int else float(value)
        except (ValueError, OverflowError):  # of too many digits, or none
            raise wrong from None
        if not isinstance(number, int) and (not math.isfinite(number) or (hint is int and not number.is_integer())):
            raise wrong
        return hint(number)
    if not isinstance(value, hint):
        raise wrong
    return value


def _shown(value: Any) -> str:
    """A value as an error tells it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number that is too long" if isinstance(value, int) else f"{type(value).__name__} of numbers too long"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
