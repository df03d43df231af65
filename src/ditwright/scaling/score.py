"""Samples of a finished run against real pictures: the same noise, labels and judge for every network.

STUDY/judge.safetensors   where the extractor is a judge: what learned the reference's classes
STUDY/reference.npz       mean and covariance of the reference's features
STUDY/reference.json      what they were made from, and how far held-out real pictures are from them
STUDY/RUN/scores.json     what a finished run came to
STUDY/RUN/samples.png     its first samples, pixel for pixel

N samples, H height, W width, C channels, D features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.base import Dataset
from ..data.sources import open_dataset
from ..errors import UserError
from ..experiment import TrainConfig
from ..files import whole_file
from ..metrics.bootstrap import interval
from ..metrics.extractors import extractor_from
from ..metrics.features import Extractor, frechet_name
from ..metrics.frechet import frechet, linearised
from ..metrics.judge import Judge, learn_judge, load_judge
from ..metrics.npz import Reference, read_reference, write_reference
from ..metrics.statistics import Gaussian, Moments
from ..pictures import save_png, to_pil
from ..pipeline import Pipeline
from ..run import largest
from ..train.state import read_facts
from .plan import Run
from .study import TRANSFER, Study

JUDGE, REFERENCE, FACTS = "judge.safetensors", "reference.npz", "reference.json"
SCORES, PICTURES = "scores.json", "samples.png"
SHOWN, COLUMNS = 20, 10  # samples in the picture, and how many beside each other
BATCH, ROUNDS = 256, 1000


@dataclass(frozen=True)
class Referee:
    """What samples are compared with, and by whose features."""

    extractor: Extractor
    reference: Gaussian


def referee_of(study: Study, folder: Path, device: torch.device) -> Referee | None:
    """The study's own, made where its folder has none yet; None where no samples are asked for."""
    if not study.samples:
        return None
    config = study.base()
    if study.extractor == "judge":
        if not (folder / JUDGE).exists():
            data, name = reference_of(study, config)
            judge = learn_judge(*whole(data), dataset=name, seed=study.judge_seed, device=device)
            judge.save(folder / JUDGE)
        extractor: Extractor = load_judge(folder / JUDGE, device)
    else:
        extractor = extractor_from(study.extractor, device)
    if study.reference.endswith(".npz"):
        return Referee(extractor, read_reference(study.reference).pool)
    if not (folder / FACTS).exists():
        measure(study, config, folder, extractor)
    return Referee(extractor, read_reference(folder / REFERENCE).pool)


def measure(study: Study, config: TrainConfig, folder: Path, extractor: Extractor) -> None:
    """Write the reference's statistics, and the distance at which real pictures lie that nobody trained on."""
    data, name = reference_of(study, config)
    moments = Moments(extractor.feature_size, extractor.name)
    for images, _ in batches(data):
        moments.update(extractor(images).pool)
    reference = moments.gaussian()
    facts: dict[str, Any] = {"extractor": extractor.name, "reference": name, "pictures": moments.count}
    held_out = open_dataset(config.data.validation, config.data.image_size)
    if held_out.codec is None:
        features = np.concatenate([extractor(images).pool for images, _ in batches(held_out)])
        facts |= {"held_out": config.data.validation, "held_out_pictures": len(features)}
        facts |= {"held_out_frechet": distance(reference, features, extractor.name)}
        if isinstance(extractor, Judge):
            facts["judge_accuracy"] = extractor.accuracy(*whole(held_out))  # on pictures that it never saw
    write_reference(folder / REFERENCE, Reference(reference, None))
    write_json(folder / FACTS, facts)


def distance(reference: Gaussian, features: np.ndarray, extractor: str) -> dict[str, Any]:
    """The Frechet distance of features (N, D), and its bootstrap interval over the samples."""
    moments = Moments(features.shape[1], extractor)
    moments.update(features)
    parts = linearised(reference, features, extractor)
    low, high = interval(lambda drawn: parts[drawn].mean(), len(parts), rounds=ROUNDS)
    return {"value": frechet(reference, moments.gaussian()), "interval": [low, high]}


def score(
    run: Run, study: Study, referee: Referee | None, output: Path, checkpoint: Path, device: torch.device
) -> None:
    """Write what a finished run came to; of most, after drawing samples."""
    model = run.config.model
    facts: dict[str, Any] = {
        "network": run.network,
        "role": run.role,
        "width": model.width,
        "depth": model.depth,
        "patch": model.patch[0],
        "conditioning": run.kind,
        "seed": run.config.seed,
        "steps": run.config.steps,
        "samples_trained": run.trained,
        "learning_rate": run.config.optim.lr,
        "mup_width": run.config.optim.mup_width,
        "schedule": run.config.optim.schedule,
        "parameters": run.parameters,
        "macs": run.macs,
        "tokens": run.tokens,
        "training_flops": run.flops,
        "seconds": round(read_facts(checkpoint)["seconds"], 1),
    }
    if referee and run.role != TRANSFER:
        pipe = Pipeline.from_pretrained(checkpoint, device=device)
        facts["frechet"], shown = compared(pipe, study, referee)
        save_png(to_pil(tiled(shown)), output / PICTURES)
    write_json(output / SCORES, facts)


def compared(pipe: Pipeline, study: Study, referee: Referee) -> tuple[dict[str, Any], list[np.ndarray]]:
    """How far a network's samples are from the reference; and the first of them, (H, W, C) each."""
    classes, chunk = pipe.card.model.num_classes, pipe.card.sample.batch_size
    shown, features, right = list[np.ndarray](), [], 0
    for start in range(0, study.samples, chunk):
        numbers = range(start, min(start + chunk, study.samples))
        labels = [number % classes if classes else None for number in numbers]
        images = pipe.draw(labels, seed=study.sample_seed, first=start, guidance_scale=1.0)
        shown += list(images[: max(0, SHOWN - len(shown))])
        found = referee.extractor(images)
        features.append(found.pool)
        if isinstance(referee.extractor, Judge) and found.probabilities is not None:
            told = np.array(referee.extractor.facts.classes)[found.probabilities.argmax(1)]
            right += int((told == labels).sum())
    facts = {
        "name": frechet_name(referee.extractor.name),
        "extractor": referee.extractor.name,
        **distance(referee.reference, np.concatenate(features), referee.extractor.name),
        "samples": study.samples,
        "sample_seed": study.sample_seed,
        "sampler": pipe.card.sample.sampler,
        "num_inference_steps": pipe.card.sample.num_inference_steps,
        "guidance_scale": 1.0,
    }
    if isinstance(referee.extractor, Judge):
        facts["recognised"] = right / study.samples  # as the class that was asked for
    return facts, shown


def tiled(images: list[np.ndarray]) -> np.ndarray:
    """Images (H, W, C), pixel for pixel in rows of COLUMNS, the last row filled up with black."""
    blank = np.zeros_like(images[0])
    rows = [images[i : i + COLUMNS] for i in range(0, len(images), COLUMNS)]
    columns = len(rows[0])
    return np.concatenate([np.concatenate([*row, *[blank] * (columns - len(row))], 1) for row in rows])


def reference_of(study: Study, config: TrainConfig) -> tuple[Dataset, str]:
    """The pictures that samples are compared with, and their name."""
    name = study.reference or config.data.source
    data = open_dataset(name, config.data.image_size)
    if data.codec is not None:
        raise UserError(f"{name!r} holds prepared latents; name pictures to compare samples with, as in --reference")
    return data, name


def batches(data: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pictures of a data set's largest group (B, H, W, C), with their labels (B,)."""
    items = largest(data).items
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        yield data.read(some, np.zeros(len(some), bool)), data.labels(some)


def whole(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """All of them at once."""
    images, labels = zip(*batches(data), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Facts as a file, whole or not at all."""
    with whole_file(path) as half:
        half.write_text(json.dumps(facts, indent=1) + "\n")
