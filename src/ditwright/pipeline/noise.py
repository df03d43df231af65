"""Random numbers of a call: by its seed, or of torch's generators, drawn as diffusers draws them (`randn_tensor`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..rng import Draws

CPU = torch.device("cpu")
Noise = Callable[[Tensor], Tensor]  # standard normal values with the shape, device and dtype of its argument
Generators = torch.Generator | Sequence[torch.Generator]


def noise_of(
    count: int,
    seed: int | None = None,
    generator: Generators | None = None,
    *,
    first: int = 0,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Noise:
    """For samples `first` to `first + count` of a seed, 0 unless given, or by a generator in place of it (`drawn_by`).

    UserError for both, or a seed that is not a whole number from 0 to 2^63 - 1.
    """
    if generator is None:
        if not 0 <= (seed or 0) < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2^63 - 1; got {seed}")
        return Draws(seed or 0, range(first, first + count), "sample").normal
    if seed is not None:
        raise UserError("give a generator or a seed, not both")
    return drawn_by(generator, count, device, dtype)


def drawn_by(generators: Generators, count: int, device: torch.device, dtype: torch.dtype) -> Noise:
    """Noise for `count` pictures: one draw for all of them from one generator, or one for each from a list.

    Numbers are drawn on the generator's device in `dtype`, the network's, and then moved: so does diffusers, and the
    same generator gives the same picture. UserError for a list of another length or a generator of another device.
    """
    given = list(generators) if isinstance(generators, (list, tuple)) else [generators]
    if not all(isinstance(generator, torch.Generator) for generator in given):
        raise UserError("generator is a torch.Generator or a list of them; give seed= for a number")
    if len(given) not in (1, count):
        raise UserError(f"generator is one for all, or one for each of {count} pictures; got {len(given)}")
    if wrong := [g.device.type for g in given if g.device.type not in ("cpu", device.type)]:
        raise UserError(f"a generator of {wrong[0]} cannot draw for a pipeline on {device.type}; make it on the CPU")

    def noise(like: Tensor) -> Tensor:
        shape = like.shape if len(given) == 1 else (1, *like.shape[1:])
        drawn = [torch.empty(shape, dtype=dtype, device=g.device).normal_(generator=g) for g in given]
        return torch.cat(drawn).to(like)

    return noise
