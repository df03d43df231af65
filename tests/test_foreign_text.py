"""Text that no parser gets through is said to be that, by the name of its file, wherever it is read."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from ditwright.codec.folder import skeleton
from ditwright.config import load_yaml, parse_json
from ditwright.convert.source import read_json
from ditwright.data.sources import is_prepared, open_source
from ditwright.errors import UserError
from ditwright.evaluate.captioned import captioned
from ditwright.evaluate.pictures import images_from
from ditwright.metrics.judge import load_judge
from ditwright.metrics.npz import write_samples
from ditwright.pipeline import Pipeline
from ditwright.pipeline.fid import Order, draw_set
from ditwright.text.cache import begun
from small_pipelines import pipeline

JSON = {
    "lists": "[" * 100_000,
    "objects": '{"a":' * 100_000,
    "digits": f'{{"label": {"1" * 5000}}}',
    "half": '{"a": ',
    "not UTF-8": '{"a": "\xe9"}',
}
YAML = {
    "lists": "[" * 20_000,
    "digits": f"steps: {'1' * 5000}",
    "a day that is none": "steps: 2001-99-99",
    "a number without digits": "steps: 0b_",
    "a time that is none": "steps: !!timestamp x",
    "a truth that is none": "steps: !!bool x",
    "an empty number": "steps: !!int ''",
    "too many sixtieths": f"steps: {'1:' * 200}1.5",
}


def tar(folder, text):
    for name, held in (("0.png", b""), ("0.json", text)):
        (folder / name).write_bytes(held)
    with tarfile.open(folder / "x.tar", "w") as made:
        for name in ("0.png", "0.json"):
            made.add(folder / name, name)
    return open_source(str(folder / "x.tar"))


def metadata(folder, text):
    Image.new("L", (2, 2)).save(folder / "x.png")
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "x.png"}\n' + text + b"\n")
    return open_source(str(folder))


def foreign_network(folder, text):
    (folder / "config.json").write_bytes(text)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    return Pipeline.from_pretrained(folder)


def index_of_shards(folder, text):
    (folder / "x.json").write_bytes(text)
    return read_json(folder / "x.json")


def autoencoder(folder, text):
    (folder / "config.json").write_bytes(text)
    return skeleton(folder)


def order(folder):
    pipe = pipeline()
    return Order(pipe, folder, 4, pipe.settings({"num_inference_steps": 1}))


def samples(folder, text):
    (folder / "samples_4.npz").write_bytes(b"")
    (folder / "samples_4.json").write_bytes(text)
    return draw_set(order(folder))


def samples_in_part(folder, text):
    (folder / "parts").mkdir()
    (folder / "parts" / "settings.json").write_bytes(text)
    return draw_set(order(folder))


def prompt_in_a_picture(folder, text):
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", text.decode("latin-1"))
    Image.new("RGB", (8, 8)).save(folder / "seed0-00000.png", pnginfo=told)
    return captioned(str(folder))


def judge(folder, text):
    facts = {"format": "ditwright-judge-1", "facts": text.decode("latin-1")}
    save_file({"w": torch.zeros(2)}, folder / "x.safetensors", facts)
    return load_judge(folder / "x.safetensors")


PLACES = {
    tar: r"x\.tar': '0' has a \.json that is not JSON",
    metadata: r"line 2 of '.*metadata\.jsonl' is not ",
    foreign_network: r"config\.json' is missing or damaged",
    index_of_shards: r"x\.json' is missing or damaged",
    autoencoder: r"config\.json' is not the configuration of an autoencoder",
    samples: r"samples_4\.json' is missing or damaged",
    samples_in_part: r"settings\.json' is missing or damaged",
    prompt_in_a_picture: r"seed0-00000\.png' does not say its prompt",
    judge: r"x\.safetensors' has damaged facts",
}


@pytest.mark.parametrize("text", [kind for kind in JSON if kind != "not UTF-8"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_json_that_cannot_be_read_is_one_line_that_names_its_file(place, text, tmp_path):
    with pytest.raises(UserError, match=PLACES[place]) as error:
        place(tmp_path, JSON[text].encode())
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[1]", "3", "null", '"prompt"', "{}", '{"prompt": 3}'])
def test_json_of_another_kind_is_no_prompt(text, tmp_path):
    with pytest.raises(UserError, match=r"seed0-00000\.png' does not say its prompt"):
        prompt_in_a_picture(tmp_path, text.encode())


@pytest.mark.parametrize("text", ["[]", "3", "null"])
@pytest.mark.parametrize("place", [samples, samples_in_part])
def test_json_of_another_kind_is_no_settings(place, text, tmp_path):
    with pytest.raises(UserError, match=r"is missing or damaged \(it holds no settings\)"):
        place(tmp_path, text.encode())


@pytest.mark.parametrize("text", [*JSON.values(), "3"], ids=[*JSON, "a number"])
def test_what_only_may_be_ours_is_then_not_ours(text, tmp_path):
    """A folder is not prepared, samples tell no settings, a shard of captions is written again."""
    for name in ("settings.json", "index.json", "x.json"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert not is_prepared(tmp_path)
    write_samples(tmp_path / "x.npz", [np.zeros((4, 8, 8, 1), np.uint8)], 4)
    assert images_from(str(tmp_path / "x.npz")).origin == {}
    save_file({"w": torch.zeros(2)}, tmp_path / "captions-00000.safetensors", {"about": text})
    assert begun(tmp_path) is None


def test_parts_of_which_nothing_can_be_read_stay_beside_a_whole_set(tmp_path):
    wanted = order(tmp_path)
    draw_set(wanted)
    wanted.parts.mkdir()
    (wanted.parts / "settings.json").write_text(JSON["lists"])
    assert draw_set(wanted) == wanted.npz
    assert (wanted.parts / "settings.json").exists()


def test_a_class_of_too_many_digits_is_named(tmp_path):
    for name, held in (("0.png", b""), ("0.cls", b"1" * 5000)):
        (tmp_path / name).write_bytes(held)
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for name in ("0.png", "0.cls"):
            made.add(tmp_path / name, name)
    with pytest.raises(UserError, match=r"x\.tar': '0' has a \.cls that is no class: a number of 5000 digits"):
        open_source(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("text", YAML)
@pytest.mark.parametrize("name", ["card.yaml", "config.yaml"])
def test_yaml_that_cannot_be_read_is_one_line_that_names_its_file(name, text, tmp_path):
    (tmp_path / name).write_text(YAML[text])
    with pytest.raises(UserError, match=rf"{name}' is not YAML: .") as error:
        Pipeline.from_pretrained(tmp_path) if name == "card.yaml" else load_yaml(tmp_path / name)
    assert "\n" not in str(error.value)


def test_what_can_be_read_is_what_json_makes_of_it():
    for text in ('{"a": [1, 2.5, null, "\u00e9"]}', "[]", "3", "NaN"):
        assert repr(parse_json(text)) == repr(parse_json(text.encode())) == repr(json.loads(text))
