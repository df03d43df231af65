"""Networks by name: one of a paper's, or that of the checkpoint which training starts from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ditwright.cli.info import NETWORKS
from ditwright.cli.main import main
from ditwright.cli.recipe import asked
from ditwright.codec.config import CodecConfig
from ditwright.config import from_dict, read_yaml
from ditwright.data.base import Pictures
from ditwright.data.sources import SOURCES
from ditwright.errors import UserError
from ditwright.experiment import DataConfig, TrainConfig
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.weights import read_safetensors
from ditwright.pipeline import WEIGHTS, Pipeline, start
from ditwright.recipes import RECIPES
from ditwright.run import assemble, train
from ditwright.text.config import TextConfig
from ditwright.train.config import LogConfig
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints
from small_published import flux, pixart, sd3

ALONE = World(torch.device("cpu"))
QUICK = "--precision fp32 --data.batch_size 2 --log.every 1 --log.preview_every 0 --log.checkpoint_every 1"
HEARS = DiTConfig(
    width=16,
    heads=2,
    stages=(Stage(1, cross=True),),
    channels=1,
    out_channels=1,
    num_classes=0,
    context="cross",
    text_width=16,
    text_vocab=300,
    text_depth=1,
    text_heads=2,
)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def average(checkpoint):
    return read_safetensors(checkpoint / WEIGHTS)


def typed(*words):
    """The configuration that `ditwright train` makes of some words."""
    config, _ = asked([str(word) for word in words], RECIPES, verb="train", what="", example="", networks=NETWORKS)
    return config


def goes_on_alone(words, run, place):
    """Train a step, take the place away, and two more by the same words; the configuration that the run keeps."""
    words = [*map(str, words), *QUICK.split(), "--output", str(run)]
    assert main(["train", *words, "--steps", "1"]) == 0
    shutil.rmtree(place)
    assert main(["train", *words, "--steps", "3"]) == 0
    assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2, 3]
    first, *_, last = checkpoints(run)
    assert not same(average(first), average(last))
    return read_yaml(TrainConfig, run / "config.yaml")


PUBLISHED = {  # pipeline, kind and length of its text, and what is its own
    "sd3": (sd3, {}, "sd3", "--text.t5_length 256", "--data.encoder_drop 0.4,0.4,0.4"),
    "flux dev": (flux, {}, "flux", "--text.t5_length 512", "--data.guidance_scale 2"),
    "flux schnell": (flux, {"guidance": False}, "flux", "--text.t5_length 256", ""),
    "pixart": (pixart, {}, "t5", "--text.length 120 --text.lower true", "--objective.times discrete"),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """published(name) is a folder of stock's and shards of latents and captions that its encoders made."""
    libraries, made = [pytest.importorskip(name) for name in ("diffusers", "transformers")], {}

    def of(name):
        if name not in made:
            folder, (make, options, kind, text, _) = tmp_path_factory.mktemp("published"), PUBLISHED[name]
            make(*libraries, folder / "tokenizers", **options).save_pretrained(folder / "place")
            (folder / "pictures").mkdir()
            told = [{"file_name": f"{i}.png", "text": f"a circle and {i} squares"} for i in range(6)]
            for row, pixels in zip(
                told, np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8), strict=True
            ):
                Image.fromarray(pixels).save(folder / "pictures" / row["file_name"])
            (folder / "pictures/metadata.jsonl").write_text("\n".join(map(json.dumps, told)))
            place, shards = str(folder / "place"), str(folder / "shards")
            words = ["--codec", place, "--text.kind", kind, *text.split(), "--text.source", place, "--output", shards]
            assert main(["prepare", str(folder / "pictures"), *words]) == 0
            made[name] = folder
        return made[name]

    return of


@pytest.mark.parametrize("recipe", ["photos", "scenes"])  # one that leaves the text open, and one that does not
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_tuned_and_then_not_needed(name, recipe, published, tmp_path):
    folder, more = published(name), PUBLISHED[name][-1].split()
    place = shutil.copytree(folder / "place", tmp_path / "place")
    words = [recipe, "--init", place, "--model", "init", "--data.source", folder / "shards", *more]
    there = Pipeline.from_pretrained(place)
    started = assemble(typed(*words), ALONE)
    assert same(started.denoiser.state_dict(), there.denoiser.state_dict())
    kept = goes_on_alone(words, tmp_path / "run", place)
    assert (kept.model, kept.process, kept.sample) == (there.card.model, there.card.process, there.card.sample)
    assert (kept.text.kind, kept.codec.kind, kept.init) == (PUBLISHED[name][2], "kl", str(place))
    assert kept.data.guidance_scale == (2 if name == "flux dev" else 3.5)
    assert kept.optim == RECIPES[recipe]().optim


def test_a_named_network_trains_on_what_fits_it(published, tmp_path):
    folder, run = published("sd3"), tmp_path / "run"
    words = ["photos", "--data.source", folder / "shards", "--model", "SD3-S", "--output", run, "--steps", "2"]
    small = ["--model.width", "64", "--model.heads", "1", "--model.stages.0.depth", "1"]
    with pytest.raises(UserError, match=r"gives states of width 40; model\.text_width is 512"):
        train(typed(*words, *small), run)
    words += [*small, "--model.text_width", "40", "--model.pooled_width", "26", *QUICK.split()]
    assert main(["train", *map(str, words)]) == 0
    kept, named = read_yaml(TrainConfig, run / "config.yaml").model, NETWORKS["SD3-S"]
    stages = (replace(named.stages[0], depth=1), named.stages[1])
    assert kept == replace(named, width=64, heads=1, stages=stages, text_width=40, pooled_width=26)
    assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2]


def test_a_run_is_tuned_by_a_recipe_of_another_network(tiny_run, tmp_path):
    place = shutil.copytree(tiny_run, tmp_path / "place")
    words = ["digits", "--init", place, "--model", "init", "--seed", "3"]
    started, there = assemble(typed(*words), ALONE), Pipeline.from_pretrained(place).card
    assert same(started.denoiser.state_dict(), average(checkpoints(tiny_run)[-1]))
    assert (started.config.model, started.config.codec) == (there.model, there.codec)
    kept = goes_on_alone(words, tmp_path / "run", place)
    assert (kept.model, kept.sample) == (there.model, there.sample)
    assert there.model.width != RECIPES["digits"]().model.width


def test_keys_change_what_comes_from_there(tiny_run, tmp_path):
    (tmp_path / "a.yaml").write_text("model: {width: 999}\nsample: {num_inference_steps: 7}")
    (tmp_path / "b.yaml").write_text("model: init\ninit: nowhere")
    files = ["--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml"]
    there = Pipeline.from_pretrained(tiny_run).card
    config = typed("imagenet", *files, "--init", tiny_run, "--model.num_classes", "3", "--data.batch_size", "5")
    assert config.model == replace(there.model, num_classes=3)
    assert config.sample == replace(there.sample, num_inference_steps=7)
    assert (config.process, config.data.batch_size) == (there.process, 5)


def test_its_tokenizer_comes_along_and_stays(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    for name, words in (("first", "a red square and a blue one"), ("second", "green rings")):
        data = Pictures(pixels, np.zeros(4, np.int64), (), texts=(words,) * 4)
        monkeypatch.setitem(SOURCES, name, lambda size=None, data=data: data)
    place, codec, log = tmp_path / "place", CodecConfig("pixels", channels=1), LogConfig(preview_every=0)
    text, data = TextConfig("bytes", length=40), DataConfig("first", batch_size=4)
    train(TrainConfig(steps=2, model=HEARS, text=text, codec=codec, data=data, log=log), place, ALONE)
    learnt = Pipeline.from_pretrained(place).card.text.fingerprint
    words = ["scenes", "--init", place, "--model", "init", "--data.source", "second"]
    kept = goes_on_alone(words, tmp_path / "run", place)
    assert (kept.text.fingerprint, kept.text.length) == (learnt, RECIPES["scenes"]().text.length)
    assert kept.text.source == str(tmp_path / "run/checkpoints/step-00000001/text")


def test_weights_are_read_once(tiny_run, tmp_path, monkeypatch):
    read, load = [], start.load
    monkeypatch.setattr(start, "load", lambda name: (read.append(name), load(name))[1])
    words = [
        "digits",
        "--init",
        tiny_run,
        "--model",
        "init",
        *QUICK.split(),
        "--steps",
        "1",
        "--output",
        tmp_path / "run",
    ]
    assert main(["train", *map(str, words)]) == 0
    assert read == [str(tiny_run)]
    assert start.loaded.cache_info().currsize == 0
    assert main(["train", *map(str, words), "--log.keep", "5"]) == 0
    assert len(read) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model init", "model init is the network of the checkpoint that --init names: give --init PLACE"),
        ("--model init --init nowhere", "there is no run or checkpoint folder 'nowhere'"),
        ("--model SD3-s --init nowhere", "unknown model 'SD3-s'; known: .*, init .did you mean 'SD3-S'"),
        ("--model inti", "unknown model 'inti'; known: .*did you mean 'init'"),
    ],
)
def test_a_network_that_is_not_there_is_one_line(words, said):
    with pytest.raises(UserError, match=said):
        typed("digits", *words.split())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_info_has_its_keys(name, command):
    """The recipe's process is made to fit it."""
    network = NETWORKS[name]
    learned = str(network.out_channels == 2 * network.channels).lower()
    code, out, err = command("train", "photos", "--model", name, "--process.learned_var", learned, "--print-config")
    assert (code, err) == (0, "")
    found = from_dict(TrainConfig, yaml.safe_load(out))
    assert found.model == network
    assert replace(found.process, learned_var=False) == RECIPES["photos"]().process


def test_the_last_name_counts_and_the_keys_after_it(tmp_path):
    for name, text in (
        ("a", "model: {width: 1, patch: [3, 3]}"),
        ("b", "model: FLUX-S\noptim: {lr: 1, clip: 3}"),
        ("c", "model: {stages: {0: {depth: 3}}}\noptim: {lr: 2}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    a, b, c = (("--config", tmp_path / f"{name}.yaml") for name in "abc")
    named = NETWORKS["FLUX-S"]
    found = typed("photos", *a, *b, *c, "--model.qk_norm", "false")
    assert found.model == replace(named, qk_norm=False, stages=(replace(named.stages[0], depth=3), named.stages[1]))
    assert (found.optim.lr, found.optim.clip) == (2, 3)
    assert typed("photos", *a, *b, *c, "--model=SD3-S").model == NETWORKS["SD3-S"]
    assert typed("photos", *b, "--model", "SD3-S", "--model.qk_norm", "false").model.qk_norm is False


def test_what_does_not_fit_a_named_network_is_one_line(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "the codec gives 3: `ditwright prepare` makes latents" in refused("train", "scenes", "--model", "SD3-S")
    assert "model.out_channels must be 4" in refused("train", "photos", "--model", "DiT-S/2", "--print-config")
    assert "unknown key 'model.widht'" in refused("train", "photos", "--model", "SD3-S", "--model.widht", 3)
    assert "model.num_classes is 1000" in refused("train", "digits", "--model", "LightningDiT-B/2")
    assert "model must be a group of keys" in refused("train-codec", "photos", "--model", "SD3-S")
