"""Captions encoded once: the same states, and refused where another encoder is meant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from ditwright.errors import UserError
from ditwright.text.base import completed, encoder_from
from ditwright.text.cache import CachedText, write_cache
from ditwright.text.config import TextConfig
from ditwright.text.tokenizer import learn

pytest.importorskip("transformers")


def config_of(kind, folders, captions, tmp_path):
    if kind == "bytes":
        learn(captions, 300).save(tmp_path)
    return TextConfig(kind, str(tmp_path if kind == "bytes" else folders[kind]), length=30)


@pytest.mark.parametrize("kind", ["bytes", "clip", "t5"])
def test_cached_is_encoded(kind, folders, captions, tmp_path):
    encoder = encoder_from(config_of(kind, folders, captions, tmp_path))
    cached = write_cache(tmp_path / "cache", encoder, captions + captions, size=10)
    assert len(cached) == len(captions) + 1
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    prompts = [captions[30], "", captions[2], captions[30]]
    found, wanted = cached(prompts), encoder(prompts)
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - {"text"}:
        assert torch.equal(found[name], wanted[name])
    seen = wanted.get("text_mask", torch.ones(4, 30).bool())
    assert found["text"].shape == wanted["text"].shape
    assert found["text"].dtype == wanted["text"].dtype
    assert torch.equal(found["text"][seen], wanted["text"][seen])
    assert not found["text"][~seen].any()
    for name in ("text_width", "pooled_width", "vocab", "fingerprint"):
        assert getattr(cached, name) == getattr(encoder, name)
    with pytest.raises(UserError, match="'a dog' is not among the 37 encoded captions"):
        cached(["a dog"])


def test_another_encoder_is_refused_and_another_dtype_is_made(folders, captions, tmp_path):
    config = replace(config_of("t5", folders, captions, tmp_path), dtype="fp16")
    write_cache(tmp_path / "cache", encoder_from(config), captions[:3])
    with safe_open(tmp_path / "cache" / "captions-00000.safetensors", "pt") as file:
        assert file.metadata() == {"fingerprint": completed(config).fingerprint, "dtype": "fp16"}
    stored = CachedText(tmp_path / "cache")(captions[:1])["text"]
    assert stored.dtype == torch.float16
    wide = CachedText(tmp_path / "cache", replace(config, dtype="fp32"))
    assert torch.equal(wide(captions[:1])["text"], stored.float())
    assert wide.to(dtype=torch.bfloat16)(captions[:1])["text"].dtype == torch.bfloat16
    for name, value in (("fingerprint", "0" * 64), ("length", 20), ("lower", True), ("layer", -2), ("mask", "off")):
        with pytest.raises(UserError, match=rf"were encoded with text\.{name}(ed)? "):
            CachedText(tmp_path / "cache", replace(config, **{name: value}))
    with pytest.raises(UserError, match=r"no encoded captions in .*captions.json is missing"):
        CachedText(tmp_path)
