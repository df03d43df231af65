"""One set of pictures drawn by several processes: guidance by halves, tokens in parts.

Every process walks the whole sampler with the same noise, and only the network's work is shared; so each has all of the
samples, and one of them keeps the pictures. B batch, C channels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..diffusion.config import SampleConfig
from ..diffusion.process import Cond, Denoiser
from ..errors import UserError
from ..model.config import DiTConfig
from ..nn.branch import Runner, run_all
from ..nn.sequence import InParts
from ..train.parallel import World
from .asks import is_guided
from .pipeline import Pipeline


class Halves(nn.Module):
    """A network for which two processes do half of the batch each. For sampling: no gradients.

    `guided` asks with the condition and without it in one batch, in this order: those are the halves. Where matrix
    libraries take another kernel for half as many rows, last bits differ. An odd batch is done whole by both.
    """

    def __init__(self, net: nn.Module, group: dist.ProcessGroup):
        super().__init__()
        assert group.size() == 2, "guidance has two halves"
        self.net, self.group = net, group

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, **net: object) -> Tensor:
        """x (B, C, *space), t (B,), cond (B, ...) each -> (B, C_out, *space), on both processes."""
        if len(x) % 2:
            return self.net(x, t, cond, **net)
        which = self.group.rank()
        told = {name: given.chunk(2)[which] for name, given in (cond or {}).items()}
        half = self.net(x.chunk(2)[which], t.chunk(2)[which], told, **net).contiguous()
        both = half.new_empty(2 * len(half), *half.shape[1:])
        dist.all_gather_into_tensor(both, half, group=self.group)
        return both


class InPartsOf(nn.Module):
    """A transformer whose tokens the processes of a group share (`nn.sequence.InParts`), whatever runs its blocks."""

    def __init__(self, net: nn.Module, group: dist.ProcessGroup):
        super().__init__()
        self.net, self.group = net, group

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, run: Runner = run_all) -> Tensor:
        """As the network's own."""
        return self.net(x, t, cond, run=InParts(self.group, run))


def shared(
    pipe: Pipeline, world: World, config: SampleConfig, *, guidance: bool = False, sequence: int = 1
) -> Pipeline:
    """A pipeline whose calls all processes of a world make, with the same arguments; each has all that comes out.

    `guidance`: two processes, or two groups of them, ask with the condition and without it. `sequence`: so many share
    the tokens of a sample. UserError where the number of processes is another, or there is nothing to share.
    """
    wanted, model = (2 if guidance else 1) * sequence, pipe.card.model
    if sequence < 1 or world.size != wanted:
        raise UserError(
            f"guidance by halves takes 2 processes, tokens in N parts N times as many: {wanted} here, and torchrun "
            f"started {world.size}"
        )
    if guidance and not is_guided(model, config, negative=True):
        raise UserError(
            "guidance has no second half here: guidance_scale is 1, or the network imitates guidance and its "
            "true_cfg_scale is 1, or its guidance_interval ends at 0"
        )
    if sequence > 1 and not isinstance(model, DiTConfig):
        raise UserError("a U-Net's work cannot be shared by tokens; it has none")
    if sequence > 1 and isinstance(model, DiTConfig) and model.heads % sequence:
        raise UserError(f"each process takes as many heads: {model.heads} are not divisible by {sequence}")
    net = pipe.denoiser.net
    if sequence > 1:
        net = InPartsOf(net, own_group(world, [range(i, i + sequence) for i in range(0, wanted, sequence)]))
    if guidance:
        net = Halves(net, own_group(world, [range(i, wanted, sequence) for i in range(sequence)]))
    return Pipeline(Denoiser(net, pipe.denoiser.process), pipe.card, pipe.codec, pipe.encoder)


def own_group(world: World, groups: list[range]) -> dist.ProcessGroup:
    """Of some groups of processes, the one that this process is in; all processes make all groups."""
    made = [dist.new_group(list(ranks)) for ranks in groups]
    return next(group for group, ranks in zip(made, groups, strict=True) if world.rank in ranks)
