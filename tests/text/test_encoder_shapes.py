"""Frozen networks that are laid out in ways of their own: beside a tower of pictures, with places kept for padding."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ditwright.errors import UserError
from ditwright.text.base import encoder_from
from ditwright.text.config import TextConfig
from small_encoders import fast, write

transformers = pytest.importorskip("transformers")
PROMPTS = ["a small red circle", "", "a large green square"]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Gemma 3 with its tower of pictures, and a folder of it as published from 4B on."""
    text = {"vocab_size": 420, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    net, folder = transformers.Gemma3ForConditionalGeneration(config).eval(), tmp_path_factory.mktemp("gemma")
    write(net, folder)
    layout = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."}
    layout |= {"model.multi_modal_projector.": "multi_modal_projector."}
    state = {
        next((theirs + name.removeprefix(ours) for ours, theirs in layout.items() if name.startswith(ours)), name): w
        for name, w in load_file(folder / "model.safetensors").items()
        if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    fast(transformers, "<s>", "</s>", "<pad>", folder)
    return net, folder


@pytest.mark.parametrize("layer", [-1, -2])
def test_gemmas_model_of_language_is_read_from_beside_its_pictures(layer, gemma):
    net, folder = gemma
    encoder = encoder_from(TextConfig("causal", str(folder), length=24, layer=layer))
    assert (encoder.text_width, type(encoder.net).__name__) == (16, "Gemma3TextModel")
    for prompt in PROMPTS:
        ids, mask = encoder.tokens([prompt])
        with torch.no_grad():
            wanted = net(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[layer]
        assert_close(encoder([prompt])["text"], wanted, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"type 'gemma3'; text.kind sentence takes those with one stack of layers"):
        encoder_from(TextConfig("sentence", str(folder)))


def test_other_networks_of_pictures_and_text_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["causal"], tmp_path / "llava")
    transformers.LlavaConfig().save_pretrained(folder)
    with pytest.raises(UserError, match=r"type 'llava'; text.kind causal takes .*, and gemma3$"):
        encoder_from(TextConfig("causal", str(folder)))


@pytest.mark.parametrize("name", ["Roberta", "MPNet"])
def test_positions_that_begin_after_that_of_padding_leave_fewer_tokens(name, tmp_path):
    shape = {"vocab_size": 420, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "max_position_embeddings": 12}
    torch.manual_seed(0)
    net = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**shape))
    write(net, tmp_path)
    fast(transformers, "<s>", "</s>", "<pad>", tmp_path)
    long = "a small red circle left of a large green square"
    with pytest.warns(UserWarning, match="cut after 10 tokens"):  # every place is taken
        assert encoder_from(TextConfig("sentence", str(tmp_path), length=10))([long])["text"].isfinite().all()
    with pytest.raises(UserError, match=r"text.length is 11; .* reads at most 10 tokens"):
        encoder_from(TextConfig("sentence", str(tmp_path), length=11))
