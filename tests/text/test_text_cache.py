"""Captions encoded once: the same states, and refused where another encoder is meant."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from ditwright.errors import UserError
from ditwright.text.base import completed, encoder_from
from ditwright.text.cache import CachedText, Writing, begun, verify, write_cache
from ditwright.text.config import TextConfig
from ditwright.text.frozen import Frozen
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
    assert torch.equal(cached(prompts, 30)["text"], found["text"])
    with pytest.raises(UserError, match="encoded with 30 tokens; encode them with the encoder for 31"):
        cached(prompts, 31)
    with pytest.raises(UserError, match="this text encoder is alone"):
        cached([(captions[2], captions[3])])


def test_three_encoders_in_one_are_cached_as_one(sd3_folder, captions, tmp_path):
    config = TextConfig("sd3", str(sd3_folder), length=20, t5_length=24, dtype="bf16")
    cached, encoder = write_cache(tmp_path / "cache", encoder_from(config), captions[:3]), encoder_from(config)
    found, wanted = cached(captions[:2]), encoder(captions[:2])
    assert found.keys() == wanted.keys() == {"text", "pooled"}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (cached.text_width, cached.pooled_width) == (encoder.text_width, encoder.pooled_width)
    with pytest.raises(
        UserError, match=r"with text\.t5_length 24; the configuration asks for 30: set text\.t5_length 24"
    ):
        CachedText(tmp_path / "cache", replace(config, t5_length=30))
    with pytest.raises(UserError, match=r"with text\.drop \(\); the configuration asks for t5"):
        CachedText(tmp_path / "cache", replace(config, drop=("t5",)))


def test_another_encoder_and_a_dtype_of_more_digits_are_refused(folders, captions, tmp_path):
    config = replace(config_of("t5", folders, captions, tmp_path), dtype="fp16")
    write_cache(tmp_path / "cache", encoder_from(config), captions[:3])
    with safe_open(tmp_path / "cache" / "captions-00000.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])["encoder"]
    assert about == {
        **{"kind": "t5", "length": 30, "dtype": "fp16"},
        "fingerprint": completed(config).fingerprint,
    }
    stored = CachedText(tmp_path / "cache")(captions[:1])["text"]
    assert stored.dtype == torch.float16
    others = {"kind": "sentence", "fingerprint": "0" * 64, "length": 20, "lower": True, "layer": -2, "mask": "off"}
    for name, value in (others | {"dtype": "fp32"}).items():
        with pytest.raises(
            UserError, match=rf"were encoded with text\.{name} .* asks for {str(value)[:12]}:"
        ) as refused:
            CachedText(tmp_path / "cache", replace(config, **{name: value}))
        assert "\n" not in str(refused.value)
    with pytest.raises(
        UserError, match=r"with text\.dtype fp16; the configuration asks for bf16: set text\.dtype fp16, or"
    ):
        CachedText(tmp_path / "cache", replace(config, dtype="bf16"))
    CachedText(tmp_path / "cache", replace(config, t5_length=9))  # that is of several encoders in one
    with pytest.raises(UserError, match=r"no encoded captions in .*captions.json is missing"):
        CachedText(tmp_path)


def test_a_lower_dtype_is_made_of_the_whole_one(folders, captions, tmp_path):
    config = config_of("t5", folders, captions, tmp_path)
    whole = write_cache(tmp_path / "cache", encoder_from(config), captions[:3])(captions[:1])["text"]
    half = CachedText(tmp_path / "cache", replace(config, dtype="bf16"))
    assert (half.config.dtype, whole.dtype) == ("bf16", torch.float32)
    assert torch.equal(half(captions[:1])["text"], whole.bfloat16())
    assert half.to(dtype=torch.float16)(captions[:1])["text"].dtype == torch.float16


def test_an_encoder_that_was_moved_is_the_same_and_another_in_its_words_is_not(
    folders, captions, tmp_path, monkeypatch
):
    config = config_of("clip", folders, captions, tmp_path)
    write_cache(tmp_path / "cache", encoder_from(config), captions[:3])
    moved = shutil.copytree(folders["clip"], tmp_path / "moved")
    found = CachedText(tmp_path / "cache", replace(config, source=str(moved))).config
    assert found == replace(completed(config), source=str(moved))
    monkeypatch.chdir(tmp_path)
    assert CachedText(tmp_path / "cache", replace(config, source="moved")).config == found
    monkeypatch.chdir(folders["clip"].parent)
    with monkeypatch.context() as patch:
        patch.setattr("ditwright.text.cache.completed", None)  # the same place in other words is not looked at
        same = CachedText(tmp_path / "cache", replace(config, source=folders["clip"].name)).config
    assert same == completed(config)
    assert CachedText(tmp_path / "cache", replace(config, source="")).config == completed(config)
    with pytest.raises(
        UserError, match=r"with text\.fingerprint \w{12}; the configuration asks for \w{12}: encode them"
    ):
        CachedText(tmp_path / "cache", replace(config, source=str(folders["projected"])))


def test_what_is_done_is_not_done_again(folders, captions, contents, monkeypatch, tmp_path):
    encoder, asked = encoder_from(config_of("t5", folders, captions, tmp_path)), []
    monkeypatch.setattr(Frozen, "_encode", lambda *args, real=Frozen._encode: asked.append(1) or real(*args))
    write_cache(tmp_path / "straight", encoder, captions, size=10)
    assert len(asked) == len(captions) + 1
    straight = contents(tmp_path / "straight")
    asked.clear()
    write_cache(tmp_path / "straight", encoder, captions, size=10)
    assert (asked, contents(tmp_path / "straight")) == ([], straight)
    stopping = Writing(tmp_path / "stopped", encoder, captions, size=10)
    stopping.write(2)

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopping.write(0, stop)
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["captions-00002.safetensors"]
    assert stopping.finish() is None
    assert begun(tmp_path / "stopped") == replace(stopping.config, source="")
    path = tmp_path / "stopped" / "captions-00001.safetensors"
    path.write_bytes(straight[path.name][:-1])  # whoever cut it
    asked.clear()
    write_cache(tmp_path / "stopped", encoder, captions, size=10)
    assert len(asked) == len(captions) + 1 - 10
    assert contents(tmp_path / "stopped") == straight
    write_cache(tmp_path / "stopped", encoder, captions[:15], size=10)  # other captions: what is left over goes
    assert len(CachedText(tmp_path / "stopped")) == 16
    assert sorted(path.name for path in (tmp_path / "stopped").glob("*.safetensors")) == [
        "captions-00000.safetensors",
        "captions-00001.safetensors",
    ]


def test_captions_of_two_folders_are_known_together(folders, captions, tmp_path):
    encoder = encoder_from(config_of("t5", folders, captions, tmp_path))
    cached = write_cache(tmp_path / "a", encoder, captions[:2])
    write_cache(tmp_path / "b", encoder, captions[1:4])
    assert captions[3] not in cached
    cached.learn(tmp_path / "b")
    assert captions[3] in cached
    wanted = write_cache(tmp_path / "c", encoder, captions[:4])(captions[:4])
    assert all(torch.equal(value, wanted[name]) for name, value in cached(captions[:4]).items())
    write_cache(tmp_path / "d", encoder_from(replace(encoder.config, length=20)), captions[:2])
    with pytest.raises(UserError, match=r"text\.length 20; the configuration asks for 30"):
        cached.learn(tmp_path / "d")


def test_every_flipped_bit_is_found_and_a_cut_shard_is_named(folders, captions, tmp_path):
    cached = write_cache(
        tmp_path / "captions", encoder_from(config_of("t5", folders, captions, tmp_path)), captions[:3]
    )
    path = tmp_path / "captions" / "captions-00000.safetensors"
    whole = path.read_bytes()
    assert list(verify(tmp_path / "captions")) == [("captions/captions-00000.safetensors", True)]
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 16]))
    assert list(verify(tmp_path / "captions")) == [("captions/captions-00000.safetensors", False)]
    path.write_bytes(whole[:-1])
    with pytest.raises(
        UserError, match="are missing or not as they were written; run the same `ditwright prepare` again"
    ):
        CachedText(tmp_path / "captions")
    with pytest.raises(UserError, match=r"captions-00000\.safetensors' are damaged"):
        cached([""])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda about: [], "is damaged"),
        (
            lambda about: about | {"format": "ditwright-captions-9"},
            "of the format 'ditwright-captions-9'; this version",
        ),
        (lambda about: about | {"encoder": {"kind": "nonsense"}}, "is damaged .encoder.kind must be one of"),
        (lambda about: about | {"shards": [{}]}, "is damaged .'bytes'"),
        (lambda about: about | {"shards": [about["shards"][0] | {"captions": [3]}]}, "is damaged"),
        (lambda about: about | {"shards": [about["shards"][0] | {"bytes": "3"}]}, "is damaged"),
        (lambda about: about | {"text_width": None}, "is damaged"),
    ],
)
def test_an_index_that_is_not_as_it_was_written_is_one_line(folders, captions, change, said, tmp_path):
    write_cache(tmp_path / "cache", encoder_from(config_of("t5", folders, captions, tmp_path)), captions[:3])
    index = tmp_path / "cache" / "captions.json"
    index.write_text(json.dumps(change(json.loads(index.read_text()))))
    with pytest.raises(UserError, match=said) as refused:
        CachedText(tmp_path / "cache")
    assert "\n" not in str(refused.value)
    index.write_text("{")
    with pytest.raises(UserError, match=r"captions\.json' is damaged"):
        CachedText(tmp_path / "cache")


def test_any_number_of_threads_may_read(folders, captions, tmp_path):
    cached = write_cache(tmp_path / "c", encoder_from(config_of("t5", folders, captions, tmp_path)), captions, size=5)
    wanted = [cached([caption])["text"] for caption in captions]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda caption: cached([caption])["text"], captions * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 4, strict=True))
