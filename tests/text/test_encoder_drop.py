"""SD3's three encoders are dropped in training, each by itself, at places that the seed tells."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from ditwright.codec.config import CodecConfig
from ditwright.conditions import Captions
from ditwright.data.base import Pictures
from ditwright.data.sources import SOURCES
from ditwright.diffusion.config import SampleConfig
from ditwright.errors import UserError
from ditwright.experiment import DataConfig, TrainConfig
from ditwright.model.config import DiTConfig, Stage
from ditwright.run import assemble, batches, train, validate
from ditwright.text.base import encoder_from
from ditwright.text.cache import CachedText, write_cache
from ditwright.text.config import TextConfig
from ditwright.text.sd3 import PARTS, widths_of
from ditwright.train.config import LogConfig
from ditwright.train.parallel import World

pytest.importorskip("transformers")
WORLD = World(torch.device("cpu"))
SHARES = (0.464, 0.2, 0.9)
WORDS = ("a red square", "a blue square")
MODEL = DiTConfig(
    width=16,
    heads=2,
    stages=(Stage(1, cross=True),),
    channels=1,
    out_channels=1,
    num_classes=0,
    context="cross",
    text_width=40,
    pooled_width=26,
)


@pytest.fixture(scope="module")
def encoder(sd3_folder):
    return encoder_from(TextConfig("sd3", str(sd3_folder), t5_length=20))


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setitem(SOURCES, "words", lambda size=None: captioned())


def captioned():
    return Pictures(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int64), (), texts=WORDS * 2)


def told(encoder, places, share=0.0, parts=SHARES):
    return Captions(encoder, 3)(captioned(), np.arange(len(places)) % 4, places, share, parts)


def lost(cond):
    """(B, 3) bool: which encoder said nothing; its states are never all zeros otherwise."""
    text, clip = cond["text"], cond["text"][:, :77]
    spans = (clip[..., :16], clip[..., 16:36], text[:, 77:])
    return torch.stack([~span.flatten(1).any(1) for span in spans], 1)


def config(folder, **data):
    return TrainConfig(
        steps=2,
        model=MODEL,
        precision="fp32",
        text=TextConfig("sd3", str(folder), t5_length=20),
        codec=CodecConfig("pixels", channels=1),
        data=DataConfig("words", batch_size=4, prefetch=0, **data),
        sample=SampleConfig("euler", num_inference_steps=2),
        log=LogConfig(every=1, preview_every=0),
    )


@pytest.fixture(scope="module")
def many(encoder):
    """Which encoders were dropped at 2,000 places."""
    cached = {text: encoder([text]) for text in WORDS}

    class Quick:
        config, widths = encoder.config, encoder.widths

        def __call__(self, prompts):
            return {key: torch.cat([cached[text][key] for text in prompts]) for key in ("text", "pooled")}

    return torch.cat([lost(told(Quick(), range(first, first + 100))) for first in range(0, 2000, 100)])


def test_each_is_dropped_at_its_own_rate_whatever_the_others_do(many):
    rates = many.double().mean(0)
    spread = [(share * (1 - share) / len(many)) ** 0.5 for share in SHARES]
    assert all(abs(rate - share) < 4 * s for rate, share, s in zip(rates.tolist(), SHARES, spread, strict=True))
    assert torch.corrcoef(many.T.double()).triu(1).abs().max() < 4 / len(many) ** 0.5
    assert many.all(1).double().mean().item() == pytest.approx(np.prod(SHARES), abs=0.03)


def test_what_is_dropped_is_a_matter_of_place_and_seed(encoder, many):
    whole = told(encoder, range(24))
    assert torch.equal(lost(whole), many[:24])
    for size in (1, 5, 24):
        parts = [told(encoder, range(i, min(i + size, 24))) for i in range(0, 24, size)]
        assert torch.equal(torch.cat([lost(part) for part in parts]), many[:24])
    other = Captions(encoder, 4)(captioned(), np.arange(24) % 4, range(24), 0.0, SHARES)
    assert not torch.equal(lost(other), many[:24])


def test_the_rest_is_as_without_it(encoder):
    cond, plain = told(encoder, range(12)), told(encoder, range(12), parts=())
    gone = lost(cond)
    assert not lost(plain).any()
    kept = encoder.without(plain, "clip_l", gone[:, 0])
    kept = encoder.without(kept, "clip_g", gone[:, 1])
    kept = encoder.without(kept, "t5", gone[:, 2])
    assert all(torch.equal(cond[name], kept[name]) for name in kept)
    empty = encoder([""])
    none = told(encoder, range(3), share=1.0, parts=(1.0, 0.0, 0.0))  # the empty caption, and of that two encoders
    assert torch.equal(none["text"], encoder.without(empty, "clip_l")["text"].expand(3, -1, -1))


def test_captions_that_are_encoded_already_are_dropped_alike(encoder, tmp_path):
    cached = write_cache(tmp_path, encoder, WORDS)
    left, right = told(encoder, range(16)), told(cached, range(16))
    assert torch.equal(lost(left), lost(right))
    assert lost(left).any()
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=0, atol=1e-5)
    cached.widths = {}
    with pytest.raises(UserError, match="do not tell the widths of SD3's encoders: encode them anew"):
        told(cached, range(2))


def test_training_drops_and_validation_does_not(sd3_folder, tmp_path):
    settings = config(sd3_folder, label_drop=0.0, encoder_drop=(1.0, 0.5, 0.5), validation="words", validation_size=4)
    parts = assemble(settings, WORLD)
    gone = torch.cat([lost(batch.cond) for batch in islice(batches(parts, 0), 8)])
    assert gone[:, 0].all()
    assert 0 < gone[:, 1].sum() < len(gone)
    plain = assemble(replace(settings, data=replace(settings.data, encoder_drop=(0.0, 0.0, 0.0))), WORLD)
    assert validate(parts) == validate(plain)
    train(settings, tmp_path / "run", WORLD)


def test_it_is_for_three_encoders(sd3_folder, folders, encoder):
    assert widths_of(encoder).keys() == PARTS.keys()
    other = replace(
        config(sd3_folder, encoder_drop=SHARES),
        model=replace(MODEL, pooled_width=0),
        text=TextConfig("t5", str(folders["t5"]), length=12),
    )
    with pytest.raises(UserError, match=r"three encoders of text.kind sd3, not for t5"):
        assemble(other, WORLD)
    with pytest.raises(UserError, match="not for none"):
        widths_of(None)
    with pytest.raises(UserError, match=r"data.encoder_drop must be three shares between 0 and 1; got \(0.5, 0.5, 2"):
        DataConfig(encoder_drop=(0.5, 0.5, 2.0))


def test_old_encoded_captions_are_read_as_before(encoder, tmp_path):
    write_cache(tmp_path, encoder, WORDS)
    index = json.loads((tmp_path / "captions.json").read_text())
    assert index.pop("widths") == {"clip_l": [16, 12], "clip_g": [20, 14], "t5": [40, 0]}
    (tmp_path / "captions.json").write_text(json.dumps(index))
    assert CachedText(tmp_path)(["a red square"])["text"].shape == (1, 97, 40)
