"""Tiny text encoders with random weights and tokenizers learnt here, for several test files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CAPTIONS = [
    f"a {size} {colour} {shape} {side} of a tree"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square", "cross")
    for side in ("left", "right")
]


def write(net, folder: Path) -> Path:
    """As save_pretrained does, without its bar."""
    folder.mkdir(parents=True, exist_ok=True)
    net.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [type(net).__name__]}))
    state = {name: tensor.contiguous().clone() for name, tensor in net.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def clip(transformers, seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape |= {"vocab_size": 420, "max_position_embeddings": 77, "projection_dim": 12}
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    projected = changes.pop("projected", True)
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return cls(transformers.CLIPTextConfig(**shape | marks | changes))


def t5(transformers, **changes):
    shape = {"vocab_size": 420, "d_model": 40, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(**shape | {"feed_forward_proj": "gated-gelu"} | changes))


def llama(transformers):
    shape = {"vocab_size": 420, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, num_attention_heads=2))


def bert(transformers):
    shape = {"vocab_size": 420, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return transformers.BertModel(transformers.BertConfig(**shape, num_attention_heads=2, max_position_embeddings=90))


def bpe(begin: str, end: str, pad: str, lower: bool):
    """A tokenizer of the tokenizers package, learnt from the captions."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    found = tokenizers.Tokenizer(models.BPE(unk_token=None))
    if lower:
        found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = list(dict.fromkeys(name for name in (pad, begin, end) if name))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(CAPTIONS, trainer)
    marks = [(name, found.token_to_id(name)) for name in (begin, end) if name]
    found.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}".strip(), special_tokens=marks)
    return found


def fast(transformers, begin: str, end: str, pad: str, folder: Path, **options):
    given = {"bos_token": begin or None, "eos_token": end or None, "pad_token": pad or None, "unk_token": None}
    backend = bpe(begin, end, pad, lower=bool(begin))  # as CLIP's and BERT's, not as T5's
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=77, **given | options)
    made.save_pretrained(folder)
