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


def test_it_is_t5s_states_and_clips_pooled_state(flux_folder, folders):
    encoder = encoder_from(TextConfig("flux", str(flux_folder), t5_length=20))
    found = encoder(PROMPTS)
    clip = encoder_from(TextConfig("clip", str(folders["clip"])))(PROMPTS)
    t5 = encoder_from(TextConfig("t5", str(folders["t5"]), length=20, mask="off"))(PROMPTS)
    assert found.keys() == {"text", "pooled"}
    assert torch.equal(found["text"], t5["text"])
    assert torch.equal(found["pooled"], clip["pooled"])
    assert (encoder.text_width, encoder.pooled_width, encoder.vocab) == (40, 16, 0)
    half = encoder.to(dtype=torch.bfloat16)(PROMPTS)
    assert half["text"].dtype == half["pooled"].dtype == torch.bfloat16


def test_each_encoder_cuts_at_its_own_length(flux_folder):
    encoder = encoder_from(TextConfig("flux", str(flux_folder), length=8, t5_length=12))
    with pytest.warns(UserWarning, match="was cut after") as warned:
        found = encoder(["a small red circle left of a tree in the style of Miró"])
    assert found["text"].shape == (1, 12, 40)
    lines = [str(warning.message).split("; lost")[0] for warning in warned]
    assert lines == [
        "the prompt was cut after 8 tokens by text_encoder",
        "the prompt was cut after 12 tokens by text_encoder_2",
    ]


def test_each_hears_its_own_text_where_there_are_two(flux_folder):
    encoder = encoder_from(TextConfig("flux", str(flux_folder), t5_length=20))
    one, other = encoder(["a red circle"]), encoder(["a green tree"])
    both = encoder([("a red circle", "a green tree"), ("a green tree",), "a red circle"])
    assert torch.equal(both["pooled"], torch.cat([one["pooled"], other["pooled"], one["pooled"]]))
    assert torch.equal(both["text"], torch.cat([other["text"], other["text"], one["text"]]))
    for wrong, said in ((("a", "b", "c"), "'c'"), ((), r"\(\)")):
        with pytest.raises(UserError, match=rf"a FLUX pipeline has 2 text encoders: a prompt is 1 to 2; got .*{said}"):
            encoder([wrong])


def test_what_is_missing_is_named(flux_folder):
    fingerprint = completed(TextConfig("flux", str(flux_folder))).fingerprint
    assert len(fingerprint) == 64
    with pytest.raises(UserError, match="FLUX reads its padding"):
        TextConfig("flux", str(flux_folder), mask="on")
    with pytest.raises(UserError, match="has other weights or another tokenizer"):
        encoder_from(TextConfig("flux", str(flux_folder), fingerprint="0" * 64)).ready()
    for file in (flux_folder / "tokenizer_2").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer there and in tokenizer_2/ beside it; looked for tokenizer"):
        encoder_from(TextConfig("flux", str(flux_folder)))
    shutil.rmtree(flux_folder / "text_encoder_2")
    with pytest.raises(UserError, match=r"has no text_encoder_2/; FLUX reads both of its text encoders"):
        encoder_from(TextConfig("flux", str(flux_folder)))


def test_a_late_encoder_is_looked_for_when_it_is_asked(flux_folder, tmp_path):
    config = TextConfig("flux", str(tmp_path / "moved"), t5_length=20)
    late = Late(config).to("cpu", torch.bfloat16)
    late.save(tmp_path)  # frozen: nothing to write, and so nothing to read
    for ask in (lambda: late.text_width, lambda: late(["a"]), late.ready, lambda: late.fingerprint):
        with pytest.raises(UserError, match="there is no text encoder's folder"):
            ask()
    shutil.copytree(flux_folder, tmp_path / "moved")
    eager = encoder_from(config)
    assert (late.text_width, late.pooled_width, late.vocab, late.commit) == (40, 16, 0, "")
    assert late.fingerprint == eager.fingerprint
    assert late(PROMPTS)["text"].dtype == torch.bfloat16
    assert torch.equal(late.to(dtype=torch.float32).ready()(PROMPTS)["text"], eager(PROMPTS)["text"])
    assert torch.equal(late(PROMPTS, 12)["text"], eager(PROMPTS, 12)["text"])
    assert late.config is config
