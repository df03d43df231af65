"""A small classifier trained on the reference pictures, for sets on which no published network means anything.

Its penultimate layer is an extractor, and it tells whether a picture is of the class that was asked for. Distances
between its features are named after it: they are no FID, and another judge gives others.

N pictures, B batch, H height, W width, C channels, D features, K classes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import parse_json
from ..errors import UserError
from ..files import whole_file
from ..model.weights import load_strictly, read_safetensors, write_safetensors
from ..rng import generator
from .features import ModuleExtractor, Seen, check, scaled

FORMAT = "ditwright-judge-1"
FEATURES = 64
WIDTHS = (32, 64, 128)  # at full, half, quarter size and below
LEAST, MOST = 8, 64  # pixels along a side that a judge works at; larger pictures are made smaller first
FEWEST = 5  # pictures of a class
HELD_OUT = 5  # one in so many is kept to measure the judge with
BATCH, RATE, DECAY = 64, 3e-3, 1e-2
STEPS, PASSES = (200, 1200), 10  # few passes: features that fit their classes too well lose sight of the rest
BUDGET = 5e11  # multiply-adds of all forward passes: a minute on two cores


@dataclass(frozen=True)
class Facts:
    """What is known of a judge, kept with its weights."""

    dataset: str
    size: tuple[int, int]  # height and width that it works at
    channels: int
    classes: tuple[int, ...]  # the labels that it tells apart
    seed: int
    steps: int
    trained: int  # pictures that it learned from
    held_out: int  # pictures that it never saw
    accuracy: float  # on those


class Net(nn.Module):
    """Convolutions in pairs, halving down to 4 x 4 or so; means of the last ones are the features.

    Batch norm, for it leaves brightness and contrast of a picture in its features, as norms over a picture would not.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int):
        super().__init__()
        side, layers = min(size), list[nn.Module]()
        self.places, self.macs = math.prod(size), 0
        for depth in range(16):
            width = WIDTHS[min(depth, len(WIDTHS) - 1)]
            halves = depth > 0 or side > 32  # pictures of 64 are halved at once
            layers += self._pair(channels, width, 2 if halves else 1)
            channels, side = width, -(-side // 2) if halves else side
            if side <= 4:
                break
        layers += self._conv(channels, FEATURES, 1)
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> Seen:
        """(B, C, H, W) -> features (B, D) and probabilities (B, K)."""
        pool = self.layers(x).mean((2, 3))
        return Seen(pool, None, self.head(pool).softmax(-1))

    def _pair(self, channels: int, width: int, stride: int) -> list[nn.Module]:
        return self._conv(channels, width, stride) + self._conv(width, width, 1)

    def _conv(self, channels: int, width: int, stride: int) -> list[nn.Module]:
        self.places //= stride**2
        self.macs += self.places * 9 * channels * width
        return [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


class Judge(ModuleExtractor):
    """A trained classifier as an extractor, by the name judge-DATASET-HASH."""

    def __init__(self, net: nn.Module, facts: Facts, device: torch.device | str = "cpu"):
        prepare = partial(scaled, channels=facts.channels, size=facts.size)
        dataset = re.sub(r"[^a-z0-9.]+", "-", facts.dataset.lower()).strip("-.")
        super().__init__(net, f"judge-{dataset or 'unnamed'}", prepare=prepare, feature_size=FEATURES, device=device)
        self.facts = facts

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of pictures (N, H, W, C) uint8 that it takes for their label (N,)."""
        parts = range(0, len(images), 256)
        found = np.concatenate([self(images[i : i + 256]).probabilities.argmax(1) for i in parts])
        return float((np.array(self.facts.classes)[found] == labels).mean())

    def save(self, path: Path) -> None:
        """Weights and facts as one .safetensors file, whole or not at all."""
        facts = {"format": FORMAT, "facts": json.dumps(asdict(self.facts))}
        with whole_file(Path(path)) as half:
            write_safetensors(half, self.module.state_dict(), facts)


def learn_judge(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    dataset: str,
    seed: int = 0,
    steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Judge:
    """A judge of pictures (N, H, W, C) uint8 with labels (N,): less than a minute on two cores.

    One picture in five of each class is held out: the accuracy in `facts` is on those. Equal arguments give an equal
    judge on the same machine; to compare across machines, save it. UserError for fewer than two classes, fewer than
    five pictures of a class, or pictures under 8 x 8.
    """
    check(images)
    size = _size(images.shape[1:3])
    if np.shape(labels) != (len(images),):
        raise UserError(f"one label for each picture: got {np.shape(labels)} for {len(images)} pictures")
    classes, targets = np.unique(labels, return_inverse=True)
    train, held_out = _split(targets, classes, seed)
    net = _initial(images.shape[-1], size, len(classes), seed).to(device)
    if steps is None:
        least, most = STEPS
        steps = max(1, min(most, int(BUDGET / (net.macs * BATCH)), max(least, PASSES * len(train) // BATCH)))
    _fit(net, images, targets, train, size=size, steps=steps, seed=seed)
    known = tuple(classes.tolist())
    facts = Facts(dataset, size, images.shape[-1], known, seed, steps, len(train), len(held_out), math.nan)
    judge = Judge(net, facts, device)
    judge.facts = replace(facts, accuracy=judge.accuracy(images[held_out], labels[held_out]))
    return judge


def load_judge(path: str | Path, device: torch.device | str = "cpu") -> Judge:
    """A judge that was saved. UserError where the file is none."""
    from safetensors import safe_open

    path = Path(path).expanduser()
    state = read_safetensors(path)
    with safe_open(path, "np") as file:
        told = file.metadata() or {}
    if told.get("format") != FORMAT:
        raise UserError(f"{str(path)!r} is no judge: its format is {told.get('format')!r}, expected {FORMAT!r}")
    try:
        plain = parse_json(told["facts"])
        facts = Facts(**plain | {name: tuple(plain[name]) for name in ("size", "classes")})
        net = _initial(facts.channels, facts.size, len(facts.classes), facts.seed)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{str(path)!r} has damaged facts ({error})") from error
    load_strictly(net, state)
    return Judge(net, facts, device)


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """The height and width to work at."""
    if min(shape) < LEAST:
        raise UserError(f"a judge needs pictures of {LEAST}x{LEAST} or more; got {shape[0]}x{shape[1]}")
    shrink = min(1, MOST / max(shape))
    return max(LEAST, round(shape[0] * shrink)), max(LEAST, round(shape[1] * shrink))


def _split(targets: np.ndarray, classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures to learn from and which to hold out, one in five of each class."""
    counts = np.bincount(targets)
    if len(counts) < 2:
        raise UserError(f"a judge tells classes apart; the reference has {len(counts)}: use inception: or dinov2:")
    if counts.min() < FEWEST:
        scarce, least = classes[counts.argmin()], counts.min()
        raise UserError(f"a judge needs {FEWEST} pictures of each class; the reference has {least} of class {scarce}")
    held = np.zeros(len(targets), bool)
    for k in range(len(counts)):
        order = generator(seed, k, "judge-split").permutation(np.flatnonzero(targets == k))
        held[order[: len(order) // HELD_OUT]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _initial(channels: int, size: tuple[int, int], classes: int, seed: int) -> Net:
    """Freshly drawn; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(channels, size, classes)


def _fit(
    net: Net,
    images: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    *,
    size: tuple[int, int],
    steps: int,
    seed: int,
) -> None:
    """AdamW on cross-entropy, one cycle of the learning rate, every batch shifted by up to an eighth of a side."""
    device = next(net.parameters()).device
    optim = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    reach = np.array(size) // 8
    net.train()
    for step, batch in enumerate(_batches(train, steps, seed)):
        shift = generator(seed, step, "judge-shift").integers(-reach, reach + 1)
        x = _shifted(scaled(images[batch], channels=images.shape[-1], size=size), *shift.tolist()).to(device)
        done = (step + 1) / steps
        for group in optim.param_groups:
            group["lr"] = RATE * min(1, done * 10) * (0.5 + 0.5 * math.cos(math.pi * done))
        loss = F.cross_entropy(net.head(net.layers(x).mean((2, 3))), torch.from_numpy(targets[batch]).to(device))
        optim.zero_grad()
        loss.backward()
        optim.step()


def _batches(train: np.ndarray, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers of the pictures of each step, (BATCH,), all of them shuffled again and again."""
    order, passes = np.empty(0, np.int64), 0
    for _ in range(steps):
        while len(order) < BATCH:
            order = np.concatenate([order, generator(seed, passes, "judge-order").permutation(train)])
            passes += 1
        yield order[:BATCH]
        order = order[BATCH:]


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Moved by whole pixels, edges repeated."""
    height, width = x.shape[2:]
    pads = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    return F.pad(x, pads, mode="replicate")[..., max(-down, 0) :, max(-right, 0) :][..., :height, :width]
