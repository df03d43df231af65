"""One frozen network of the transformers package as a text encoder: CLIP, T5, a causal model, a sentence encoder.

B batch, M tokens, E width of the states, P width of the pooled state.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.process import Cond
from ..dtypes import DTYPES
from ..errors import UserError
from .config import TextConfig
from .folder import (
    class_of,
    fingerprint,
    inside,
    is_projected,
    locate,
    most_tokens,
    packaged,
    read_net,
    read_shape,
    read_tokenizer,
)
from .tokenizer import Prompt, checked, fit

AT_ONCE = 64  # prompts that a GPU encodes together; a CPU takes one at a time, so that none depends on its batch


class Frozen:
    """States of one network's layer. Weights are read when they are first needed; any number of threads may share it.

    With kind clip also the pooled state: projected where the folder's network says that it projects.
    """

    vocab = 0  # states come out, no ids

    def __init__(self, config: TextConfig):
        self.config, self._lock = config, threading.RLock()
        self._net: nn.Module | None = None
        self.device, self.dtype = torch.device("cpu"), DTYPES[config.dtype]
        _ = self._class
        self._tokens(config.length, "text.length")
        if -config.layer > self.shape.num_hidden_layers + 1:
            raise UserError(f"text.layer is {config.layer}; {self.source!r} has {self.shape.num_hidden_layers} layers")

    @property
    def source(self) -> str:
        """What a person calls it."""
        return self.config.source or str(self._found[0])

    @property
    def commit(self) -> str:
        """Of the hub; empty where it is a folder."""
        return self._found[1]

    @cached_property
    def shape(self) -> Any:
        """Its configuration, as transformers has it."""
        return read_shape(self._places[0])

    @property
    def text_width(self) -> int:
        """E."""
        return self.shape.hidden_size

    @property
    def pooled_width(self) -> int:
        """P; 0 where there is no pooled state."""
        if self.config.kind != "clip":
            return 0
        return self.shape.projection_dim if is_projected(self.shape) else self.shape.hidden_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the stored weights and the tokenizer; the kind is a part of it."""
        return fingerprint(self._places[0], self.tokenizer, self._kind)

    @cached_property
    def tokenizer(self) -> Any:
        """In transformers' own class."""
        return read_tokenizer(self._places[1])

    @property
    def net(self) -> nn.Module:
        """In transformers' own class. UserError where its weights are not there, or not the ones meant."""
        with self._lock:
            if self._net is None:
                if self.config.fingerprint:
                    self.config.check(self.fingerprint)
                self._net = read_net(self._places[0], self._class, self.shape, self.dtype).to(self.device)
            return self._net

    def tokens(self, prompts: Sequence[Prompt], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids (B, M) int64 and mask (B, M), as its own tokenizer gives them. Warns of what it cuts."""
        length = self.config.length if length is None else self._tokens(length, "max_sequence_length")
        texts = checked(prompts, lower=self.config.lower)
        with self._lock:
            found = self.tokenizer(texts, padding=False, truncation=False, verbose=False)
        return fit(found.encodings, texts, length, pad=self.tokenizer.pad_token_id, reader=self._places[0].name)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], length: int | None = None) -> Cond:
        """Gives "text" (B, M, E) in the encoder's dtype, on its device; with it "text_mask" (B, M) or "pooled" (B, P).

        The one where padding is hidden, the other with kind clip. `length`: M, in place of the configured one.
        """
        distinct = list(dict.fromkeys(checked(prompts)))
        ids, mask = (found.to(self.device) for found in self.tokens(distinct, length))
        size = 1 if self.device.type == "cpu" else AT_ONCE
        parts = [self._encode(i, m) for i, m in zip(ids.split(size), mask.split(size), strict=True)]
        cond = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        row = {prompt: number for number, prompt in enumerate(distinct)}
        rows = torch.tensor([row[prompt] for prompt in checked(prompts)], device=self.device)
        return {name: value[rows] for name, value in cond.items()}

    def ready(self) -> Frozen:
        """Reads the weights now, returns itself. UserError where they are not there, or not the ones meant."""
        _ = self.net
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Frozen:
        """Moves itself, returns itself: `to("cpu")` frees the GPU. For another dtype the weights are read anew."""
        with self._lock:
            if dtype not in (None, self.dtype):
                self._net = None
            self.device, self.dtype = torch.device(device or self.device), dtype or self.dtype
            if self._net is not None:
                self._net = self._net.to(self.device)
        return self

    def save(self, folder: Path) -> None:
        """Nothing: what is frozen stays where it is, and the configuration says where."""

    def _encode(self, ids: Tensor, mask: Tensor) -> Cond:
        config, net = self.config, self.net
        out = net(
            input_ids=ids,
            attention_mask=mask.long() if config.masked else None,
            output_hidden_states=config.layer != -1,
        )
        text = out.last_hidden_state if config.layer == -1 else out.hidden_states[config.layer]
        cond = {"text": text.to(self.dtype)}
        if config.masked:
            cond["text_mask"] = mask
        if config.kind == "clip":
            cond["pooled"] = out.text_embeds if is_projected(self.shape) else out.pooler_output
        return cond

    def _tokens(self, length: int, name: str) -> int:
        """So many, if it can read them."""
        limit = most_tokens(self.shape)
        if limit and length > limit:
            raise UserError(f"{name} is {length}; {self.source!r} reads at most {limit} tokens")
        return length

    @property
    def _kind(self) -> str:
        return "sentence" if self.config.kind == "minilm" else self.config.kind

    @cached_property
    def _found(self) -> tuple[Path, str]:
        if self.config.kind == "minilm":
            return packaged(), ""
        if not self.config.source:
            raise UserError(f"text.source is empty: name the folder or the hub name of a {self.config.kind} encoder")
        return locate(self.config.source, self.config.revision)

    @cached_property
    def _places(self) -> tuple[Path, Path]:
        return inside(self._found[0])

    @cached_property
    def _class(self) -> str:
        return class_of(self._kind, self.shape, self.source)
