"""FLUX.1's two text encoders as one (Black Forest Labs 2024).

B batch, M tokens of T5, E width of the states, P width of the pooled state.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..diffusion.process import Cond
from .several import Place, Several
from .tokenizer import Prompt

PARTS = {"clip": Place("text_encoder", "clip"), "t5": Place("text_encoder_2", "t5")}


class Flux(Several):
    """T5's last states and CLIP-L's pooled state."""

    places = PARTS
    whose = "a FLUX"
    advice = "FLUX reads both of its text encoders: copy the whole pipeline"

    @property
    def text_width(self) -> int:
        """E."""
        return self.parts["t5"].text_width

    @property
    def pooled_width(self) -> int:
        """P."""
        return self.parts["clip"].pooled_width

    def __call__(self, prompts: Sequence[Prompt], length: int | None = None) -> Cond:
        """Gives "text" (B, M, E) and "pooled" (B, P); there is no mask: FLUX reads its padding."""
        found = self.said(prompts, length)
        return {"text": found["t5"]["text"], "pooled": found["clip"]["pooled"]}
