"""What `train` and `train-codec` have in common: a recipe, files and dotted options make a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..codec.config import CodecConfig
from ..config import dump_yaml, load_yaml, merge, overrides, to_dict
from ..errors import UserError, lookup, unknown
from ..experiment import TrainConfig
from ..model.baseline import NetConfig
from .main import Parser

INIT = "init"  # in place of a network's name: that of the checkpoint which the run starts from

EPILOG = """
Any key of the configuration can be set after these, as --dotted.key VALUE:
  {example}
--print-config shows every key with its value. The order of precedence: recipe, --config files, options.
The same command run again goes on where the run stopped.{more}
"""


def asked(
    words: list[str],
    recipes: Mapping[str, Callable[[], Any]],
    *,
    verb: str,
    what: str,
    example: str,
    folder: str = "runs/RECIPE",
    more: str = "",
    networks: Mapping[str, NetConfig] | None = None,
) -> tuple[Any, Path] | None:
    """The configuration and the run folder that some words ask for; None where they ask only to see it printed.

    `folder`: where runs lie unless told, RECIPE standing for the recipe's name. `networks`: those that a name stands
    for, where a network is trained.
    """
    parser = Parser(
        prog=f"ditwright {verb}",
        usage=f"ditwright {verb} RECIPE [options] [--dotted.key VALUE ...]",
        description=what,
        epilog=EPILOG.format(example=example, more=more),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help=f"one of: {', '.join(recipes)}")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"run folder (default: {folder})")
    if networks is not None:
        what = f"a name of `ditwright info`, or {INIT}: as the checkpoint of --init has it; --model.KEY changes it"
        parser.add_argument("--model", metavar="NAME", help=what)
    parser.add_argument("--steps", metavar="N", help="steps in all")
    parser.add_argument("--seed", metavar="S", help="of all that is drawn: weights, order, noise")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", action="append", default=[], help="keys to change")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")
    args, rest = parser.parse_known_args(words)
    given = {key: getattr(args, key, None) for key in ("steps", "seed", "model")}
    named = {key: value for key, value in given.items() if value is not None}
    output = args.output or Path(folder.replace("RECIPE", args.recipe))
    recipe = lookup("recipe", args.recipe, recipes)()
    config = configured(recipe, [*map(load_yaml, args.config), named, overrides(rest)], networks or {}, output)
    if args.print_config:
        print(dump_yaml(config), end="")
        return None
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {str(output)!r} is a file; name a folder")
    return config, output


@dataclass(frozen=True)
class Network:
    """A network of either kind, as `merge` reads it."""

    model: NetConfig


def configured(
    recipe: Any, layers: Sequence[Mapping[str, Any]], networks: Mapping[str, NetConfig], output: Path
) -> Any:
    """A recipe with layers of keys over it, the last one above all.

    Where a layer has a name for the network, that takes the place of all its keys below.
    """
    names = [number for number, layer in enumerate(layers) if networks and isinstance(layer.get("model"), str)]
    if not names:
        for layer in layers:
            recipe = merge(recipe, layer)
        return recipe
    name = layers[names[-1]]["model"]
    if name == INIT:
        place = next((layer["init"] for layer in reversed(layers) if "init" in layer), recipe.init)
        recipe = as_its_start(recipe, place, output)
    elif name not in networks:
        raise unknown("model", name, [INIT, *networks])
    network = Network(recipe.model if name == INIT else networks[name])
    for layer in layers[names[-1] + 1 :]:
        network = merge(network, {key: value for key, value in layer.items() if key == "model"})
    tree: Mapping[str, Any] = {}
    for layer in layers:
        tree = over(tree, {key: value for key, value in layer.items() if key != "model"})
    return merge(recipe, {**tree, "model": to_dict(network.model)})  # as a whole: a part alone may fit nothing


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two layers of keys as one."""
    groups = {key for key in above if isinstance(above[key], Mapping) and isinstance(below.get(key), Mapping)}
    return {**below, **above, **{key: over(below[key], above[key]) for key in groups}}


def as_its_start(recipe: TrainConfig, place: str, output: Path) -> TrainConfig:
    """A recipe with the network of the checkpoint at a place, and with all that makes sense with that network alone.

    That is its process, how it is sampled, and its text encoder; the codec is left to the data, but for pixels. A run
    that `output` holds goes on with what it has, and the place is not read again. UserError without a place.
    """
    if not place or not isinstance(place, str):
        raise UserError(f"model {INIT} is the network of the checkpoint that --init names: give --init PLACE")

    from ..pipeline.card import TEXT
    from ..pipeline.start import card_of
    from ..train.folder import read_config
    from ..train.state import checkpoints

    saved = checkpoints(output)
    kept = read_config(TrainConfig, output / "config.yaml", saved[-1])[0] if saved else None
    there = card_of(place) if kept is None or kept.init != place else kept
    text = there.text
    if there is kept and text.kind == "bytes" and not Path(text.source).is_dir():
        text = replace(text, source=str(saved[-1] / TEXT))
    if text.kind == recipe.text.kind:  # its length is the recipe's
        text = replace(recipe.text, source=text.source, revision=text.revision, fingerprint=text.fingerprint)
    return replace(
        recipe,
        model=there.model,
        process=there.process,
        sample=there.sample,
        codec=there.codec if there.codec.kind == "pixels" else CodecConfig(),
        text=text,
    )
