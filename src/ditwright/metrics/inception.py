"""The Inception-v3 that published FIDs are measured with: TensorFlow's graph of 2015-12-05, as PyTorch ports have it.

Szegedy et al. 2016 (1512.00567) describe the network. The graph departs from later ones: its average pools leave the
padding out, the pool of the last block takes the maximum, and it has 1008 outputs. Names of weights are those of the
published port (pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which torch-fidelity and torchmetrics use too).

B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, lookup
from ..model.weights import digest, load_strictly, read_tensors
from .features import ModuleExtractor, Seen, channels_first, from_hub

SIDE, POOL, CLASSES, SPATIAL = 299, 2048, 1008, 7 * 17 * 17
PUBLISHED = "6726825d"  # how the SHA-256 of the published file begins
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
COUNTS = "num_batches_tracked"  # of batch norms, which old files lack and nothing here reads

Kernel = int | tuple[int, int]
Pool = Callable[[Tensor], Tensor]


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


Table = Mapping[
    str, tuple[str, int, Kernel] | tuple[str, int, Kernel, int]
]  # (what it reads, channels, kernel, stride)


class Mixed(nn.Module):
    """Branches side by side: its output is all that no convolution reads, in the table's order, then the pool."""

    def __init__(self, channels: int, table: Table, pool: Pool):
        super().__init__()
        self.sources, self.pool = {name: row[0] for name, row in table.items()}, pool
        widths = {"x": channels, "pool": channels}
        for name, (source, out, kernel, *stride) in table.items():
            padding = 0 if stride else tuple(k // 2 for k in np.broadcast_to(kernel, 2).tolist())
            self.add_module(name, Conv(widths[source], out, kernel, *stride, padding=padding))
            widths[name] = out
        self.ends = [name for name in (*table, "pool") if name not in self.sources.values()]
        self.channels = sum(widths[name] for name in self.ends)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, self.channels, H', W')."""
        seen = {"x": x, "pool": self.pool(x)}
        for name, source in self.sources.items():
            seen[name] = self.get_submodule(name)(seen[source])
        return torch.cat([seen[name] for name in self.ends], 1)


def mean_pool(x: Tensor) -> Tensor:
    """3 x 3 means, of what lies inside the picture alone."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """3 x 3 maxima, of the same size."""
    return F.max_pool2d(x, 3, 1, 1)


def halve(x: Tensor) -> Tensor:
    """3 x 3 maxima at every second place."""
    return F.max_pool2d(x, 3, 2)


def grid_35(pooled: int) -> Table:
    """5 x 5 as such and as two 3 x 3 (their Fig. 5)."""
    return {
        "branch1x1": ("x", 64, 1),
        "branch5x5_1": ("x", 48, 1),
        "branch5x5_2": ("branch5x5_1", 64, 5),
        "branch3x3dbl_1": ("x", 64, 1),
        "branch3x3dbl_2": ("branch3x3dbl_1", 96, 3),
        "branch3x3dbl_3": ("branch3x3dbl_2", 96, 3),
        "branch_pool": ("pool", pooled, 1),
    }


def grid_17(width: int) -> Table:
    """7 x 7 as rows and columns (their Fig. 6)."""
    return {
        "branch1x1": ("x", 192, 1),
        "branch7x7_1": ("x", width, 1),
        "branch7x7_2": ("branch7x7_1", width, (1, 7)),
        "branch7x7_3": ("branch7x7_2", 192, (7, 1)),
        "branch7x7dbl_1": ("x", width, 1),
        "branch7x7dbl_2": ("branch7x7dbl_1", width, (7, 1)),
        "branch7x7dbl_3": ("branch7x7dbl_2", width, (1, 7)),
        "branch7x7dbl_4": ("branch7x7dbl_3", width, (7, 1)),
        "branch7x7dbl_5": ("branch7x7dbl_4", 192, (1, 7)),
        "branch_pool": ("pool", 192, 1),
    }


GRID_8: Table = {  # rows and columns side by side (their Fig. 7)
    "branch1x1": ("x", 320, 1),
    "branch3x3_1": ("x", 384, 1),
    "branch3x3_2a": ("branch3x3_1", 384, (1, 3)),
    "branch3x3_2b": ("branch3x3_1", 384, (3, 1)),
    "branch3x3dbl_1": ("x", 448, 1),
    "branch3x3dbl_2": ("branch3x3dbl_1", 384, 3),
    "branch3x3dbl_3a": ("branch3x3dbl_2", 384, (1, 3)),
    "branch3x3dbl_3b": ("branch3x3dbl_2", 384, (3, 1)),
    "branch_pool": ("pool", 192, 1),
}
TO_17: Table = {
    "branch3x3": ("x", 384, 3, 2),
    "branch3x3dbl_1": ("x", 64, 1),
    "branch3x3dbl_2": ("branch3x3dbl_1", 96, 3),
    "branch3x3dbl_3": ("branch3x3dbl_2", 96, 3, 2),
}
TO_8: Table = {
    "branch3x3_1": ("x", 192, 1),
    "branch3x3_2": ("branch3x3_1", 320, 3, 2),
    "branch7x7x3_1": ("x", 192, 1),
    "branch7x7x3_2": ("branch7x7x3_1", 192, (1, 7)),
    "branch7x7x3_3": ("branch7x7x3_2", 192, (7, 1)),
    "branch7x7x3_4": ("branch7x7x3_3", 192, 3, 2),
}
BLOCKS: dict[str, tuple[Table, Pool]] = {
    "Mixed_5b": (grid_35(32), mean_pool),  # 35 x 35
    "Mixed_5c": (grid_35(64), mean_pool),
    "Mixed_5d": (grid_35(64), mean_pool),
    "Mixed_6a": (TO_17, halve),  # 17 x 17
    "Mixed_6b": (grid_17(128), mean_pool),
    "Mixed_6c": (grid_17(160), mean_pool),
    "Mixed_6d": (grid_17(160), mean_pool),
    "Mixed_6e": (grid_17(192), mean_pool),
    "Mixed_7a": (TO_8, halve),  # 8 x 8
    "Mixed_7b": (GRID_8, mean_pool),
    "Mixed_7c": (GRID_8, max_pool),  # the slip of the graph that all FIDs share
}


class InceptionV3(nn.Module):
    """Szegedy et al. 2016 as the graph has it: 23,850,960 parameters."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        channels = 192
        for name, (table, pool) in BLOCKS.items():
            block = Mixed(channels, table, pool)
            self.add_module(name, block)
            channels = block.channels
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Seen:
        """(B, 3, 299, 299), black -1 -> pool (B, 2048), spatial (B, 2023), probabilities (B, 1008).

        Spatial features are those of sFID (Nash et al. 2021) as ADM's evaluator has them: the first 7 channels of the
        tensor `mixed_6/conv`, height, width, channel in this order. They are the ones that Mixed_6d begins with.
        """
        x = halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))  # (B, 64, 73, 73)
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # (B, 192, 35, 35)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6d":
                spatial = x[:, :7].permute(0, 2, 3, 1).flatten(1)  # (B, 17 * 17 * 7)
        pool = x.mean((2, 3))
        return Seen(pool, spatial, self.probabilities(pool))

    def probabilities(self, pool: Tensor) -> Tensor:
        """(B, 2048) -> (B, 1008), without the bias: so the Inception Score has always been computed (Salimans 2016)."""
        return F.linear(pool, self.fc.weight).softmax(-1)

    def logits(self, pool: Tensor) -> Tensor:
        """(B, 2048) -> (B, 1008), of the classifier itself."""
        return self.fc(pool)


def tensorflow(images: np.ndarray) -> Tensor:
    """(B, H, W, C) uint8 -> (B, 3, 299, 299) as the graph does it itself, and with it ADM's evaluator.

    Bilinear without antialiasing, pixel i of the result at i * H / 299, not at its centre; then (x - 128) / 128.
    """
    x = channels_first(images).float()
    for axis in (3, 2):
        old = x.shape[axis]
        place = torch.arange(SIDE, dtype=torch.float32) * torch.tensor(old / SIDE, dtype=torch.float32)
        low = place.long().clamp(max=old - 1)
        share = (place - low).view(-1, 1) if axis == 2 else place - low
        near, far = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=old - 1))
        x = near + (far - near) * share
    return (x - 128) / 128


def pytorch_fid(images: np.ndarray) -> Tensor:
    """(B, H, W, C) uint8 -> (B, 3, 299, 299) as pytorch-fid does it: bilinear by pixel centres, 2 x / 255 - 1."""
    x = channels_first(images).float() / 255
    return F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False) * 2 - 1


PREPARES = {"tensorflow": tensorflow, "pytorch-fid": pytorch_fid}


def inception(
    weights: str | Path, device: torch.device | str = "cpu", *, prepare: str = "tensorflow"
) -> ModuleExtractor:
    """The extractor of FID, sFID, IS, precision and recall in the papers.

    `weights`: the published file (see URL), the same weights in a .safetensors file, or OWNER/NAME/FILE on the hub.
    Its name is inception-v3-tf-6726825d for that very file, inception-v3-... by its own weights for any other, and
    says so where pictures are prepared as pytorch-fid does.
    """
    prepared, path = lookup("preparation", prepare, PREPARES), _found(str(weights))
    state = {name: tensor for name, tensor in read_tensors(path).items() if not name.endswith(COUNTS)}
    with torch.device("meta"):
        net = InceptionV3()
    counts = {name: torch.tensor(0) for name in net.state_dict() if name.endswith(COUNTS)}
    try:
        load_strictly(net.to_empty(device="cpu"), state | counts)
    except UserError as error:
        raise UserError(f"{str(path)!r} is not the Inception-v3 of {URL}: {error}") from None
    with path.open("rb") as file:
        published = hashlib.file_digest(file, "sha256").hexdigest().startswith(PUBLISHED)
    return ModuleExtractor(
        net,
        ("inception-v3-tf" if published else "inception-v3") + (f"-{prepare}" if prepare != "tensorflow" else ""),
        prepare=prepared,
        feature_size=POOL,
        device=device,
        fingerprint=PUBLISHED if published else digest(state),
    )


def _found(weights: str) -> Path:
    """The file of weights, here or from the hub."""
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    remedy = f"fetch {URL} and name it"
    on_hub = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)/([\w./-]+\.(?:pth|pt|safetensors))", weights)
    if on_hub:
        path = from_hub(on_hub[1], [on_hub[2]], remedy) / on_hub[2]
    if not path.is_file():
        raise UserError(f"there is no file of weights {weights!r}; {remedy}")
    return path
