"""A plain DiT, as the paper describes it: what people run today. Nothing of it is used elsewhere.

B batch, C channels, L tokens, D width, H heads, d head width, p side of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.config import DiTConfig
from ..model.weights import State

FREQUENCIES = 256  # sines and cosines of the time
PERIOD = 10_000.0


class Block(nn.Module):
    """Attention and an MLP behind modulated norms, each with its gate (Peebles & Xie, Sec. 3.2)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.mod = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, L, D), c (B, D) -> (B, L, D)"""
        shift, scale, gate, shift2, scale2, gate2 = self.mod(c)[:, None].chunk(6, -1)  # (B, 1, D) each
        h = self.norm(x) * (1 + scale) + shift
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d) each
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, L, D)
        x = x + gate * self.out(h)
        h = self.norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.down(F.gelu(self.up(h), approximate="tanh"))


class PlainDiT(nn.Module):
    """Patches with sin-cos positions, blocks with adaLN-Zero, a linear head (Peebles & Xie, Sec. 3.2). Eager, fp32."""

    table: Tensor  # (L, D) positions

    def __init__(self, config: DiTConfig, grid: tuple[int, int]):
        """`grid`: patches along height and width of its inputs."""
        super().__init__()
        width = config.width
        self.patch, self.grid, self.out = config.patch, grid, config.out_channels
        self.embed = nn.Conv2d(config.channels, width, config.patch, config.patch)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(config.num_classes + 1, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.last_mod = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, math.prod(config.patch) * config.out_channels)
        self.register_buffer("table", self._table(*grid, width), persistent=False)

    @staticmethod
    def _table(rows: int, columns: int, width: int) -> Tensor:
        """(L, D): the first half tells the column, the second the row."""
        quarter = width // 4
        frequencies = PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        angles = [place.reshape(-1, 1) * frequencies for place in (x, y)]
        return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1).float()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (B, C, h, w), t (B,) steps, y (B,) classes -> (B, C_out, h, w)."""
        frequencies = torch.exp(-math.log(PERIOD) * torch.arange(128, device=t.device) / 128)
        angles = t[:, None].float() * frequencies
        features = torch.cat((angles.cos(), angles.sin()), 1).to(self.head.weight.dtype)
        c = F.silu(self.time(features) + self.label(y))  # (B, D)
        x = self.embed(x).flatten(2).transpose(1, 2) + self.table  # (B, L, D)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.last_mod(c)[:, None].chunk(2, -1)
        x = self.head(self.norm(x) * (1 + scale) + shift)  # (B, L, p * p * C_out)
        x = x.unflatten(1, self.grid).unflatten(-1, (*self.patch, self.out)).permute(0, 5, 1, 3, 2, 4)
        return x.flatten(4, 5).flatten(2, 3)  # (B, C_out, h, w)


BLOCK = {"qkv": "attn.x.qkv", "out": "attn.x.proj", "up": "mlp.x.fc1", "down": "mlp.x.fc2"}  # plain -> ours
REST = {"time.0": "time.mlp.0", "time.2": "time.mlp.2", "last_mod": "head.mod.lin", "head": "head.proj"}


def plain_weights(ours: State, config: DiTConfig) -> State:
    """The weights of our DiT of a configuration under the names of the plain one."""
    kernel = ours["patchify.proj.weight"].unflatten(1, (config.channels, *config.patch))
    found = {"embed.weight": kernel, "embed.bias": ours["patchify.proj.bias"]}
    found["label.weight"] = ours["vectors.label.table.weight"]
    for p in ("weight", "bias"):
        found |= {f"{theirs}.{p}": ours[f"{name}.{p}"] for theirs, name in REST.items()}
        for i in range(config.depth):
            found |= {f"blocks.{i}.{theirs}.{p}": ours[f"blocks.{i}.{name}.{p}"] for theirs, name in BLOCK.items()}
            halves = [ours[f"blocks.{i}.{branch}.x.mod.lin.{p}"] for branch in ("attn", "mlp")]
            found[f"blocks.{i}.mod.{p}"] = torch.cat(halves)
    return found
