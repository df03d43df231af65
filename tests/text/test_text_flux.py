"""FLUX's two text encoders as one: T5's states beside CLIP's pooled state."""

from __future__ import annotations

import shutil

import pytest
import torch

from ditwright.errors import UserError
from ditwright.text.base import completed, encoder_from
from ditwright.text.config import TextConfig
from ditwright.text.late import Late

pytest.importorskip("transformers")
PROMPTS = ["a small red circle", "", "a large green square"]


@pytest.fixture
def folder(folders, tmp_path):
    """A FLUX pipeline's encoders and tokenizers."""
    root = tmp_path / "flux"
    for name, number in (("clip", ""), ("t5", "_2")):
        for place in ("text_encoder", "tokenizer"):
            shutil.copytree(folders[name], root / f"{place}{number}")
            unwanted = "tokenizer*" if place == "text_encoder" else "*model*"
            for file in (root / f"{place}{number}").glob(unwanted):
                file.unlink()
    return root


def test_it_is_t5s_states_and_clips_pooled_state(folder, folders):
    encoder = encoder_from(TextConfig("flux", str(folder), t5_length=20))
    found = encoder(PROMPTS)
    clip = encoder_from(TextConfig("clip", str(folders["clip"])))(PROMPTS)
    t5 = encoder_from(TextConfig("t5", str(folders["t5"]), length=20, mask="off"))(PROMPTS)
    assert found.keys() == {"text", "pooled"}
    assert torch.equal(found["text"], t5["text"])
    assert torch.equal(found["pooled"], clip["pooled"])
    assert (encoder.text_width, encoder.pooled_width, encoder.vocab) == (40, 16, 0)
    half = encoder.to(dtype=torch.bfloat16)(PROMPTS)
    assert half["text"].dtype == half["pooled"].dtype == torch.bfloat16


def test_each_encoder_cuts_at_its_own_length(folder):
    encoder = encoder_from(TextConfig("flux", str(folder), length=8, t5_length=12))
    with pytest.warns(UserWarning, match="was cut after") as warned:
        found = encoder(["a small red circle left of a tree in the style of Miró"])
    assert found["text"].shape == (1, 12, 40)
    lines = [str(warning.message).split("; lost")[0] for warning in warned]
    assert lines == [
        "the prompt was cut after 8 tokens by text_encoder",
        "the prompt was cut after 12 tokens by text_encoder_2",
    ]


def test_what_is_missing_is_named(folder):
    fingerprint = completed(TextConfig("flux", str(folder))).fingerprint
    assert len(fingerprint) == 64
    with pytest.raises(UserError, match="FLUX reads its padding"):
        TextConfig("flux", str(folder), mask="on")
    with pytest.raises(UserError, match="has other weights or another tokenizer"):
        encoder_from(TextConfig("flux", str(folder), fingerprint="0" * 64)).ready()
    for file in (folder / "tokenizer_2").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer there and in tokenizer_2/ beside it; looked for tokenizer"):
        encoder_from(TextConfig("flux", str(folder)))
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(UserError, match=r"has no text_encoder_2/; FLUX reads both of its text encoders"):
        encoder_from(TextConfig("flux", str(folder)))


def test_a_late_encoder_is_looked_for_when_it_is_asked(folder, tmp_path):
    config = TextConfig("flux", str(tmp_path / "moved"), t5_length=20)
    late = Late(config).to("cpu", torch.bfloat16)
    late.save(tmp_path)  # frozen: nothing to write, and so nothing to read
    for ask in (lambda: late.text_width, lambda: late(["a"]), late.ready, lambda: late.fingerprint):
        with pytest.raises(UserError, match="there is no text encoder's folder"):
            ask()
    shutil.copytree(folder, tmp_path / "moved")
    eager = encoder_from(config)
    assert (late.text_width, late.pooled_width, late.vocab, late.commit) == (40, 16, 0, "")
    assert late.fingerprint == eager.fingerprint
    assert late(PROMPTS)["text"].dtype == torch.bfloat16
    assert torch.equal(late.to(dtype=torch.float32).ready()(PROMPTS)["text"], eager(PROMPTS)["text"])
    assert late.config is config
