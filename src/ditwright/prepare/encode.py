"""From pictures not opened yet to moments, in threads.

B batch, H, W height and width, F a picture as it is and mirrored, C channels of latents, M of moments, h, w the height
and width of latents.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ..codec.base import Codec
from ..data.base import Record
from ..data.buckets import Dropped, TooSmall
from ..data.images import Unreadable, centre_crop, cover, open_rgb
from ..data.parts import Skipped, Sums
from ..errors import UserError
from .config import PrepareConfig, Size

T = TypeVar("T")
R = TypeVar("R")

LABELS = 2**31  # where the source does not say how many there are
Job = tuple[int, Record]  # a picture's number in the source, and the picture


@dataclass(frozen=True)
class Picture:
    """A picture decoded and cut to its size."""

    number: int  # in the source
    record: Record
    size: Size
    pixels: np.ndarray  # (*size, 3) uint8
    facts: dict[str, Any]  # that go with its moments


@dataclass(frozen=True)
class Encoded:
    """What is kept of a picture."""

    picture: Picture
    moments: np.ndarray  # (F, M, h, w)


@dataclass(frozen=True)
class Encoder:
    """From pictures to what is kept of them."""

    codec: Codec
    config: PrepareConfig
    classes: int
    device: torch.device

    def try_out(self) -> str:
        """Encode a little grey; returns the dtype of what is kept.

        UserError where the codec cannot, or makes no whole latents of the sizes asked for.
        """
        factor = self.codec.config.factor
        sizes = self.config.buckets.sizes if self.config.buckets else ((self.config.size or factor,) * 2,)
        for side in sorted({side for size in sizes for side in size}):
            if side % factor:
                raise UserError(f"pictures of {side} pixels make no whole latents: sides are multiples of {factor}")
        grey = np.full((4 * factor, 4 * factor, 3), 128, np.uint8)
        picture = Picture(0, Record("grey", lambda: grey), (4 * factor, 4 * factor), grey, {})
        return str(self.encode([picture])[0].moments.dtype)

    def results(self, pool: ThreadPoolExecutor, jobs: Iterable[Job], depth: int) -> Iterator[Encoded | Skipped]:
        """The pictures encoded, `depth` of them begun ahead: in order on a CPU; on a GPU, those of one size are."""
        if self.device.type == "cpu":
            yield from in_order(pool, self.alone, jobs, depth)
            return
        with ThreadPoolExecutor(1, "encode") as ahead:  # the GPU works while the caller writes
            for several in in_order(ahead, self.together, self.batches(pool, jobs, depth), 2):
                yield from several

    def batches(self, pool: ThreadPoolExecutor, jobs: Iterable[Job], depth: int) -> Iterator[list[Picture] | Skipped]:
        """Pictures of one size, or one that is skipped."""
        waiting: dict[Size, list[Picture]] = defaultdict(list)
        for one in in_order(pool, self.decode, jobs, depth + self.config.batch_size):
            if isinstance(one, Skipped):
                yield one
                continue
            waiting[one.size].append(one)
            if len(waiting[one.size]) == self.config.batch_size:
                yield waiting.pop(one.size)
        for size in sorted(waiting):
            yield waiting[size]

    def alone(self, job: Job) -> Encoded | Skipped:
        """A picture decoded and encoded by itself."""
        return self.together(one if isinstance(one := self.decode(job), Skipped) else [one])[0]

    def together(self, batch: list[Picture] | Skipped) -> Sequence[Encoded | Skipped]:
        """Pictures of one size encoded; one that is skipped stays what it is."""
        return [batch] if isinstance(batch, Skipped) else self.encode(batch)

    def decode(self, job: Job) -> Picture | Skipped:
        """A picture as the codec takes it, or why there is none."""
        number, record = job
        label = None if record.label is None else int(record.label)
        if (self.classes and label is None) or not 0 <= (label or 0) < (self.classes or LABELS):
            raise UserError(f"{record.name!r} has the label {label}; its source has {self.classes} classes")
        try:
            image = open_rgb(record.read())
            size = self.config.target(image.height, image.width)
        except (Unreadable, Dropped, OSError) as error:
            return skipped(record, error)
        if self.config.buckets is not None:
            pixels = cover(image, size)
        else:
            pixels = np.asarray(image) if self.config.size is None else centre_crop(image, self.config.size)
        if any(side % self.codec.config.factor for side in size):
            raise UserError(
                f"{record.name!r} of {size[0]} x {size[1]} pixels makes no whole latents: sides are multiples of "
                f"{self.codec.config.factor}; give a size to crop to (--size N)"
            )
        known = {"name": record.name, "label": label, "caption": record.caption}
        return Picture(number, record, size, pixels, known | {"size": [image.height, image.width]})

    def encode(self, pictures: list[Picture]) -> list[Encoded]:
        """Pictures of one size."""
        images = np.stack([picture.pixels for picture in pictures])  # (B, H, W, 3)
        views = (images, images[:, :, ::-1]) if self.config.flips else (images,)
        try:
            with torch.no_grad():
                moments = torch.stack([self.codec.moments(np.ascontiguousarray(view)).cpu() for view in views], dim=1)
        except torch.OutOfMemoryError as error:
            raise UserError(f"{len(pictures)} pictures do not fit into {self.device}; lower --batch-size") from error
        if moments.dtype != torch.uint8:
            moments = moments.to(getattr(torch, self.config.dtype))
            for picture, finite in zip(pictures, moments.isfinite().flatten(1).all(1).tolist(), strict=True):
                if not finite:
                    raise UserError(
                        f"the codec gives values for {picture.record.name!r} that {self.config.dtype} cannot hold; "
                        "try --dtype float32, and look at the weights if that is no help"
                    )
        return [Encoded(*both) for both in zip(pictures, moments.contiguous().numpy(), strict=True)]

    def sums(self, moments: np.ndarray) -> Sums:
        """Of the latents of moments (F, M, h, w) as drawn, before scale and shift; squares are expected ones."""
        config = self.codec.config
        scale, shift = (np.reshape(values, (-1, 1, 1)) for values in (config.scale or (1,), config.shift or (0,)))
        given = torch.from_numpy(moments)
        mean = self.codec.latents(given).double().numpy() / scale + shift  # (F, C, h, w)
        off = self.codec.latents(given, torch.ones_like).double().numpy() / scale + shift  # one standard deviation away
        totals = (values.sum((0, 2, 3)).tolist() for values in (mean, mean**2 + (off - mean) ** 2))
        return Sums(mean[:, 0].size, *map(tuple, totals))


def skipped(record: Record, error: Exception) -> Skipped:
    """What the report says of a picture that cannot be used."""
    if isinstance(error, Dropped):
        return Skipped(record.name, "too small" if isinstance(error, TooSmall) else "too long", str(error))
    reason = str(error) if isinstance(error, Unreadable) else f"cannot be read ({error})"
    return Skipped(record.name, "corrupt", " ".join(reason.split()))


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads each of which computes alone."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "prepare", torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], jobs: Iterable[T], depth: int) -> Iterator[R]:
    """`work(job)` of each job in their order, up to `depth` of them begun ahead."""
    begun: deque[Future[R]] = deque()
    try:
        for job in jobs:
            begun.append(pool.submit(work, job))
            if len(begun) > depth:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
