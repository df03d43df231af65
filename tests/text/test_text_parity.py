"""Against the libraries that networks were trained with: the same tiny encoders through both."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ditwright.text.base import encoder_from
from ditwright.text.config import TextConfig

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
PROMPTS = ["a small red circle", "", "a LARGE green square right of a tree"]
LONG = " ".join(["a small red circle left of a tree"] * 20)
TIGHT = {"rtol": 0, "atol": 1e-6}


def tokenizer_of(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def pipeline_of(folder, *, t5=True):
    """Stock diffusers', of the encoders alone."""
    clip, t5_net = transformers.CLIPTextModelWithProjection, None
    if t5:
        t5_net = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_3").eval()
    transformer = diffusers.SD3Transformer2DModel(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        caption_projection_dim=8,
        joint_attention_dim=40,
        pooled_projection_dim=26,
        sample_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=None,
        vae=None,
        text_encoder=clip.from_pretrained(folder / "text_encoder").eval(),
        tokenizer=tokenizer_of(folder / "tokenizer"),
        text_encoder_2=clip.from_pretrained(folder / "text_encoder_2").eval(),
        tokenizer_2=tokenizer_of(folder / "tokenizer_2"),
        text_encoder_3=t5_net,
        tokenizer_3=tokenizer_of(folder / "tokenizer_3") if t5 else None,
    )


def stock_sd3(pipeline, prompts, length=100, others=(None, None)):
    with torch.no_grad():
        text, null, pooled, null_pooled = pipeline.encode_prompt(
            prompts, *others, device="cpu", max_sequence_length=length
        )
    return {"text": text, "pooled": pooled}, {"text": null, "pooled": null_pooled}


@pytest.mark.parametrize("t5", [True, False], ids=["all three", "no t5"])
def test_sd3_is_what_diffusers_gives(sd3_folder, t5):
    pipeline = pipeline_of(sd3_folder, t5=t5)
    drop = () if t5 else ("t5",)
    encoder = encoder_from(TextConfig("sd3", str(sd3_folder), t5_length=100, drop=drop))
    wanted, null = stock_sd3(pipeline, PROMPTS)
    if not t5:  # diffusers asks its transformer for the width, the folder has its T5's
        assert encoder.text_width == wanted["text"].shape[-1]
    found = encoder(PROMPTS)
    assert found.keys() == wanted.keys()
    assert found["text"].shape == (3, 177, 40)
    assert found["pooled"].shape == (3, 26)
    for name in found:
        assert wanted[name].std() > 0.1
        assert_close(found[name], wanted[name], **TIGHT)
        assert_close(encoder([""])[name], null[name][:1], **TIGHT)
    assert (found["text"][:, 77:] == 0).all() != t5


@pytest.mark.filterwarnings("ignore:.*was cut after 12 tokens")
@pytest.mark.parametrize("length", [12, 30])
def test_sd3s_encoders_each_hear_a_text_of_their_own_and_t5_any_length(sd3_folder, length):
    pipeline, (second, third) = pipeline_of(sd3_folder), (PROMPTS[::-1], ["a tree", "red", "a cross"])
    encoder = encoder_from(TextConfig("sd3", str(sd3_folder)))
    for told, others in (
        (zip(PROMPTS, second, third, strict=True), (second, third)),
        (zip(PROMPTS, second, strict=True), (second, None)),
        (zip(PROMPTS, PROMPTS, third, strict=True), (None, third)),
        (PROMPTS, (None, None)),
    ):
        wanted, _ = stock_sd3(pipeline, PROMPTS, length, others)
        found = encoder(list(told), length)
        assert found["text"].shape == (3, 77 + length, 40)
        for name in found:
            assert_close(found[name], wanted[name], **TIGHT)
    without = encoder_from(TextConfig("sd3", str(sd3_folder), drop=("t5",)))
    wanted, _ = stock_sd3(pipeline_of(sd3_folder, t5=False), PROMPTS, length, (second, third))
    with pytest.warns(UserWarning, match="the text for t5 has no effect: text.drop leaves that encoder out"):
        found = without(list(zip(PROMPTS, second, third, strict=True)), length)
    for name in found:
        assert_close(found[name], wanted[name], **TIGHT)


@pytest.mark.filterwarnings("ignore:.*was cut after 12 tokens")
@pytest.mark.parametrize("length", [12, 30])
def test_flux_is_what_diffusers_gives(flux_folder, length):
    pipeline = diffusers.FluxPipeline(
        transformer=None,
        scheduler=None,
        vae=None,
        text_encoder=transformers.CLIPTextModel.from_pretrained(flux_folder / "text_encoder").eval(),
        tokenizer=tokenizer_of(flux_folder / "tokenizer"),
        text_encoder_2=transformers.T5EncoderModel.from_pretrained(flux_folder / "text_encoder_2").eval(),
        tokenizer_2=tokenizer_of(flux_folder / "tokenizer_2"),
    )
    encoder = encoder_from(TextConfig("flux", str(flux_folder)))
    for told, second in ((PROMPTS, None), (list(zip(PROMPTS, PROMPTS[::-1], strict=True)), PROMPTS[::-1])):
        with torch.no_grad():
            text, pooled, _ = pipeline.encode_prompt(PROMPTS, second, device="cpu", max_sequence_length=length)
        found = encoder(told, length)
        assert found["text"].shape == (3, length, 40)
        assert_close(found["text"], text, **TIGHT)
        assert_close(found["pooled"], pooled, **TIGHT)
    assert encoder(PROMPTS)["text"].shape == (3, 256, 40)


def test_sd3_cuts_long_prompts_where_diffusers_does(sd3_folder):
    wanted, _ = stock_sd3(pipeline_of(sd3_folder), [LONG])
    encoder = encoder_from(TextConfig("sd3", str(sd3_folder), t5_length=100))
    with pytest.warns(UserWarning, match="was cut after") as warned:
        found = encoder([LONG])
    for name in found:
        assert_close(found[name], wanted[name], **TIGHT)
    lines = [str(warning.message) for warning in warned]
    assert [line.split("; lost")[0] for line in lines] == [
        "the prompt was cut after 77 tokens by text_encoder",
        "the prompt was cut after 77 tokens by text_encoder_2",
        "the prompt was cut after 100 tokens by text_encoder_3",
    ]


def test_a_dropped_encoder_leaves_zeros_and_the_others_as_they_were(sd3_folder, make_sd3):
    config = TextConfig("sd3", str(sd3_folder), t5_length=20)
    encoder = encoder_from(config)
    whole = encoder(PROMPTS)
    spans = {
        "clip_l": ((slice(0, 77), slice(0, 16)), slice(0, 12)),
        "clip_g": ((slice(0, 77), slice(16, 36)), slice(12, 26)),
        "t5": ((slice(77, None), slice(None)), slice(0, 0)),
    }
    for part, ((tokens, width), pooled) in spans.items():
        wanted = {name: value.clone() for name, value in whole.items()}
        wanted["text"][:, tokens, width] = 0
        wanted["pooled"][:, pooled] = 0
        assert not torch.equal(wanted["text"], whole["text"])
        dropped = encoder_from(TextConfig("sd3", str(sd3_folder), t5_length=20, drop=(part,)))
        for found in (dropped(PROMPTS), encoder.without(whole, part)):
            for name in wanted:
                assert torch.equal(found[name], wanted[name])
        assert dropped.fingerprint != encoder.fingerprint
        some = encoder.without(whole, part, torch.tensor([True, False, True]))
        assert torch.equal(some["text"][1], whole["text"][1])
        assert torch.equal(some["text"][::2], wanted["text"][::2])
        assert torch.equal(some["pooled"], torch.stack([wanted["pooled"][0], whole["pooled"][1], wanted["pooled"][2]]))
    nothing = encoder_from(TextConfig("sd3", str(sd3_folder), drop=("clip_l", "clip_g", "t5")))(PROMPTS)
    assert nothing["text"].shape == (3, 333, 40)
    assert not any(value.any() for value in nothing.values())


@pytest.mark.filterwarnings("ignore:.*was cut")
@pytest.mark.parametrize("prompts", [PROMPTS, [LONG]], ids=["short", "long"])
def test_pixart_is_what_diffusers_gives_masks_and_all(folders, prompts):
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer_of(folders["t5"]),
        text_encoder=transformers.T5EncoderModel.from_pretrained(folders["t5"]).eval(),
        vae=None,
        transformer=None,
        scheduler=None,
    )
    with torch.no_grad():
        text, mask, null, null_mask = pipeline.encode_prompt(prompts, max_sequence_length=30, device="cpu")
    encoder = encoder_from(TextConfig("t5", str(folders["t5"]), length=30, lower=True))
    found, empty = encoder(prompts), encoder([""])
    assert found.keys() == {"text", "text_mask"}
    assert found["text_mask"].dtype == torch.bool
    assert torch.equal(found["text_mask"].long(), mask)
    assert torch.equal(empty["text_mask"].long(), null_mask[:1])
    assert empty["text_mask"].sum() == 1  # the token that ends it
    assert_close(found["text"], text, **TIGHT)
    assert_close(empty["text"], null[:1], **TIGHT)


def test_clip_is_what_stable_diffusion_and_flux_read(folders):
    net = transformers.CLIPTextModel.from_pretrained(folders["clip"]).eval()
    ids = tokenizer_of(folders["clip"])(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = net(ids, output_hidden_states=True)
    found = encoder_from(TextConfig("clip", str(folders["clip"])))(PROMPTS)
    assert found.keys() == {"text", "pooled"}
    assert_close(found["text"], wanted.last_hidden_state, **TIGHT)
    assert_close(found["pooled"], wanted.pooler_output, **TIGHT)
    deep = encoder_from(TextConfig("clip", str(folders["clip"]), layer=-2))(PROMPTS)
    assert_close(deep["text"], wanted.hidden_states[-2], **TIGHT)
    assert (deep["text"] - found["text"]).abs().max() > 0.1
    masked = encoder_from(TextConfig("clip", str(folders["clip"]), mask="on"))(PROMPTS)
    assert_close(masked["text"][masked["text_mask"]], found["text"][masked["text_mask"]], **TIGHT)  # it is causal


def test_a_causal_model_and_a_sentence_encoder_give_their_last_states(folders):
    for kind, cls in (("causal", "LlamaModel"), ("sentence", "BertModel")):
        net, tokenizer = getattr(transformers, cls).from_pretrained(folders[kind]).eval(), tokenizer_of(folders[kind])
        found = encoder_from(TextConfig(kind, str(folders[kind]), length=40))(PROMPTS)
        assert found.keys() == {"text", "text_mask"}
        for row, prompt in enumerate(PROMPTS):  # alone, with no padding at all
            with torch.no_grad():
                wanted = net(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0]
            assert found["text_mask"][row].tolist() == [place < len(wanted) for place in range(40)]
            assert_close(found["text"][row, : len(wanted)], wanted, **TIGHT)
