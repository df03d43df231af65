"""What a metric sees of a picture: features, whatever network they come from.

B batch, H height, W width, C channels, D features, S spatial features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..extras import first_line, need
from ..model.weights import digest

PROBE = 64  # pixels of the black picture by which features are counted


@dataclass(frozen=True)
class Features:
    """Of a batch, float32."""

    pool: np.ndarray  # (B, D)
    spatial: np.ndarray | None = None  # (B, S), for sFID
    probabilities: np.ndarray | None = None  # (B, K), for the Inception Score


class Seen(NamedTuple):
    """The same as a network gives it."""

    pool: Tensor
    spatial: Tensor | None = None
    probabilities: Tensor | None = None


class Extractor(Protocol):
    """Features of pictures. Numbers made with different extractors cannot be compared, so each carries `name`."""

    @property
    def name(self) -> str:
        """Which network, prepared how, and the first 8 digits of a hash of its weights."""

    @property
    def feature_size(self) -> int:
        """D."""

    def __call__(self, images: np.ndarray) -> Features:
        """(B, H, W, C) uint8, C of 1 or 3, of any size."""


class ModuleExtractor:
    """Any network as an extractor: it gives (B, D), or `Seen`, for what `prepare` makes of the pictures.

    module        put into eval mode and moved to `device`.
    name          what to call it; a hash of its weights is appended.
    size          side to which pictures are resized; None leaves them as they are.
    prepare       (B, H, W, C) uint8 -> the network's input; by default `scaled`: colour, black -1 and white 1.
    feature_size  D; found with a black picture where it is not given.
    fingerprint   of the weights, where it is known already.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        size: int | None = None,
        *,
        prepare: Callable[[np.ndarray], Tensor] | None = None,
        feature_size: int = 0,
        device: torch.device | str = "cpu",
        fingerprint: str = "",
    ):
        self.name = f"{name}-{(fingerprint or digest(module.state_dict()))[:8]}"
        self.module, self.device = module.eval().requires_grad_(False).to(device), torch.device(device)
        self.prepare = prepare or partial(scaled, size=(size, size) if size else None)
        self.feature_size = feature_size
        if not feature_size:
            black = np.zeros((1, size or PROBE, size or PROBE, 3), np.uint8)
            self.feature_size = self._see(black).pool.shape[-1]

    def __call__(self, images: np.ndarray) -> Features:
        """(B, H, W, C) uint8 -> features. UserError for anything but pictures, or where their number is another one."""
        check(images)
        seen = self._see(images)
        if seen.pool.shape != (len(images), self.feature_size):
            raise UserError(
                f"the network of {self.name} gives {tuple(seen.pool.shape)} for {len(images)} pictures; features are "
                f"({len(images)}, {self.feature_size}): let it pool over space, or give `size`"
            )
        return Features(*(None if part is None else part.float().cpu().numpy() for part in seen))

    def _see(self, images: np.ndarray) -> Seen:
        with full_precision(self.device):
            found = self.module(self.prepare(images).to(self.device))
        return found if isinstance(found, Seen) else Seen(found)


def describe(extractor: Extractor) -> dict[str, Any]:
    """What to print and to keep beside every number that an extractor had a part in."""
    return {"extractor": extractor.name, "feature_size": extractor.feature_size}


def frechet_name(extractor: str) -> str:
    """What the Frechet distance between features may be called: FID is the one of the published Inception alone."""
    named = {"inception-v3-tf-": "FID", "dinov2-vitl14-": "FD-DINOv2"}
    return next((short for prefix, short in named.items() if extractor.startswith(prefix)), f"FD ({extractor})")


def check(images: np.ndarray) -> None:
    """UserError unless these are pictures: (B, H, W, 1 or 3) uint8."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise UserError(f"features are made of uint8 pictures (B, H, W, 1 or 3); got {images.dtype} {images.shape}")


def channels_first(images: np.ndarray, channels: int = 3) -> Tensor:
    """(B, H, W, C) uint8 -> (B, channels, H, W) uint8; grey is repeated where colour is wanted."""
    if images.shape[-1] not in (1, channels):
        raise UserError(f"this network was made for grey pictures; got {images.shape[-1]} channels")
    first = np.broadcast_to(images.transpose(0, 3, 1, 2), (len(images), channels, *images.shape[1:3]))
    return torch.from_numpy(first.copy())  # in one order in memory, on which convolutions' last digits depend


def scaled(images: np.ndarray, *, channels: int = 3, size: tuple[int, int] | None = None) -> Tensor:
    """(B, H, W, C) uint8 -> (B, channels, h, w) float32, black -1 and white 1; `size` by bilinear, antialiased."""
    x = channels_first(images, channels).float() / 127.5 - 1
    if size and tuple(x.shape[2:]) != tuple(size):
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
    return x


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Plain float32, whatever the caller trains in: features of a picture must not depend on that."""
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(products)


def from_hub(name: str, patterns: list[str], remedy: str, revision: str = "") -> Path:
    """The folder of some files of OWNER/NAME; from the cache when offline. UserError that ends in `remedy`."""
    pinned = {"revision": revision} if revision else {}
    hub = need("huggingface_hub", extra="hf")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=patterns, **pinned))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{name!r} is not here and could not be had from the hub ({reason}); {remedy}") from error
