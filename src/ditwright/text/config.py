"""Which text encoder, as plain data; saved with every checkpoint and every set of encoded captions. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError

KINDS_OF_ONE = ("clip", "t5", "causal", "sentence", "minilm")  # a single frozen network each
SEVERAL = {"sd3": "SD3", "flux": "FLUX"}  # those of a pipeline, which reads their padding


@dataclass(frozen=True)
class TextConfig:
    """`encoder_from` makes the object; `completed` fills in what pins it: the hub's commit and the fingerprint."""

    kind: Literal["none", "bytes", "clip", "t5", "causal", "sentence", "minilm", "sd3", "flux"] = "none"
    source: str = ""  # folder or hub name; of bytes the folder of its tokenizer.json; minilm is a package and has none
    revision: str = ""  # of a hub name: a branch, a tag, a commit
    length: int = (
        77  # tokens of a prompt, the marks of begin and end included: longer ones are cut, shorter ones padded
    )
    t5_length: int = 256  # likewise of T5 among SD3's and FLUX's encoders; FLUX.1-dev was trained with 512
    layer: int = (
        -1
    )  # whose states: -1 the last, after the last norm; -2 those before the last layer, as SDXL takes them
    mask: Literal["auto", "on", "off"] = "auto"  # hide padding from encoder and network; auto: not of clip, sd3, flux
    lower: bool = False  # prompts in lower case without spaces around them; PixArt
    drop: tuple[Literal["clip_l", "clip_g", "t5"], ...] = ()  # of sd3: neither read nor asked, zeros in their places
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    fingerprint: str = ""  # of weights and tokenizer: others are refused

    def __post_init__(self) -> None:
        if min(self.length, self.t5_length) < 2:
            raise UserError(f"text.length and t5_length must be at least 2; got {self.length} and {self.t5_length}")
        if self.layer > -1:
            raise UserError(f"text.layer counts from the last, -1, downwards; got {self.layer}")
        if self.layer != -1 and self.kind not in KINDS_OF_ONE:
            raise UserError(f"text.layer is of the kinds {', '.join(KINDS_OF_ONE)}; {self.kind} has none to choose")
        if self.drop and self.kind != "sd3":
            raise UserError(f"text.drop is of the kind sd3; got {self.drop} with {self.kind}")
        if len(set(self.drop)) < len(self.drop):
            raise UserError(f"text.drop names each encoder once; got {','.join(self.drop)}")
        if self.mask == "on" and self.kind in SEVERAL:
            raise UserError(f"text.mask: {SEVERAL[self.kind]} reads its padding; leave it auto")
        if self.mask == "off" and self.kind == "bytes":
            raise UserError("text.mask: the network's own tower must not read padding; leave it auto")
        if self.source and self.kind in ("none", "minilm"):
            raise UserError(f"text.source goes with another text.kind than {self.kind}; got {self.source!r}")

    def check(self, found: str) -> None:
        """UserError where an encoder of fingerprint `found` is not the one meant."""
        if self.fingerprint not in ("", found):
            raise UserError(
                f"the text encoder {self.source or self.kind!r} has other weights or another tokenizer ({found[:12]}) "
                f"than the one asked for ({self.fingerprint[:12]}): bring that back, or clear text.fingerprint"
            )

    @property
    def masked(self) -> bool:
        """Whether padding is hidden, and the network told where it is."""
        return self.mask == "on" or (self.mask == "auto" and self.kind not in ("clip", *SEVERAL))
