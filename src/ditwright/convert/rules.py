"""The engine of conversion tables: rules relate another project's keys to ours and are read in both directions.

Spread over the blocks of a network, a table gives the exact set of keys with their shapes. A key that is missing,
unknown, claimed twice or misshapen is an error that names it as the file does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..model.config import DiTConfig, Stage
from ..model.dit import DiT
from ..model.weights import State

DRIFT = 1e-3  # of stored tables: train.py averages them with the weights, which moves them by up to 2e-4 in fp32


@dataclass(frozen=True)
class Layout:
    """What a table must know of a file to be spread: the network, and how the family stores it."""

    model: DiTConfig
    side: int = 0  # patches along a side of the stored tables of positions; 0 where there are none
    doubled: bool = False  # the last layer has as many channels again, which nothing reads
    shiftless: bool = False  # blocks regress scales and gates alone


@dataclass(frozen=True)
class Way:
    """An invertible map between the tensors that a rule relates."""

    read: Callable[[State, Layout], Sequence[Tensor]]  # theirs, by the file's keys -> ours
    write: Callable[[Sequence[Tensor], Layout], Sequence[Tensor]]  # ours -> theirs
    needed: bool = True  # a file must have it
    written: bool = True
    when: Callable[[DiTConfig], bool] = lambda model: True
    where: Callable[[Stage], bool] = lambda stage: True  # of which blocks


class Rule(NamedTuple):
    """Their keys and ours: "{i}" is the number of a block, "{j}" its number among its kind, "{p}" weight or bias."""

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    way: Way


class Link(NamedTuple):
    """A rule at one place of a network."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    way: Way


def spread(rules: Sequence[Rule], layout: Layout) -> list[Link]:
    """The table of one network, without the rules for weights that it has not.

    UserError where two rules claim a key, or none a weight of the network.
    """
    model, weights = layout.model, shapes(layout.model)
    rules = [rule for rule in rules if rule.way.when(model)]
    blocks = [stage for stage in model.stages for _ in range(stage.depth)]
    here = {rule: [i for i, stage in enumerate(blocks) if rule.way.where(stage)] for rule in rules}
    found = (link for rule in rules for link in places(rule, model.depth, among_kind(model), here[rule]))
    links = [link for link in found if weights.keys() >= set(link.ours)]
    for keys in ([key for link in links for key in link.theirs], [key for link in links for key in link.ours]):
        claims = Counter(keys)
        if twice := [key for key, count in claims.items() if count > 1]:
            raise UserError(f"two rules claim the key {min(twice)!r}")
    if homeless := weights.keys() - {name for link in links for name in link.ours}:
        raise UserError(f"the table has no place for {min(homeless)!r} of this network")
    return links


@lru_cache(maxsize=4)
def shapes(model: DiTConfig) -> State:
    """The weights of a network, without memory for them."""
    with torch.device("meta"):
        return DiT(model).state_dict()


def among_kind(model: DiTConfig) -> list[int]:
    """How many blocks of the same kind come before each block: a kind is a stage, whatever its depth."""
    kinds = [replace(stage, depth=1) for stage in model.stages for _ in range(stage.depth)]
    return [kinds[:i].count(kind) for i, kind in enumerate(kinds)]


def places(rule: Rule, depth: int, among: Sequence[int] = (), here: Sequence[int] | None = None) -> Iterator[Link]:
    """A rule at every block and for weight and bias; "{i}" on their side alone stands for all blocks at once.

    `among`: the number of each block among its kind, where that is not its number. `here`: the rule's blocks, where
    those are not all.
    """
    among = among or range(depth)
    theirs = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
    ours = (rule.ours,) if isinstance(rule.ours, str) else rule.ours
    numbered = any("{i}" in name for name in ours)
    for i in (range(depth) if here is None else here) if numbered else [0]:
        blocks = [i] if numbered else range(depth)
        for p in ("weight", "bias") if any("{p}" in name for name in theirs) else [""]:
            yield Link(
                tuple(dict.fromkeys(name.format(i=n, j=among[n], p=p) for n in blocks for name in theirs)),
                tuple(name.format(i=i, p=p) for name in ours),
                rule.way,
            )


def read(state: State, rules: Sequence[Rule], layout: Layout, called: Mapping[str, str] | None = None) -> State:
    """Our weights from theirs; `called`: the file's own names of the keys, where prefixes were taken off."""
    links, called = spread(rules, layout), called or {}
    known = {key for link in links for key in link.theirs}
    for link in links:
        for key in link.theirs if link.way.needed else ():
            if key not in state:
                raise UserError(f"the checkpoint lacks the key {key!r}")
    if unknown := [called.get(key, key) for key in state if key not in known]:
        raise UserError(f"no rule knows the key {min(unknown)!r} of this checkpoint; is it of another family?")
    ours: State = {}
    for link in links:
        present = {called.get(key, key): state[key] for key in link.theirs if key in state}
        if link.way.needed:
            check_shapes(present, link, layout)
        if present:
            ours |= zip(link.ours, link.way.read(present, layout), strict=True)
    return ours


def check_shapes(theirs: State, link: Link, layout: Layout) -> None:
    """Their shapes follow from ours, by the same way that writes them."""
    weights = shapes(layout.model)
    wanted = link.way.write([weights[name] for name in link.ours], layout)
    for (key, tensor), like in zip(theirs.items(), wanted, strict=True):
        if tensor.shape != like.shape:
            got, want = tuple(tensor.shape), tuple(like.shape)
            raise UserError(f"the checkpoint's tensor {key!r} has shape {got}; the network needs {want}")


def write(state: State, rules: Sequence[Rule], layout: Layout) -> State:
    """Their weights from ours. UserError for a weight that is missing or misshapen."""
    for name, like in shapes(layout.model).items():
        if name not in state or state[name].shape != like.shape:
            raise UserError(f"the network's own weight {name!r} is missing or has not the shape {tuple(like.shape)}")
    theirs: State = {}
    for link in spread(rules, layout):
        if link.way.written:
            theirs |= zip(link.theirs, link.way.write([state[name] for name in link.ours], layout), strict=True)
    return theirs


# The ways.


def _all(theirs: State, layout: Layout) -> list[Tensor]:
    return list(theirs.values())


def _one_of_equals(theirs: State, layout: Layout) -> list[Tensor]:
    first, *others = theirs
    for other in others:
        if not torch.equal(theirs[first], theirs[other]):
            raise UserError(f"{other!r} differs from {first!r}: this project's copies must be equal")
    return [theirs[first]]


def _without_second_half(theirs: State, layout: Layout) -> list[Tensor]:
    rows = (-1, 2, layout.model.out_channels)
    return [w.unflatten(0, rows)[:, 0].flatten(0, 1) if layout.doubled else w for w in theirs.values()]


def _with_second_half(ours: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    parts = [w.unflatten(0, (-1, layout.model.out_channels)) for w in ours]
    return [torch.stack((w, torch.zeros_like(w)), 1).flatten(0, 2) for w in parts] if layout.doubled else list(ours)


def _swapped(w: Tensor) -> Tensor:
    return torch.cat(w.chunk(2)[::-1])


def _with_shifts(theirs: State, layout: Layout) -> list[Tensor]:
    halves = [half for w in theirs.values() for half in w.chunk(2)]
    width = layout.model.width
    return [torch.cat((torch.zeros_like(h[:width]), h)) if layout.shiftless else h for h in halves]


def _without_shifts(ours: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    return [torch.cat([w[layout.model.width :] if layout.shiftless else w for w in ours])]


same = Way(_all, lambda ours, layout: ours)
kernel = Way(  # of a convolution that cuts patches, as a matrix
    lambda theirs, layout: [w.flatten(1) for w in theirs.values()],
    lambda ours, layout: [w.unflatten(1, (layout.model.channels, *layout.model.patch)) for w in ours],
)
joined = Way(  # queries, keys and values
    lambda theirs, layout: [torch.cat(_all(theirs, layout))], lambda ours, layout: ours[0].chunk(3)
)
swapped = Way(  # scale before shift
    lambda theirs, layout: [_swapped(w) for w in theirs.values()], lambda ours, layout: [_swapped(w) for w in ours]
)
copies = Way(  # one in each block
    _one_of_equals, lambda ours, layout: [w.clone() for w in ours for _ in range(layout.model.depth)]
)
halves = Way(_with_shifts, _without_shifts)  # shift, scale, gate of attention, then of the MLP
first_half = Way(_without_second_half, _with_second_half)  # of the output's channels


def stored(
    table: Callable[[Layout], Tensor], what: str, *, when: Callable[[DiTConfig], bool], written: bool = True
) -> Way:
    """Nothing of ours: what we compute. Checked where a file has it, computed where one is written."""

    def check(theirs: State, layout: Layout) -> list[Tensor]:
        ((key, tensor),) = theirs.items()
        ours, near = table(layout), max(DRIFT, torch.finfo(tensor.dtype).eps)
        if tensor.shape != ours.shape or not torch.allclose(tensor.float(), ours, rtol=0, atol=near):
            raise UserError(f"{key!r} is not {what}; this checkpoint is of another family")
        return []

    return Way(check, lambda ours, layout: [table(layout)], needed=False, written=written, when=when)
