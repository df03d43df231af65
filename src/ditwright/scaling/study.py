"""What a scaling study is, as plain data. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import differences, dump_yaml, merge, overrides, read_yaml, to_dict
from ..errors import UserError, lookup, unknown
from ..experiment import TrainConfig
from ..files import whole_file
from ..model.baseline import UNetConfig
from ..model.config import CONDITIONINGS, DiTConfig
from ..recipes import RECIPES

STUDY = "study.yaml"
# What a run is there for.
LADDER, CONDITIONING, UNET, TRANSFER, HELD_OUT = "ladder", "conditioning", "U-Net", "learning rate", "held out"
# What a study may be continued with: more runs of the same kind. Anything else would compare what is not alike.
MAY_GROW = ("widths", "patches", "steps", "tokens", "flops", "seeds", "held_out", "conditioning", "unets", "transfer")


@dataclass(frozen=True)
class HeldOut:
    """The network that is predicted from all the others, and trained last."""

    width: int
    patch: int
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Conditioning:
    """The network at which ways of conditioning are compared."""

    width: int
    patch: int
    kinds: tuple[str, ...] = tuple(CONDITIONINGS)  # the paper's four

    def __post_init__(self) -> None:
        for kind in self.kinds:
            lookup("conditioning", kind, CONDITIONINGS)


@dataclass(frozen=True)
class UNets:
    """U-Nets that are compared with the transformers at equal Gflops: one of each width, trained as long."""

    widths: tuple[int, ...]
    levels: tuple[int, ...] = (1, 2)
    depth: int = 2
    attention: int = 1
    head_width: int = 16
    groups: int = 8
    lr: float = 1e-3  # of all of them

    def model(self, width: int, like: DiTConfig) -> UNetConfig:
        """The network of a width, with the inputs and outputs of a transformer."""
        return UNetConfig(
            width,
            self.levels,
            self.depth,
            self.attention,
            self.head_width,
            self.groups,
            like.channels,
            like.out_channels,
            like.num_classes,
        )


@dataclass(frozen=True)
class Transfer:
    """Whether the best learning rate moves with the width: every width and rate, without muP and with it."""

    widths: tuple[int, ...]
    patch: int
    steps: int
    factors: tuple[float, ...]  # on the study's rate
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.widths or len(self.factors) < 2 or min(self.factors) <= 0 or self.steps < 1 or not self.seeds:
            raise UserError("transfer needs a width, a seed, two factors above 0 and a step, or more of each")


@dataclass(frozen=True)
class Study:
    """Every width with every patch, each with every seed and for each length; the rest is the same for all.

    Width is the dial: depth, heads and learning rate follow from it. Lengths are given in optimizer steps (equal for
    all networks, as in the paper), in tokens seen, or in training FLOPs (networks of equal compute), or in several.
    """

    recipe: str  # a name in RECIPES; its network's width, depth, heads, patch and learning rate are replaced
    widths: tuple[int, ...]
    patches: tuple[int, ...]
    steps: tuple[int, ...] = ()
    tokens: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    held_out: HeldOut | None = None
    conditioning: Conditioning | None = None
    unets: UNets | None = None
    transfer: Transfer | None = None
    block_width: int = 32  # width of a block of depth: depth is width / block_width, rounded
    head_width: int = 32  # channels of a head
    lr: float = 3e-3  # at the width lr_width
    lr_width: int = 192
    lr_power: float = 0.0  # learning rate ~ width^-lr_power
    mup: bool = False  # rates and first weights follow muP from lr_width to other widths
    batch_size: int = 128
    precision: str = "auto"  # of every run; auto is settled once, when the first run starts
    options: tuple[str, ...] = ()  # more of the recipe's keys, as "optim.ema=0.99"
    samples: int = 1000  # of each finished network, for the Frechet distance; 0: none
    sample_seed: int = 0  # the same noise for every network
    extractor: str = "judge"  # whose features are compared: a judge trained on the reference, or as `ditwright eval`
    reference: str = ""  # pictures that samples are compared with: a source of data; "": the training data
    judge_seed: int = 0

    def __post_init__(self) -> None:
        lookup("recipe", self.recipe, RECIPES)
        for name in ("widths", "patches", "seeds"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"{name} needs one value or more, none of them twice; got {getattr(self, name)}")
        lengths = self.steps + self.tokens + self.flops
        if not lengths or min(lengths) <= 0:
            raise UserError("a study needs a length above 0: steps, tokens seen or training flops")
        if min(self.block_width, self.head_width, self.lr_width, self.batch_size) < 1 or self.lr <= 0:
            raise UserError("block_width, head_width, lr_width and batch_size must be at least 1, lr above 0")
        for width in (*self.widths, *(part.width for part in (self.held_out, self.conditioning) if part)):
            if width < 1 or width % self.head_width:
                raise UserError(f"widths must be multiples of head_width {self.head_width}; got {width}")
        if self.held_out and self.held_out.width in self.widths and self.held_out.patch in self.patches:
            raise UserError(
                f"the held-out network (width {self.held_out.width}, patch {self.held_out.patch}) is in the ladder "
                "too; leave it out of one of them"
            )
        if self.samples < 0 or self.samples == 1:
            raise UserError(f"samples must be 2 or more, or 0 for none; got {self.samples}")

        for width in self.transfer.widths if self.transfer else ():
            if width % self.head_width:
                raise UserError(f"widths of transfer must be multiples of head_width {self.head_width}; got {width}")
        if self.mup and self.lr_power:
            raise UserError("lr_power is a rule of its own; with mup the rates follow the width by themselves")
        if (self.mup or self.transfer) and self.lr_width % self.head_width:
            raise UserError(f"with mup, lr_width must be a multiple of head_width {self.head_width}")

    def depth(self, width: int) -> int:
        """Blocks of a network."""
        return max(1, int(width / self.block_width + 0.5))

    def rate(self, width: int) -> float:
        """Learning rate of a network."""
        return float(f"{self.lr * (self.lr_width / width) ** self.lr_power:.4g}")

    def base(self) -> TrainConfig:
        """What all runs have in common. UserError for options that the recipe does not know."""
        for option in self.options:
            if "=" not in option:
                raise UserError(f"options look like optim.ema=0.99; got {option!r}")
        config = merge(RECIPES[self.recipe](), overrides([f"--{option}" for option in self.options]))
        given = {"data": {"batch_size": self.batch_size}, "precision": self.precision}
        return merge(config, given)


def digits() -> Study:
    """Handwriting at its own 8 x 8 pixels: five widths, three patches, two seeds, and a network four times as costly.

    A constant learning rate, so that every point of a training curve is the end of a shorter run.
    """
    return Study(
        recipe="digits",
        widths=(32, 48, 64, 96, 128),
        patches=(1, 2, 4),
        steps=(600,),
        seeds=(0, 1),
        held_out=HeldOut(width=192, patch=1),
        conditioning=Conditioning(width=96, patch=2),
        head_width=16,
        unets=UNets(widths=(16, 32, 48), lr=3e-3),
        transfer=Transfer(widths=(32, 64, 128, 192), patch=4, steps=300, factors=(0.25, 0.5, 1.0, 2.0, 4.0)),
        lr=8e-3,
        lr_width=64,
        mup=True,
        options=(
            "data.source=digits-train",
            "data.validation=digits-held-out",
            "data.validation_size=360",
            "optim.schedule=constant",
            "optim.warmup=20",
            "log.every=20",
            "log.evaluate_every=40",
            "log.preview_every=0",
            "log.checkpoint_every=200",
            "log.keep=1",
            "sample.num_inference_steps=12",
        ),
    )


STUDIES = {"digits": digits}


def named(width: int, patch: int, conditioning: str = "") -> str:
    """What a network of a study is called; its way of conditioning is told where it is not the recipe's."""
    return f"w{width}-p{patch}" + (f"-{conditioning}" if conditioning else "")


def find_study(name: str) -> tuple[Study, str]:
    """A study of STUDIES, of a YAML file or of a study folder; and what to call it."""
    path = Path(name).expanduser()
    if name in STUDIES:
        return STUDIES[name](), name
    if path.is_dir():
        return read_study(path), path.name
    if path.suffix in (".yaml", ".yml") or path.exists():
        return read_yaml(Study, path), path.stem
    raise unknown("study", name, STUDIES)


def read_study(folder: Path) -> Study:
    """The study that a folder holds."""
    if not (folder / STUDY).exists():
        raise UserError(f"{str(folder)!r} holds no study ({STUDY} is missing); `ditwright scale run` makes one")
    return read_yaml(Study, folder / STUDY)


def changed(study: Study, words: list[str]) -> Study:
    """With dotted options: keys of the study, and under `train.` those of every run."""
    tree = overrides(words)
    train = tree.pop("train", {})
    if not isinstance(train, dict):
        raise UserError("--train needs the key of a run, as in --train.optim.ema 0.99")
    study = merge(study, tree)
    options = dict(option.split("=", 1) for option in study.options if "=" in option) | dict(_flat(train))
    return replace(study, options=tuple(f"{key}={value}" for key, value in options.items())) if train else study


def _flat(tree: dict[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def settle(study: Study, folder: Path, precision: Callable[[], str]) -> Study:
    """The study as it will run, kept in its folder. UserError where that holds another one.

    `precision()` is what "auto" means on this machine, asked where the folder does not say yet.
    """
    path = folder / STUDY
    there = read_yaml(Study, path) if path.exists() else None
    if study.precision == "auto":
        study = replace(study, precision=there.precision if there else precision())
    if there:
        for key, (old, new) in differences(_fixed(there, study), _fixed(study, there)).items():
            raise UserError(
                f"{str(folder)!r} holds another study: {key} is {old} there and {new} now; choose another --output"
            )
    with whole_file(path) as half:
        half.write_text(dump_yaml(study))
    return study


def _fixed(study: Study, other: Study) -> dict[str, Any]:
    """What must stay as it is: all but the list of runs, and what they write as they go."""
    plain = {key: value for key, value in to_dict(study).items() if key not in MAY_GROW}
    for part, lists in (("unets", ("widths",)), ("transfer", ("widths", "factors", "seeds"))):
        if getattr(study, part) and getattr(other, part):  # either may still be added
            plain[part] = {key: value for key, value in to_dict(getattr(study, part)).items() if key not in lists}
    return plain | {
        "options": [option for option in study.options if not option.startswith(("log.", "data.prefetch="))]
    }
