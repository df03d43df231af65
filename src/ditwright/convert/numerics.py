"""What another project's code computes differently with the same weights, measured.

B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..diffusion.process import process_from
from ..model.config import DiTConfig
from ..model.dit import DiT
from ..model.weights import State
from ..rng import Draws
from .family import Portable, square

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
WORDS = {
    "time_shift": lambda theirs, ours: f"spreads the time's frequencies over {128 - theirs} steps, not {128 - ours}",
    "mlp_norm_eps": lambda theirs, ours: f"adds {theirs:g} in the MLP's norms, not {ours:g}",
}


class Difference(NamedTuple):
    """Of the prediction, as a share of its size (L2)."""

    mean: float
    worst: float
    t: float  # of the worst


def measure(portable: Portable, values: Mapping[str, Any], seed: int = 0) -> Difference:
    """How far the same weights are from themselves under other values: random latents at several times."""
    model, process = portable.model, process_from(portable.process)
    side = min(square(portable, "the measurement"), 16 * model.patch[0])  # as many tokens as at 256 pixels, at most
    draws = Draws(seed, range(len(TIMES)), "difference")
    x = draws.normal(torch.empty(len(TIMES), model.channels, side, side))
    labels = (draws.uniform() * model.num_classes).long()
    t = torch.tensor(TIMES) * process.span[1]
    outs = []
    for config in (model, replace(model, **values)):
        net = network(config, portable.state)
        with torch.no_grad():  # one sample at a time: a large network needs no more memory than its weights
            rows = [net(x[i : i + 1], process.label(t[i : i + 1]), {"label": labels[i : i + 1]}) for i in range(len(x))]
        outs.append(torch.cat(rows)[:, : model.channels].flatten(1))
    ours, theirs = outs
    shares = (theirs - ours).norm(dim=1) / ours.norm(dim=1).clamp(min=torch.finfo(ours.dtype).tiny)
    return Difference(shares.mean().item(), shares.max().item(), t[shares.argmax()].item())


def network(config: DiTConfig, state: State) -> DiT:
    """A network on weights that are shared where they are float32 already."""
    with torch.device("meta"):
        net = DiT(config)
    net.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return net.eval()


def note(portable: Portable, name: str, values: Mapping[str, Any]) -> list[str]:
    """One line about what a family's code computes differently; none where it computes the same."""
    model = portable.model
    other = {key: value for key, value in values.items() if getattr(model, key) != value}
    if not other:
        return []
    found = measure(portable, other)
    words = " and ".join(WORDS[key](value, getattr(model, key)) for key, value in other.items())
    return [
        f"the code of {name} {words}: its prediction differs by {found.mean:.2g} of its size on average, "
        f"{found.worst:.2g} at most (at t = {found.t:g}; measured on these weights, {len(TIMES)} random latents)"
    ]
