"""ditwright convert IN OUT --to FAMILY: weights from and for other projects."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import UserError, unknown
from .main import Parser

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline import Pipeline

CLASSES = ("dit", "sit", "lightningdit", "diffusers")
TEXT = ("pixart", "pixart-diffusers", "sd3", "sd3-diffusers", "flux", "flux-diffusers")
KINDS = ("ditwright", *CLASSES, *TEXT)


def run(words: list[str]) -> int:
    parser = Parser(
        prog="ditwright convert",
        usage="ditwright convert IN OUT --to FAMILY [options]",
        description="Weights from and for other projects. Keys, shapes and process are checked to the last one.",
    )
    add = parser.add_argument
    add("source", metavar="IN", help="run or checkpoint folder, another project's file or folder, or a name on the hub")
    add("output", metavar="OUT", type=Path, help="ditwright, ...diffusers: a folder; else a .pt or .safetensors file")
    add("--to", required=True, metavar="FAMILY", help=", ".join(KINDS))
    add("--family", metavar="NAME", help="of IN, where neither its keys nor its name tell dit from sit")
    add("--heads", type=int, metavar="N", help="of IN, where the width is none of the papers'")
    add("--codec", metavar="NAME", default="", help="folder or hub name of the autoencoder; none: leave it out")
    add("--pad-classes", action="store_true", help="move the null class to 1000, where stock DiTPipeline looks for it")
    args = parser.parse_args(words)
    if args.to not in KINDS:
        raise unknown("family", args.to, KINDS)
    if args.pad_classes and args.to != "diffusers":
        raise UserError("--pad-classes is for --to diffusers")

    from ..convert import check_place
    from ..pipeline import Pipeline

    if args.to != "ditwright":
        check_place(args.output, args.to)  # before anything is read
    codec = "" if args.codec == "none" else args.codec
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe = Pipeline.from_pretrained(args.source, family=args.family, heads=args.heads, codec=codec)
        pixart = pipe.card.text.kind == "t5"  # whose own files have a null caption
        null = null_of(args.source, args.family, args.heads) if pixart or args.to in TEXT else {}
        notes = save(pipe, args.output, args.to, with_codec=args.codec != "none", pad=args.pad_classes, null=null)
    for note in [*(str(warning.message) for warning in caught), *notes]:
        print(f"note: {note}")
    print(f"{args.source} as {args.to}: {args.output}")
    return 0


def null_of(name: str, family: str | None, heads: int | None) -> dict[str, Tensor]:
    """The conditions that stand for none, where another project's file has some (PixArt's null caption)."""
    from ..convert import read
    from ..pipeline.folder import is_foreign

    path = Path(name).expanduser()
    return dict(read(path, family=family, heads=heads).null) if path.exists() and is_foreign(path) else {}


def save(
    pipe: Pipeline,
    output: Path,
    to: str,
    *,
    with_codec: bool,
    pad: bool = False,
    null: Mapping[str, Tensor] = MappingProxyType({}),
) -> list[str]:
    """Write a pipeline as a family's own files; notes, a line each. `null`: conditions that stand for none."""
    from ..convert import Portable, pad_classes, write
    from ..convert.pixart import NULL

    card = pipe.card
    with_codec = with_codec and bool(card.codec.source)

    def add_codec(folder: Path) -> None:
        if with_codec:
            (folder / "vae").mkdir()
            pipe.codec.save(folder / "vae")

    try:
        if to == "ditwright":
            pipe.save_pretrained(output, with_codec=with_codec)
            left = f"a checkpoint has no place for the null caption ({NULL}): guidance leads away from an empty text"
            return [left] if null else []
        portable = Portable(
            model=card.model,
            process=card.process,
            state=pipe.denoiser.net.state_dict(),
            sample=card.sample,
            image_size=card.image_size,
            class_names=card.class_names,
            factor=card.codec.factor,
            null=dict(null),
        )
        return write(pad_classes(portable) if pad else portable, output, to=to, also=add_codec)
    except UserError as error:
        advice = "; --codec none leaves it out" if "codec" in str(error) and with_codec else ""
        raise UserError(f"{error}{advice}") from error
