"""Condition in, pictures out: a denoiser, its codec, and what it must know of itself.

B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .codec.base import codec_from
from .codec.config import CodecConfig
from .config import dump_yaml, read_yaml
from .diffusion.config import ProcessConfig, SampleConfig
from .diffusion.grid import grid_for
from .diffusion.guidance import clipped, guided
from .diffusion.process import Cond, Denoiser, process_from
from .diffusion.sampler import SAMPLERS, Sampler, Step
from .errors import UserError, did_you_mean, lookup
from .files import whole_folder
from .model.config import DiTConfig
from .model.dit import DiT
from .model.weights import load_strictly, read_safetensors, write_safetensors
from .rng import Draws
from .train.state import checkpoints

ROWS = 8  # below about 6 rows matrix libraries switch kernels, and with them last bits: batches are filled up to this
CARD, WEIGHTS = "card.yaml", "model.safetensors"


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself: enough to sample without a single flag."""

    model: DiTConfig
    process: ProcessConfig
    codec: CodecConfig
    sample: SampleConfig
    class_names: tuple[str, ...] = ()
    image_size: tuple[int, int] = (256, 256)  # height, width in pixels


class Frame(NamedTuple):
    """One step of sampling, for previews and film strips."""

    t: float  # the time of `images`, 0 at the end
    images: np.ndarray  # (B, H, W, C) uint8: the noisy sample
    clean: np.ndarray  # (B, H, W, C) uint8: the present estimate of the clean sample


class Pipeline:
    """Samples a trained denoiser. It keeps no state between calls: one serves any number of threads."""

    def __init__(self, denoiser: Denoiser, card: Card):
        self.denoiser, self.card, self.codec = denoiser.eval(), card, codec_from(card.codec)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu") -> Pipeline:
        """From a run folder (its newest checkpoint) or a checkpoint folder. UserError where a part is missing."""
        folder = find_checkpoint(Path(path))
        card = read_yaml(Card, folder / CARD)
        state = read_safetensors(folder / WEIGHTS)
        with torch.device("meta"):
            net = DiT(card.model)
        denoiser = Denoiser(net.to_empty(device=device), process_from(card.process))
        load_strictly(denoiser, state)
        return cls(denoiser, card)

    def save_pretrained(self, path: str | Path, *, also: Callable[[Path], None] = lambda folder: None) -> None:
        """Write a checkpoint folder, whole or not at all; `also(folder)` may add files to it."""
        path = Path(path)
        if path.exists() and not (path / CARD).exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{str(path)!r} exists and is not a checkpoint; choose another place")
        with whole_folder(path) as folder:
            (folder / CARD).write_text(dump_yaml(self.card))
            write_safetensors(folder / WEIGHTS, self.denoiser.state_dict())
            also(folder)

    def labels(self, given: Sequence[int | str | None]) -> list[int]:
        """Class numbers from numbers or names, None where the network has no classes. UserError for one not known."""
        names, count = self.card.class_names, self.card.model.num_classes
        if count == 0:
            if any(label is not None for label in given):
                raise UserError("this network is unconditional: it takes no class labels")
            return [0] * len(given)
        found = []
        for label in given:
            number = names.index(label) if label in names else int(label) if str(label).isdecimal() else count
            if number >= count:
                known = f"0 to {count - 1}" + (f", or names such as {', '.join(names[:5])}" if names else "")
                near = "" if str(label).isdecimal() else did_you_mean(str(label), names)
                raise UserError(f"class label {label!r} is not known; allowed: {known}{near}")
            found.append(number)
        return found

    def class_name(self, label: int | None) -> str | None:
        """What a class is called, where it has a name."""
        return None if label is None or not self.card.class_names else self.card.class_names[label]

    @torch.no_grad()
    def steps(
        self,
        class_labels: Sequence[int | str | None],
        *,
        seed: int = 0,
        first: int = 0,
        config: SampleConfig | None = None,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Step]:
        """Sample one batch, a label each, step by step; its first sample is sample `first` of `seed`.

        `size`: height and width in pixels, the trained one unless given. Settings are the checkpoint's own unless
        `config` is given.
        """
        config, card = config or self.card.sample, self.card
        sampler, times, space = self.plan(config, size)
        labels, device = self.labels(class_labels), next(self.denoiser.parameters()).device
        count = len(labels)
        labels += labels[-1:] * (-count % ROWS)
        cond: Cond = {"label": torch.tensor(labels, device=device)} if card.model.num_classes else {}
        null: Cond = {name: torch.full_like(value, card.model.num_classes) for name, value in cond.items()}
        draws, path = Draws(seed, range(first, first + len(labels)), "sample"), self.denoiser.process.path
        sigma = max(1.0, path(times[:1]).sigma.item())  # unit noise, as in the originals; more on karras
        x = draws.normal(torch.empty(len(labels), card.model.channels, *space, device=device)) * sigma
        denoise = guided(
            self.denoiser,
            cond,
            null,
            config.guidance_scale,
            interval=config.guidance_interval,
            rescale=config.guidance_rescale,
            channels=config.guidance_channels,
        )
        if config.clip is not None:
            denoise = clipped(denoise, path, config.clip)
        for step in sampler(denoise, x, times, path, noise=draws.normal):
            yield Step(step.t, step.x[:count], step.x0[:count])

    def plan(
        self, config: SampleConfig, size: tuple[int, int] | None = None
    ) -> tuple[Sampler, Tensor, tuple[int, ...]]:
        """Sampler, times and latent size for some settings. UserError where they ask for what cannot be done."""
        model, size = self.card.model, size or self.card.image_size
        if config.guidance_scale != 1 and not model.num_classes:
            raise UserError("guidance needs a network with classes; this one is unconditional: use guidance_scale 1")
        if (config.guidance_channels or 0) > model.channels:
            raise UserError(f"guidance_channels must be at most {model.channels}; got {config.guidance_channels}")
        unit = [self.codec.factor * p for p in model.patch]
        if len(unit) != 2:
            raise UserError(f"pictures have 2 axes; the network's patch {model.patch} has {len(unit)}")
        if any(s < 1 or s % u for s, u in zip(size, unit, strict=True)):
            raise UserError(
                f"picture size {size[0]}x{size[1]} is not divisible by {unit[0]}x{unit[1]} (codec times patch); "
                "choose multiples of it"
            )
        space = tuple(s // self.codec.factor for s in size)
        sampler = lookup("sampler", config.sampler, SAMPLERS)
        return sampler, grid_for(self.denoiser.process, config.num_inference_steps), space

    def frames(self, class_labels: Sequence[int | str | None], **settings: Any) -> Iterator[Frame]:
        """Like `steps`, decoded to pictures."""
        for step in self.steps(class_labels, **settings):
            yield Frame(step.t.item(), self.codec.decode(step.x), self.codec.decode(step.x0))

    def __call__(
        self,
        class_labels: Sequence[int | str | None],
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        progress: Callable[[int], None] = lambda steps: None,
        **settings: Any,
    ) -> np.ndarray:
        """Sample a picture for each label: (N, H, W, C) uint8. Sample i of a seed is the same in any batch.

        `settings` are fields of SampleConfig, such as num_inference_steps, guidance_scale, sampler, batch_size; those
        not given are the checkpoint's. `progress(1)` is called after every step of every batch.
        """
        unknown = sorted(settings.keys() - SampleConfig.__dataclass_fields__.keys())
        if unknown:
            known = SampleConfig.__dataclass_fields__
            raise UserError(
                f"unknown setting {unknown[0]!r}; known: {', '.join(known)}{did_you_mean(unknown[0], known)}"
            )
        if not class_labels:
            raise UserError("nothing to sample: give one class label for each picture")
        config = replace(self.card.sample, **settings)
        pictures = []
        for start in range(0, len(class_labels), config.batch_size):
            part = class_labels[start : start + config.batch_size]
            for step in self.steps(part, seed=seed, first=start, config=config, size=size):
                x = step.x
                progress(1)
            pictures.append(self.codec.decode(x))
        return np.concatenate(pictures)


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a path means: itself, or the newest one of a run folder."""
    if (path / CARD).is_file():
        return path
    if not path.is_dir():
        raise UserError(f"there is no run or checkpoint folder {str(path)!r}")
    if not (found := checkpoints(path)):
        raise UserError(f"{str(path)!r} is neither a checkpoint ({CARD} is missing) nor a run that has saved one yet")
    return found[-1]
