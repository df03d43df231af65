"""What a network is told besides its class or caption: the guidance that it imitates, and its picture's size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditwright.codec.config import CodecConfig
from ditwright.conditions import Classes, conditions_of
from ditwright.config import merge, overrides
from ditwright.data.base import Group, Pictures
from ditwright.data.sources import SOURCES
from ditwright.diffusion.config import SampleConfig
from ditwright.errors import UserError
from ditwright.experiment import DataConfig, MeasureConfig, TrainConfig
from ditwright.metrics.judge import learn_judge
from ditwright.model.baseline import UNetConfig
from ditwright.model.config import DiTConfig, Stage
from ditwright.pipeline import Card, Pipeline
from ditwright.pipeline.asks import of_labels, told_beside
from ditwright.replay import replay
from ditwright.run import assemble, batches, train, validate
from ditwright.train.config import LogConfig, OptimConfig
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints

ALONE = World(torch.device("cpu"))
TOLD = DiTConfig(
    width=24,
    heads=2,
    stages=(Stage(1),),
    channels=1,
    out_channels=1,
    num_classes=3,
    guidance=True,
    sizes=True,
)


def pictures(height, width, count=18):
    images = np.arange(count * height * width, dtype=np.int64).reshape(count, height, width, 1) * 37 % 256
    return Pictures(images.astype(np.uint8), np.arange(count) % 3, ("a", "b", "c"))


class TwoSizes:
    """Items 0 to 11 are of 8 x 8 pixels, 12 to 23 of 12 x 4."""

    class_names, codec = ("a", "b", "c"), None
    groups = (Group((8, 8), np.arange(12)), Group((12, 4), np.arange(12, 24)))

    def labels(self, items):
        return items % 3

    def captions(self, items):
        return [None] * len(items)

    def read(self, items, flips):
        size = (8, 8) if items[0] < 12 else (12, 4)
        return pictures(*size).read(items % 12, flips)


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    monkeypatch.setitem(SOURCES, "one size", lambda size=None: pictures(8, 12))
    monkeypatch.setitem(SOURCES, "two sizes", lambda size=None: TwoSizes())


def config(**changes):
    """A run of three steps that is told both."""
    made = TrainConfig(
        steps=3,
        model=TOLD,
        precision="fp32",
        codec=CodecConfig("pixels", channels=1),
        data=DataConfig("two sizes", batch_size=4),
        optim=OptimConfig(warmup=1, schedule="constant"),
        sample=SampleConfig("euler", 2, guidance_scale=2.0),
        log=LogConfig(every=1, preview_every=3, checkpoint_every=2),
    )
    return replace(made, **changes)


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_batch_is_told_its_own_size_and_the_scale_that_is_set():
    parts = assemble(config(data=DataConfig("two sizes", batch_size=4, guidance_scale=2.5)), ALONE)
    seen = set()
    for _, batch in zip(range(12), batches(parts, 0), strict=False):
        height, width = batch.x0.shape[2:]
        seen.add((height, width))
        assert torch.equal(batch.cond["size"], torch.tensor([[height, width, height / width]] * 4))
        assert torch.equal(batch.cond["guidance"], torch.full((4,), 2.5))
        assert batch.cond["label"].shape == (4,)
    assert seen == {(8, 8), (12, 4)}


def test_a_size_is_in_pixels_where_the_data_is_latents():
    class Latents(TwoSizes):
        groups = (Group((64, 96), np.arange(12)),)

    told = conditions_of(TOLD, None, 0, guidance=3.5)(Latents(), np.arange(2), range(2), 0.0)
    assert told["size"].tolist() == pytest.approx(np.array([[64, 96, 64 / 96]] * 2))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_it_is_what_sampling_tells_and_no_share_is_dropped(share):
    """A label is: sampling asks for nothing in particular at the same size and scale."""
    told = conditions_of(TOLD, None, 0, guidance=4.5)(TwoSizes(), np.arange(12, 15), range(3), share)
    card = Card(TOLD, config().process, CodecConfig("pixels", channels=1), SampleConfig(guidance_scale=4.5))
    asks, _ = told_beside(of_labels([0, 1, 2], 3, torch.device("cpu")), card, card.sample, (12, 4))
    sampled = asks.null if share else asks.cond
    assert told.keys() == sampled.keys() == {"label", "size", "guidance"}
    for name, value in sampled.items():
        assert value.dtype == told[name].dtype
        assert torch.equal(told[name], value)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"label"}),
        ({"guidance": True}, {"label", "guidance"}),
        ({"sizes": True}, {"label", "size"}),
        ({"sizes": True, "num_classes": 0}, {"size"}),
    ],
)
def test_a_network_is_told_no_more_than_it_asks(changes, names):
    model = replace(TOLD, **({"guidance": False, "sizes": False} | changes))
    told = conditions_of(model, None, 0, guidance=3.5)
    assert told(TwoSizes(), np.arange(2), range(2), 0.1).keys() == names
    assert isinstance(told, Classes) == (names == {"label"})


def test_a_unet_is_told_classes():
    unet = UNetConfig(width=16, levels=(1,), depth=1, attention=0, head_width=16, groups=8, channels=1, out_channels=1)
    assert conditions_of(unet, None, 0, guidance=3.5) == Classes(unet.num_classes, 0)


def test_such_a_network_trains_validates_measures_previews_and_goes_on(tmp_path):
    judge = learn_judge(pictures(8, 12).images, pictures(8, 12).targets, dataset="one size", steps=2)
    judge.save(tmp_path / "judge.safetensors")
    whole = config(
        data=DataConfig("one size", batch_size=4, validation="one size", validation_size=6),
        measure=MeasureConfig(
            2, f"judge:{tmp_path / 'judge.safetensors'}", samples=4, rounds=0, metrics=("fid",), guidance_scale=2.0
        ),
    )
    train(whole, tmp_path / "run", ALONE)
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert [line["step"] for line in lines if "val_loss" in line] == [3]
    assert [line["step"] for line in lines if "scores" in line] == [2, 3]
    assert (tmp_path / "run/samples/step-00000003.png").is_file()
    assert Pipeline.from_pretrained(tmp_path / "run").draw([0, 1], guidance_scale=3.5).shape == (2, 8, 12, 1)
    train(replace(whole, steps=2), tmp_path / "parts", ALONE)
    train(whole, tmp_path / "parts", ALONE)
    again = lines_of(tmp_path / "parts")
    for key in ("loss", "val_loss"):
        assert [line[key] for line in again if key in line][-1] == [line[key] for line in lines if key in line][-1]


def test_a_step_of_it_is_done_again_to_the_digit(tmp_path):
    train(config(), tmp_path / "run", ALONE)
    for step in (2, 3):
        found = replay(tmp_path / "run", step)
        assert found.logged is not None
        assert found.loss == found.logged


def test_what_it_is_told_decides_what_it_learns(tmp_path):
    """Both embeddings have moved, and another scale gives other weights."""
    for name, scale in (("a", 3.5), ("b", 1.0)):
        data = DataConfig("two sizes", batch_size=4, guidance_scale=scale)
        train(config(data=data, optim=OptimConfig(warmup=1, lr=1e-2)), tmp_path / name, ALONE)
    before = assemble(config(), ALONE).denoiser.state_dict()
    first, second = (
        Pipeline.from_pretrained(checkpoints(tmp_path / name)[-1]).denoiser.state_dict() for name in ("a", "b")
    )
    for part in ("guidance", "size"):
        assert any(not torch.equal(first[key], before[key]) for key in before if f".{part}." in key)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_the_held_out_loss_is_told_too():
    """Of weights that all matter: at another scale it is another loss."""
    found = []
    for scale in (3.5, 1.0):
        data = DataConfig("one size", batch_size=4, validation="one size", guidance_scale=scale)
        parts = assemble(config(data=data), ALONE)
        noise = torch.Generator().manual_seed(0)
        for p in parts.ema.module.parameters():
            p.data.add_(torch.randn(p.shape, generator=noise), alpha=0.2)
        found.append(validate(parts).line["val_loss"])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data.guidance_scale 2", "data.guidance_scale is told to networks that imitate guidance"),
        ("--model.guidance true --data.guidance_scale -1", "data.guidance_scale must be 0 or more; got -1"),
    ],
)
def test_a_scale_that_nobody_hears_is_refused(words, said):
    plain = config(model=replace(TOLD, guidance=False))
    with pytest.raises(UserError, match=said):
        merge(plain, overrides(words.split()))
    with pytest.raises(UserError, match=r"data\.guidance_scale must be 0 or more; got inf"):
        DataConfig(guidance_scale=float("inf"))
    assert merge(plain, overrides(["--model.guidance", "true", "--data.guidance_scale", "2"])).data.guidance_scale == 2
