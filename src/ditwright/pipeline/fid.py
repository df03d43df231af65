"""Sets of samples to be judged by FID, in ADM's format: any number of processes draw one, and go on after a kill.

OUTPUT/samples_N.npz     arr_0, (N, H, W, C) uint8
OUTPUT/samples_N.json    the settings that made it
OUTPUT/samples_N.txt     the prompt of each, a line each, where the network hears text
OUTPUT/parts/            settings.json and a .npy file of each chunk, until all are there

Sample i of a set, its class included, follows from (seed, i), and chunks from their number: the set is the same, byte
for byte, whatever the number of processes and of stops. Of M prompts sample i hears number i modulo M.
N samples, H height, W width, C channels.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import differences, parse_json, to_dict
from ..data.prompts import SOURCE, Prompts, beside, write_lines
from ..diffusion.config import SampleConfig
from ..errors import UserError
from ..files import whole_file
from ..model.weights import digest
from ..rng import generator
from .asks import hears_text
from .pipeline import Pipeline


@dataclass(frozen=True)
class Order:
    """A set that is wanted. Its chunks are of `config.batch_size`."""

    pipe: Pipeline
    output: Path
    count: int
    config: SampleConfig
    seed: int = 0
    size: tuple[int, int] | None = None  # height, width in pixels; as trained unless given
    origin: dict[str, Any] = field(default_factory=dict)  # where the checkpoint lies, for people
    prompts: Prompts | None = None  # where the network hears text
    drawn_by: Pipeline | None = None  # the same laid out for sampling, as `origin` says; `pipe` unless given

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"a set of samples needs at least 1 of them; got {self.count}")
        self.pipe.plan(self.config, self.size)
        if self.config.true_cfg_scale != 1:
            raise UserError("true_cfg_scale needs a negative prompt, which no set of samples has; give 1")
        hears = hears_text(self.pipe.card.model)
        if hears and self.prompts is None:
            raise UserError(f"captions are missing, for this network hears text; give --captions SOURCE: {SOURCE}")
        if not hears and self.prompts is not None:
            raise UserError("captions are for networks that hear text; the samples of this one are of its classes")
        self.pipe.codec.ready()  # what is missing is better known before the work
        if hears:
            self.pipe.asks([""])

    @property
    def chunks(self) -> list[range]:
        """The samples of each chunk."""
        size = self.config.batch_size
        return [range(i, min(i + size, self.count)) for i in range(0, self.count, size)]

    @property
    def npz(self) -> Path:
        """The set itself."""
        return self.output / f"samples_{self.count}.npz"

    @property
    def parts(self) -> Path:
        """The folder of chunks."""
        return self.output / "parts"

    def part(self, number: int) -> Path:
        """The file of a chunk."""
        return self.parts / f"{number:06d}.npy"

    def asked(self, chunk: range) -> Sequence[int | str | None]:
        """Every sample's prompt, or its class, all alike probable, as in the papers."""
        if self.prompts is not None:
            return self.prompts.of(chunk)
        classes = self.pipe.card.model.num_classes
        return [int(generator(self.seed, i, "label").integers(classes)) if classes else None for i in chunk]

    def settings(self) -> dict[str, Any]:
        """All that the set depends on."""
        card = self.pipe.card
        return {
            **self.origin,
            "num_samples": self.count,
            "seed": self.seed,
            "size": list(self.size or card.image_size or ()),
            **to_dict(self.config),
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
            "weights": digest(self.pipe.denoiser.state_dict()),
            "codec": to_dict(card.codec),
            **self.heard(),
        }

    def heard(self) -> dict[str, Any]:
        """What it depends on besides, where the network hears text: prompts, by their digest, and their encoder."""
        encoder = self.pipe.encoder
        if self.prompts is None or encoder is None:
            return {}
        texts = json.dumps(self.prompts.of(range(self.count)))
        made = {key: value for key, value in to_dict(encoder.config).items() if key not in ("source", "revision")}
        return {
            "captions": self.prompts.source,
            "prompts": hashlib.sha256(texts.encode()).hexdigest(),
            "text": {**made, "fingerprint": encoder.config.fingerprint or encoder.fingerprint},
        }


def draw_set(
    order: Order, rank: int = 0, world: int = 1, *, progress: Callable[[int], None] = lambda done: None
) -> Path | None:
    """Draw the chunks of process `rank` of `world`; whoever finds all of them there puts the set together.

    Returns its path to one of the processes, None to the others. `progress(n)`: so many samples are there, of all of
    them. UserError where the folder holds a set of other settings, naming the difference.
    """
    order.output.mkdir(parents=True, exist_ok=True)
    settings = order.settings()
    with locked(order.output):
        done = settle(order, settings)
    if done:
        return None if rank else sound(order.npz)
    progress(there(order))
    for number, chunk in enumerate(order.chunks):
        if number % world == rank and not is_whole(order.part(number), len(chunk)):
            images = (order.drawn_by or order.pipe).draw(
                order.asked(chunk), seed=order.seed, first=chunk.start, size=order.size, **asdict(order.config)
            )
            keep(images, order.part(number))
            progress(there(order))
    with locked(order.output):
        if order.npz.exists() or there(order) < order.count:
            return None  # another process was last, or will be
        assemble(order, settings)
    return order.npz


def settle(order: Order, settings: dict[str, Any]) -> bool:
    """Whether the set is there already; if not, its parts can be drawn. UserError where it is another one."""
    noted = order.parts / "settings.json"
    if order.npz.exists():
        agree(order.npz.with_suffix(".json"), settings)
        if noted.exists() and noted_in(noted) == settings:
            discard(order.parts)  # which a kill left
        return True
    if noted.exists() or (order.parts.exists() and any(order.parts.iterdir())):
        agree(noted, settings)
        return False
    order.parts.mkdir(exist_ok=True)
    with whole_file(noted) as half:
        half.write_text(json.dumps(settings, indent=1))
    return False


def agree(path: Path, settings: dict[str, Any]) -> None:
    """UserError, naming the first difference, where a set was begun with other settings. It may have moved."""
    if isinstance(begun := noted_in(path), str):
        raise UserError(f"{str(path)!r} is missing or damaged ({begun}); choose another --output")
    known = settings["codec"]["fingerprint"]  # by which weights are the same wherever they lie, as the network's are
    may_move = ("checkpoint", "captions", "text_encoder", *(("codec.source", "codec.revision") if known else ()))
    usual = to_dict(SampleConfig())  # settings that older sets do not tell of
    for key, (old, new) in differences(usual | begun, usual | settings).items():
        if key not in may_move:
            raise UserError(
                f"{str(path.parent)!r} holds samples of other settings: {key} is {old} there and {new} now; "
                "choose another --output, or those settings"
            )


def noted_in(path: Path) -> dict[str, Any] | str:
    """The settings in a file; or why there are none."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        return str(error)
    return found if isinstance(found, dict) else "it holds no settings"


def there(order: Order) -> int:
    """How many samples are drawn, by all processes."""
    names = {path.name for path in order.parts.glob("*.npy")}
    return sum(len(chunk) for number, chunk in enumerate(order.chunks) if order.part(number).name in names)


def keep(images: np.ndarray, path: Path) -> None:
    """Write a part whole. An earlier run's process may still be alive and at the same one: each writes its own file."""
    own = path.with_suffix(f".{os.getpid()}")
    with whole_file(own) as half, open(half, "wb") as file:
        np.lib.format.write_array(file, images, allow_pickle=False)
    os.replace(own, path)


def opened(path: Path) -> np.ndarray:
    """The samples of a part, on the disk."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); the same command draws it again") from error


def is_whole(path: Path, count: int) -> bool:
    """Whether a part is there with all its samples; a damaged one is drawn again."""
    try:
        return len(opened(path)) == count
    except UserError:
        return False


def assemble(order: Order, settings: dict[str, Any]) -> None:
    """Write the set from its parts, one at a time, and remove them. The same parts always make the same bytes."""
    shape = (order.count, *opened(order.part(0)).shape[1:])
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with whole_file(order.npz.with_suffix(".json")) as half:
        half.write_text(json.dumps(settings, indent=1))
    if order.prompts is not None:
        write_lines(beside(order.npz), order.prompts.of(range(order.count)))
    entry = zipfile.ZipInfo("arr_0.npy")  # dated 1980, and so always the same
    with (
        whole_file(order.npz) as half,
        zipfile.ZipFile(half, "w") as archive,
        archive.open(entry, "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(len(order.chunks)):
            file.write(opened(order.part(number)).tobytes())
    discard(order.parts)


def sound(npz: Path) -> Path:
    """A set that is there, read to its end. UserError where it is not as it was written, by its own checksums."""
    try:
        with zipfile.ZipFile(npz) as archive:
            damaged = archive.testzip()
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        damaged = str(error)
    if damaged:
        raise UserError(f"{str(npz)!r} is damaged ({damaged}); remove it, and the same command draws it again")
    return npz


def discard(parts: Path) -> None:
    """Remove the parts, at once for those who look: a kill leaves no half of them."""
    old = parts.with_name(".parts.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(parts, old)
    shutil.rmtree(old)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes for a moment."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def place() -> tuple[int, int]:
    """Which process this is, and of how many, as torchrun says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
