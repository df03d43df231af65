"""From captions to pictures: a network that hears text is trained, saved, and asked with prompts."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright.cli.main import main
from ditwright.codec.config import CodecConfig
from ditwright.conditions import Captions, Classes
from ditwright.data.base import Pictures
from ditwright.data.sources import SOURCES
from ditwright.diffusion.config import SampleConfig
from ditwright.diffusion.process import Denoiser
from ditwright.errors import UserError
from ditwright.experiment import DataConfig, TrainConfig
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from ditwright.pipeline import Pipeline
from ditwright.pipeline.asks import of_labels, of_texts, told_beside
from ditwright.run import assemble, batches, train
from ditwright.text.base import encoder_from
from ditwright.text.config import TextConfig
from ditwright.text.cuts import cuts_told_once
from ditwright.train.config import LogConfig, OptimConfig
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints

pytest.importorskip("tokenizers")
WORLD = World(torch.device("cpu"))
WORDS = ("a red square", "a blue square", "two red squares", "nothing")
CROSS = DiTConfig(
    width=16,
    heads=2,
    stages=(Stage(2, cross=True),),
    patch=(4, 4),
    channels=1,
    out_channels=1,
    num_classes=0,
    context="cross",
    text_width=16,
    text_vocab=300,
    text_depth=1,
    text_heads=2,
)
JOINT = replace(CROSS, context="stream", stages=(Stage(1, lanes="own"), Stage(1, lanes="own", read_only=True)))
SINGLE = replace(CROSS, context="stream", stages=(Stage(1, lanes="own"), Stage(1, parallel=True)))
ROUTES = {"cross": CROSS, "joint": JOINT, "parallel": SINGLE}


def captioned():
    images = np.arange(16 * 64, dtype=np.int64).reshape(16, 8, 8, 1) * 7 % 256
    return Pictures(images.astype(np.uint8), np.zeros(16, np.int64), (), texts=WORDS * 4)


@pytest.fixture(autouse=True)
def source(monkeypatch):
    monkeypatch.setitem(SOURCES, "words", lambda size=None: captioned())


def config(model=CROSS, **changes):
    return replace(
        TrainConfig(
            steps=4,
            model=model,
            precision="fp32",
            text=TextConfig("bytes", length=12),
            codec=CodecConfig("pixels", channels=1),
            data=DataConfig("words", batch_size=4, label_drop=0.5, prefetch=0),
            optim=OptimConfig(lr=1e-2),
            sample=SampleConfig("euler", num_inference_steps=3, guidance_scale=2.0, batch_size=4),
            log=LogConfig(every=1, preview_every=4, checkpoint_every=2),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "words", lambda size=None: captioned())
        folder = tmp_path_factory.mktemp("run")
        train(config(), folder, WORLD)
        return folder


@pytest.fixture
def pipe(run):
    """Its weights moved, so that every condition shows."""
    made, noise = Pipeline.from_pretrained(run), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.denoiser.parameters():
            p.add_(torch.randn(p.shape, generator=noise), alpha=0.2)
    return made


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_trains_and_draws(route, tmp_path):
    train(config(ROUTES[route]), tmp_path, WORLD)
    (image,) = Pipeline.from_pretrained(tmp_path)("two blue squares").images
    assert image.size == (8, 8)
    assert (tmp_path / "samples" / "step-00000004.png").exists()


def test_a_checkpoint_brings_its_tokenizer_and_another_place_does_not_matter(run, tmp_path):
    checkpoint = checkpoints(run)[-1]
    assert (checkpoint / "text" / "tokenizer.json").is_file()
    moved = checkpoint.rename(tmp_path / "moved")
    try:
        made = Pipeline.from_pretrained(moved)
        assert made.encoder(["a red square"])["text"].shape == (1, 12)
        made.save_pretrained(tmp_path / "copy")
        again = Pipeline.from_pretrained(tmp_path / "copy")
        assert np.array_equal(made.draw(["a red square"]), again.draw(["a red square"]))
        assert "text-to-image" in (tmp_path / "copy" / "README.md").read_text()
    finally:
        moved.rename(checkpoint)


def test_going_on_gives_what_never_stopping_gives(run, tmp_path, contents):
    train(config(steps=2), tmp_path / "run", WORLD)
    train(config(), tmp_path / "run", WORLD)
    for name in ("model.safetensors", "train.safetensors"):
        ours, theirs = (checkpoints(folder)[-1] / name for folder in (tmp_path / "run", run))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_share_of_the_captions_is_dropped_by_place(run):
    parts = assemble(config(), WORLD)
    empty = parts.encoder([""])["text"][0]
    seen = [next(batches(parts, number)).cond["text"] for number in range(16)]
    dropped = torch.cat([(text == empty).all(1) for text in seen])
    assert 0.25 < dropped.float().mean() < 0.75
    again = torch.cat([(next(batches(parts, number)).cond["text"] == empty).all(1) for number in range(16)])
    assert torch.equal(dropped, again)
    none = Captions(parts.encoder, 0)(parts.data, np.arange(4), range(4), 0.0)["text"]
    assert torch.equal(none, parts.encoder(list(WORDS))["text"])
    every = Captions(parts.encoder, 0)(parts.data, np.arange(4), range(4), 1.0)["text"]
    assert torch.equal(every, empty.expand(4, -1))
    assert Classes(0, 0)(parts.data, np.arange(4), range(4), 0.5) == {}


def test_a_picture_is_the_same_in_any_batch(pipe):
    prompts = [*WORDS, None, "a red square"]
    together = pipe.draw(prompts, seed=3)
    alone = [pipe.draw([prompt], seed=3, first=i, batch_size=1)[0] for i, prompt in enumerate(prompts)]
    assert np.array_equal(together, alone)
    assert len({image.tobytes() for image in together}) == len(prompts)


def test_one_prompt_is_one_picture_everywhere(pipe):
    (picture,) = pipe.draw("a red square", seed=2)
    *_, last = pipe.steps("a red square", seed=2)
    *_, frame = pipe.frames("a red square", seed=2)
    assert last.x.shape[0] == 1
    assert np.array_equal(frame.images, picture[None])


def test_captions_that_are_too_long_are_told_once(run, tmp_path, capsys):
    short = replace(config(), text=TextConfig("bytes", length=3), log=LogConfig(every=1, preview_every=0))
    in_a_thread = replace(short, data=replace(short.data, prefetch=2))
    train(in_a_thread, tmp_path / "run", WORLD)
    said = [line for line in capsys.readouterr().err.splitlines() if "cut" in line]
    assert re.match(r"note: the prompt was cut after 3 tokens; lost: '.+'", said[0])
    assert re.match(r"note: \.\.\. and \d more such cuts$", said[1])
    assert len(said) == 2
    with pytest.warns(UserWarning, match="other"), cuts_told_once(print):
        warnings.warn("other", UserWarning, stacklevel=1)
    assert capsys.readouterr().out == ""


def test_a_place_of_a_text_encoder_is_the_same_from_every_folder(run, tmp_path, monkeypatch):
    shutil.copytree(checkpoints(run)[-1] / "text", tmp_path / "tokens")
    monkeypatch.chdir(tmp_path)
    parts = assemble(replace(config(), text=TextConfig("bytes", "tokens", length=12)), WORLD)
    assert parts.config.text.source == str(tmp_path / "tokens")


def test_prompts_and_what_they_must_not_be_are_heard(pipe):
    (plain,), (other,), (turned,) = (
        pipe("a red square", seed=1, output_type="np", **more).images
        for more in ({}, {"guidance_scale": 1.0}, {"negative_prompt": "a blue square"})
    )
    assert not np.array_equal(plain, other)
    assert not np.array_equal(plain, turned)
    (same,) = pipe("a red square", seed=1, output_type="np", negative_prompt="").images
    assert np.array_equal(plain, same)
    both = pipe(["a red square", "nothing"], seed=1, negative_prompt=["a blue square", ""], output_type="np").images
    assert np.array_equal(both[0], turned)
    with pytest.warns(UserWarning, match="negative_prompt has no effect at guidance_scale 1"):
        pipe("a red square", negative_prompt="blue", guidance_scale=1.0)


def test_what_cannot_be_asked_is_one_line(pipe, run, tmp_path):
    for ask, message in (
        (lambda: pipe([3]), "this network hears text: give prompts; got 3"),
        (lambda: pipe("a", class_labels=[1]), "give a prompt or class_labels, not both"),
        (lambda: pipe(["a", "b"], negative_prompt=["c", "d", "e"]), "one for each of 2 pictures; got 3"),
        (lambda: pipe("a", height=10), "is not divisible by 4x4"),
        (lambda: assemble(config(text=TextConfig()), WORLD), "text.kind is none: name an encoder"),
        (lambda: assemble(config(replace(CROSS, text_vocab=200)), WORLD), "at least 259; got 200"),
        (lambda: assemble(config(data=DataConfig("digits", batch_size=4)), WORLD), "pictures without captions"),
        (lambda: assemble(config(text=TextConfig("bytes", str(tmp_path))), WORLD), "there is no tokenizer"),
    ):
        with pytest.raises(UserError, match=message.replace("(", r"\(")) as refused:
            ask()
        assert "\n" not in str(refused.value)


def test_a_call_hears_at_most_512_tokens_or_as_many_as_the_encoder_was_told(pipe):
    assert pipe.encode_prompt("a", max_sequence_length=512)["prompt_embeds"].shape == (1, 512)
    with pytest.raises(UserError, match=r"^max_sequence_length is at most 512, or text.length where .*; got 513$"):
        pipe.encode_prompt("a", max_sequence_length=513)
    told = replace(pipe.encoder.config, length=600)
    longer = Pipeline(pipe.denoiser, pipe.card, encoder=encoder_from(told))
    assert longer.encode_prompt("a", max_sequence_length=600)["prompt_embeds"].shape == (1, 600)
    with pytest.raises(UserError, match=r"got 601$"):
        longer.encode_prompt("a", max_sequence_length=601)


def test_classes_take_no_negative_prompt():
    from small_pipelines import pipeline

    with pytest.raises(UserError, match="negative_prompt is for networks that hear text"):
        pipeline()([1], negative_prompt="blue")


def test_prompts_of_unequal_length_meet_in_one_batch():
    cond = {"text": torch.ones(2, 3, 4), "pooled": torch.ones(2, 5)}
    null = {"text": torch.zeros(2, 5, 4), "text_mask": torch.tensor([[True] * 2 + [False] * 3] * 2)} | {
        "pooled": torch.zeros(2, 5)
    }
    asks = of_texts(cond, null)
    assert asks.cond["text"].shape == asks.null["text"].shape == (2, 5, 4)
    assert asks.cond["text_mask"].tolist() == [[True, True, True, False, False]] * 2
    assert asks.null["text_mask"].sum() == 4
    alike = of_texts(cond, {name: 0 * x for name, x in cond.items()})
    assert "text_mask" not in alike.cond  # nothing is padded, so nothing is masked
    ids = of_texts({"text": torch.ones(1, 2).long()}, {"text": torch.ones(1, 4).long()})
    assert ids.cond["text"].tolist() == [[1, 1, 0, 0]]
    filled = of_labels([4, 5], 9, torch.device("cpu")).rows(1, 2, fill=2)
    assert (filled.count, filled.cond["label"].tolist(), filled.null["label"].tolist()) == (3, [5] * 3, [9] * 3)


def test_a_network_is_told_the_guidance_that_it_imitates_and_is_not_guided_besides(pipe, monkeypatch):
    model = replace(SINGLE, guidance=True)
    denoiser = Denoiser(build(model), pipe.denoiser.process)
    made = Pipeline(denoiser, replace(pipe.card, model=model), encoder=pipe.encoder)
    seen = []
    monkeypatch.setattr(
        denoiser.net, "forward", lambda x, t, cond, **net: seen.append((len(x), cond["guidance"].tolist())) or 0 * x
    )
    made.draw(["a red square"], guidance_scale=3.5)
    assert seen
    assert all(entry == (8, [3.5] * 8) for entry in seen)  # filled up to 8 rows, and never doubled for guidance


def test_a_network_is_told_the_size_of_its_picture(pipe):
    card = replace(pipe.card, model=replace(CROSS, width=24, heads=2, sizes=True))
    asks, config = told_beside(of_labels([1, 1], 3, torch.device("cpu")), card, pipe.card.sample, (64, 96))
    assert asks.cond["size"].tolist() == pytest.approx(np.array([[64, 96, 64 / 96]] * 2))
    assert torch.equal(asks.cond["size"], asks.null["size"])
    assert "guidance" not in asks.cond
    assert config == pipe.card.sample


def test_a_network_without_its_encoder_says_so(pipe):
    alone = Pipeline(pipe.denoiser, replace(pipe.card, text=TextConfig()))
    with pytest.raises(UserError, match="names no text encoder: pass encoder="):
        alone("a red square")


def test_the_command_line_takes_prompts(run, capsys, tmp_path):
    words = ("--prompt", "a red square", "nothing", "--negative-prompt", "blue", "--output", tmp_path / "out")
    assert main(["sample", str(run), *map(str, words)]) == 0
    assert "2 pictures and grid.png" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "seed0-00001.png") as opened:
        facts = json.loads(opened.text["parameters"])
    assert (facts["prompt"], facts["negative_prompt"]) == ("nothing", "blue")
    quiet = ["--prompt", "nothing", "--negative-prompt", "blue", "--guidance-scale", "1", "--output", str(tmp_path)]
    assert main(["sample", str(run), *quiet]) == 0
    assert (
        capsys.readouterr().err == "note: --negative-prompt has no effect at guidance_scale 1, which is no guidance\n"
    )
    quiet[4:6] = "--guidance-interval", "0", "0"
    assert main(["sample", str(run), *quiet]) == 0
    assert "note: --negative-prompt has no effect with a --guidance-interval that ends at 0" in capsys.readouterr().err
    assert main(["sample", str(run), "--prompt", "", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().err.startswith("note: an empty prompt asks for nothing in particular")
    assert main(["sample", str(run), "--prompt", "red " * 30, "--output", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: the prompt was cut after 12 tokens; lost: '")
    for bad, said in (
        ((), "give --prompt TEXT"),
        (("--class-labels", "1"), "this network hears text: give --prompt"),
        (("--num-fid-samples", "4"), "captions are missing, for this network hears text"),
    ):
        assert main(["sample", str(run), *bad, "--output", str(tmp_path / "no")]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["the file", "the file beside another", "the folder"])
def test_a_checkpoint_without_its_tokenizer_says_so_when_it_is_asked(lost, run, tmp_path, capsys):
    text = shutil.copytree(checkpoints(run)[-1], tmp_path / "copy") / "text"
    (text / "tokenizer.json").unlink()
    if lost == "the file beside another":
        (text / "other").touch()
    if lost == "the folder":
        text.rmdir()
    missing = f"there is no tokenizer {str(text / 'tokenizer.json')!r}: bring it back; "
    with pytest.raises(UserError, match=re.escape(missing)) as refused:
        Pipeline.from_pretrained(tmp_path / "copy")("a red square")
    assert "\n" not in str(refused.value)
    assert "prompt_embeds" not in str(refused.value)  # which such a network does not take
    assert main(["sample", str(tmp_path / "copy"), "--prompt", "a", "--output", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert missing in line
    assert "--text-encoder" in line
    assert not (tmp_path / "out").exists()
    again = Pipeline.from_pretrained(tmp_path / "copy", encoder=str(checkpoints(run)[-1] / "text"))
    assert np.array_equal(again.draw(["nothing"]), Pipeline.from_pretrained(run).draw(["nothing"]))
