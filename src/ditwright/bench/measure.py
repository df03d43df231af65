"""The whole measurement: ceilings, then case after case, until all is done or the time allowed is used up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from ..errors import lookup
from .ceilings import Ceilings
from .contest import TIME, Contest, Entry, Result, Row, Tell, failure, hold, over
from .decode import decode
from .forward import against_batch, against_tokens, forward
from .loader import loader
from .machine import absent, machine
from .peers import OURS
from .plan import Plan
from .report import Report
from .sampling import sampling
from .startup import startup
from .step import step

OF_NETWORKS: dict[str, Callable[[Plan, str, torch.device], Contest]] = {
    "forward": forward,
    "step": step,
    "sampling": sampling,
    "tokens": against_tokens,
    "batch": against_batch,
}
OF_MACHINES: dict[str, Callable[[Plan, torch.device], Contest]] = {
    "decode": decode,
    "loader": loader,
    "startup": startup,
}
CASES = (*OF_NETWORKS, *OF_MACHINES)
LOOKS = 3  # at the ceilings before anything else


@dataclass(frozen=True)
class Time:
    """What is allowed, from when it is made."""

    seconds: float = float("inf")
    start: float = 0.0

    @classmethod
    def allowed(cls, seconds: float) -> Time:
        """From now on."""
        return cls(seconds, time.monotonic())

    def late(self) -> bool:
        """Whether it is used up."""
        return time.monotonic() - self.start > self.seconds


def measure(
    plans: Sequence[Plan],
    device: torch.device,
    *,
    tell: Tell = str,
    allowed: Time | None = None,
    keep: Callable[[Report], object] = bool,
) -> Report:
    """Everything that some plans ask for. What cannot be measured is a row that says why.

    `keep` is given what there is after every contest.

    UserError for an unknown case, and where an input does not fit a network.
    """
    allowed = allowed or Time()
    for plan in plans:
        for case in plan.cases:
            lookup("case", case, dict.fromkeys(CASES))
        for subject in plan.subjects.values():
            subject.forward_flops()
    where, ceilings = machine(device), Ceilings(device)
    if gone := absent(device):
        found = [missed(case, name, plan, gone) for plan in plans for case, name, _ in contests(plan, device)]
        return Report(where, ceilings, tuple(found))
    for _ in range(LOOKS):
        ceilings.look()
        tell("ceilings")
    results: list[Result] = []
    for plan in plans:
        for case, name, make in contests(plan, device):
            late = allowed.late()
            results.append(
                missed(case, name, plan, TIME) if late else held(case, name, plan, make, device, tell, allowed)
            )
            clean(device, compiled=plan.compiled)
            ceilings.look()
            keep(Report(where, ceilings, tuple(results)))
    return Report(where, ceilings, tuple(results))


def contests(plan: Plan, device: torch.device) -> Iterator[tuple[str, str, Callable[[], Contest]]]:
    """Those of a plan: the case, its subject, and how to make it."""
    for case in plan.cases:
        if case in OF_MACHINES:
            yield case, "", partial(OF_MACHINES[case], plan, device)
        else:
            for name in plan.subjects:
                yield case, name, partial(OF_NETWORKS[case], plan, name, device)


def held(
    case: str, name: str, plan: Plan, make: Callable[[], Contest], device: torch.device, tell: Tell, allowed: Time
) -> Result:
    """A contest and its result. A graph that is compiled again and again fails: it does not run as it is instead."""
    made: list[Contest] = []
    if why := failure(lambda: made.append(make())):
        return missed(case, name, plan, why)
    strict = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True) if plan.compiled else nullcontext()
    with strict:
        return hold(made.pop(), device, tell=tell, late=allowed.late)


def missed(case: str, name: str, plan: Plan, why: str) -> Result:
    """A contest that did not come about."""
    peers = plan.peers if case in OF_NETWORKS else (OURS,)
    return over(Contest(case, name, (), plan.rounds, plan.seconds), [Row(Entry(peer), why=why) for peer in peers])


def clean(device: torch.device, *, compiled: bool) -> None:
    """Forget what the last contest compiled and held."""
    if compiled:
        torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
