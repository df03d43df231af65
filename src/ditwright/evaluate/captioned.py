"""Pictures together with the prompts that they were drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..config import parse_json
from ..data.images import Unreadable, open_rgb, read_file
from ..data.prompts import SOURCE, beside, captions_of, lines, prompts_from
from ..data.sources import SOURCES, open_dataset
from ..errors import UserError
from .pictures import Images, images_from

DRAWN = "seed*-?????.png"  # as ditwright sample names a picture of a prompt


def captioned(name: str, source: str | None = None, size: int | None = None) -> tuple[Images, tuple[str, ...]]:
    """Pictures and a caption for each.

    name      an .npz of samples with its prompts beside it, a folder of what ditwright sample --prompt draws, or
              captioned pictures as `images_from` takes them
    source    where the captions of an .npz are instead, in the order of its samples
    size      side to which pictures of folders are cropped

    UserError where captions are missing, or not as many as the pictures.
    """
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        images = images_from(name, size)
        found, place = _of_npz(path, source, images.count)
    elif source is not None:
        raise UserError(f"--captions are for an .npz of samples; pictures of {name!r} have their own")
    elif name not in SOURCES and (pictures := sorted(path.glob(DRAWN))):
        images, found, place = _drawn(pictures, name)
    else:
        data, place = open_dataset(name, size), name
        images, found = images_from(name, size), captions_of(data, sum(len(group.items) for group in data.groups), name)
    if len(found) != images.count:
        raise UserError(f"{place!r} has {len(found)} prompts for {images.count} samples of {name!r}: give one each")
    return images, tuple(found)


def _of_npz(path: Path, source: str | None, count: int) -> tuple[tuple[str, ...], str]:
    if source is not None:
        return prompts_from(source, count).texts, source
    if not beside(path).is_file():
        raise UserError(
            f"the prompts of {str(path)!r} are missing: they lie beside it, in {beside(path).name!r}, where "
            f"ditwright sample --captions drew it; otherwise give --captions SOURCE: {SOURCE}"
        )
    return tuple(lines(beside(path))), str(beside(path))


def _drawn(paths: list[Path], name: str) -> tuple[Images, tuple[str, ...], str]:
    images, prompts = [], []
    for path in paths:
        try:
            images.append(np.asarray(open_rgb(read_file(path))))
        except Unreadable as error:
            raise UserError(f"{str(path)!r} {error}") from error
        if (prompt := _prompt_in(path)) is None:
            raise UserError(f"{str(path)!r} does not say its prompt; ditwright sample --prompt draws pictures that do")
        prompts.append(prompt)
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{name!r} holds pictures of several sizes; give a folder of one call of ditwright sample")
    return images_from(np.stack(images)), tuple(prompts), name


def _prompt_in(path: Path) -> str | None:
    """What a picture says that it was drawn from; None where it does not, or as another program has it."""
    with Image.open(path) as opened:
        told = opened.info.get("parameters")
    try:
        settings = parse_json(told) if isinstance(told, str) else None
    except ValueError:
        return None
    prompt = settings.get("prompt") if isinstance(settings, dict) else None
    return prompt if isinstance(prompt, str) else None
