"""Captions in prepared folders: kept from every source, encoded once, trained from without the encoder's weights."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditwright.cli.main import main
from ditwright.codec.config import CodecConfig
from ditwright.conditions import encoder_for
from ditwright.config import from_dict, to_dict
from ditwright.data.base import Pictures, Record
from ditwright.data.shards import Shards
from ditwright.data.sources import SOURCES, open_dataset, open_source
from ditwright.diffusion.config import SampleConfig
from ditwright.errors import UserError
from ditwright.experiment import DataConfig, TrainConfig
from ditwright.model.config import DiTConfig, Stage
from ditwright.pipeline import Pipeline
from ditwright.prepare import PrepareConfig, prepare
from ditwright.prepare import captions as making
from ditwright.prepare.folder import locked
from ditwright.run import assemble, train
from ditwright.text import frozen
from ditwright.text.base import completed, encoder_from
from ditwright.text.cache import CachedText
from ditwright.text.config import TextConfig
from ditwright.text.frozen import Frozen
from ditwright.train.config import LogConfig, OptimConfig
from ditwright.train.parallel import World
from ditwright.train.state import checkpoints

pytest.importorskip("transformers")
PIXELS, SMALL, WORLD = CodecConfig("pixels"), PrepareConfig(shard_size=5, workers=1), World(torch.device("cpu"))
WORDS = ("a red square", "a blue square", "two red squares", "naïve ☃")


class Drawn:
    """Pictures of 8 x 8 with a caption each, some of them the same."""

    class_names = ()

    def __init__(self, words: tuple[str | None, ...] = WORDS * 3):
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, number: int) -> Record:
        pixels = np.full((8, 8, 3), number, np.uint8)
        return Record(f"drawn {number}", lambda: pixels, None, self.words[number])


@pytest.fixture
def text(folders) -> TextConfig:
    return TextConfig("t5", str(folders["t5"]), length=12, dtype="bf16")


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (grey,) * 3).save(file, "PNG")
    return file.getvalue()


def in_a_folder(place: Path) -> str:
    place.mkdir()
    for number in range(4):
        (place / f"{number}.png").write_bytes(png(number))
    rows = [{"file_name": f"{number}.png", "story": words} for number, words in enumerate(WORDS)]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"{place}:text=story"


def in_a_tar(place: Path) -> str:
    place.mkdir()
    with tarfile.open(place / "x.tar", "w") as tar:
        for number, words in enumerate(WORDS):
            for name, data in ((f"{number}.png", png(number)), (f"{number}.story", words.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"{place}/x.tar:text=story"


def of_datasets(place: Path) -> str:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (8, 8), (number,) * 3) for number in range(4)]
    data = datasets.Dataset.from_dict({"image": pictures, "story": WORDS})
    data.cast_column("image", datasets.Image()).save_to_disk(place)
    return f"hf:{place}:text=story"


def built_in(place: Path) -> str:
    return "words"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    made = Pictures(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), (), texts=WORDS)
    monkeypatch.setitem(SOURCES, "words", lambda size=None: made)


@pytest.mark.parametrize("make", [in_a_folder, in_a_tar, of_datasets, built_in])
def test_captions_of_every_source_are_kept(make, tmp_path):
    prepare(open_source(make(tmp_path / "in")), PIXELS, tmp_path / "out", SMALL)
    assert Shards(tmp_path / "out").captions(np.arange(4)) == list(WORDS)


def test_scenes_and_emoji_bring_theirs():
    from ditwright.data.scenes import scenes
    from ditwright.data.sources import Known

    source = Known("scenes", scenes(count=3))
    assert [source[number].caption for number in range(3)] == list(scenes(count=3).texts)


def test_captions_of_an_iterable_are_kept(tmp_path):
    rows = ({"image": np.full((8, 8, 3), n, np.uint8), "text": words} for n, words in enumerate(WORDS))
    prepare(rows, PIXELS, tmp_path, SMALL)
    assert Shards(tmp_path).captions(np.arange(4)) == list(WORDS)


def test_every_different_caption_is_encoded_once_and_the_empty_one(text, monkeypatch, tmp_path):
    asked = []
    real = Frozen.__call__
    monkeypatch.setattr(Frozen, "__call__", lambda self, prompts: asked.extend(prompts) or real(self, prompts))
    prepare(Drawn(), PIXELS, tmp_path, SMALL, text=text)
    assert asked == ["", *WORDS]
    cached = CachedText(tmp_path / "captions")
    wanted = encoder_from(text)(["", *WORDS])
    found = cached(["", *WORDS])
    assert torch.equal(found["text"][wanted["text_mask"]], wanted["text"][wanted["text_mask"]])
    assert found["text"].dtype == torch.bfloat16
    told = json.loads((tmp_path / "captions" / "captions.json").read_text())["encoder"]
    assert (told["fingerprint"], told["dtype"]) == (completed(text).fingerprint, "bf16")
    asked.clear()
    prepare(Drawn(), PIXELS, tmp_path, SMALL, text=text)
    prepare(Drawn(), PIXELS, tmp_path, SMALL)
    assert asked == []


class Killed(BaseException):
    """No line of the program that dies can catch it and go on to change the disk."""


def die_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """From the n-th change of the disk on, 0 first, no other happens."""
    changes = count()

    def watched(real):
        def change(*args, **more):
            if next(changes) >= number:
                raise Killed
            return real(*args, **more)

        return change

    for name in ("fsync", "replace", "unlink", "mkdir"):
        patch.setattr(os, name, watched(getattr(os, name)))


def test_a_kill_at_any_change_of_the_disk(text, contents, monkeypatch, tmp_path):
    monkeypatch.setattr(making, "SHARD", 2)
    prepare(Drawn(), PIXELS, tmp_path / "plain", SMALL)
    straight = shutil.copytree(tmp_path / "plain", tmp_path / "straight")
    prepare(Drawn(), PIXELS, straight, SMALL, text=text)
    wanted = contents(straight)
    assert len([name for name in wanted if name.startswith("captions/captions-")]) == 3
    encoder = encoder_from(text)  # its weights are read once for all attempts
    monkeypatch.setattr(making, "encoder_from", lambda config: encoder)
    for number in count():
        folder = shutil.copytree(tmp_path / "plain", tmp_path / f"killed-{number}")
        with pytest.MonkeyPatch.context() as patch:
            die_at(number, patch)
            try:
                prepare(Drawn(), PIXELS, folder, SMALL, text=text)
            except Killed:
                pass
            else:
                break
        prepare(Drawn(), PIXELS, folder, SMALL, text=text)
        assert contents(folder) == wanted, number
    assert number > 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_cleanly(text, contents, capsys, monkeypatch, number, tmp_path):
    monkeypatch.setattr(making, "SHARD", 2)
    prepare(Drawn(), PIXELS, tmp_path / "straight", SMALL, text=text)
    real = Frozen.__call__

    def signalled(self, prompts):
        if WORDS[1] in prompts:
            signal.raise_signal(number)
        return real(self, prompts)

    with monkeypatch.context() as patch:
        patch.setattr(Frozen, "__call__", signalled)
        with pytest.raises(SystemExit) as left:
            prepare(Drawn(), PIXELS, tmp_path / "left", SMALL, text=text)
    assert left.value.code == 128 + number
    assert f"{number.name}: 1 shards of captions are done; the same command goes on" in capsys.readouterr().err
    with pytest.raises(UserError, match="are not all encoded: run the same `ditwright prepare` again, or delete them"):
        encoder_for(text, HEARS, Shards(tmp_path / "left"))
    prepare(Drawn(), PIXELS, tmp_path / "left", SMALL, text=text)
    assert contents(tmp_path / "left") == contents(tmp_path / "straight")


def test_processes_share_the_captions(text, contents, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(making, "SHARD", 2)
    prepare(Drawn(), PIXELS, tmp_path / "one", SMALL, text=text)
    prepare(Drawn(), PIXELS, tmp_path / "two", SMALL)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "two" / "captions").mkdir()
    with locked(tmp_path / "two" / "captions" / ".captions-00000.lock", wait=False):  # the other process is at it
        assert prepare(Drawn(), PIXELS, tmp_path / "two", SMALL, text=text) is None
    assert "process 1 of 2 is done; others are still at work" in capsys.readouterr().err
    shards = sorted(path.name for path in (tmp_path / "two" / "captions").iterdir())
    assert shards == ["captions-00001.safetensors", "captions-00002.safetensors"]
    monkeypatch.setenv("RANK", "0")
    assert prepare(Drawn(), PIXELS, tmp_path / "two", SMALL, text=text).count == 12
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"dtype": "fp32"}, "text.dtype is bf16 there and fp32 now"),
        ({"length": 30}, "text.length is 12 there and 30 now"),
        ({"kind": "clip"}, "text.kind is t5 there and clip now"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(text, folders, contents, change, key, finished, tmp_path):
    prepare(Drawn(), PIXELS, tmp_path, SMALL, text=text)
    if not finished:
        (tmp_path / "captions" / "captions.json").unlink()
    before = contents(tmp_path)
    other = replace(text, **change)
    with pytest.raises(UserError, match=f"holds captions encoded with other settings: {key}; delete it to") as refused:
        prepare(Drawn(), PIXELS, tmp_path, SMALL, text=replace(other, source=str(folders[other.kind])))
    assert "\n" not in str(refused.value)
    assert contents(tmp_path) == before


def test_pictures_without_captions_are_named_before_they_are_begun_or_when_they_are_known(text, tmp_path):
    with pytest.raises(UserError, match=r"'drawn 0' has no caption \(its source brings no texts\); .*SOURCE:text=NAME"):
        prepare(Drawn((None, "a")), PIXELS, tmp_path / "none", SMALL, text=text)
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"2 of 3 pictures in .* have no caption, 'drawn 1' first"):
        prepare(Drawn(("a", None, None)), PIXELS, tmp_path / "some", SMALL, text=text)
    assert len(Shards(tmp_path / "some")) == 3
    with pytest.raises(
        UserError, match=r"other weights or another tokenizer \(\w{12}\) than the one asked for \(0{12}\)"
    ):
        prepare(Drawn(), PIXELS, tmp_path / "none", SMALL, text=replace(text, fingerprint="0" * 64))
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="gives ids that the network itself learns to read: there is nothing to encode"):
        prepare(Drawn(), PIXELS, tmp_path / "bytes", SMALL, text=TextConfig("bytes"))


def test_of_all_that_is_cut_one_caption_is_shown(text, capsys, tmp_path):
    words = tuple(f"number {number} of a great many long captions of a red square" for number in range(130))
    prepare(Drawn(words), PIXELS, tmp_path, SMALL, text=text)
    told = capsys.readouterr().err
    assert told.count("was cut after 12 tokens") == 1
    assert "note: ... and 2 more such cuts" in told


HEARS = DiTConfig(
    width=16,
    heads=2,
    stages=(Stage(2, cross=True),),
    patch=(4, 4),
    channels=3,
    out_channels=3,
    num_classes=0,
    context="cross",
    text_width=40,
)


def config(source: Path, **changes) -> TrainConfig:
    return replace(
        TrainConfig(
            steps=2,
            model=HEARS,
            precision="fp32",
            data=DataConfig(str(source), batch_size=4, label_drop=0.5, prefetch=0),
            optim=OptimConfig(lr=1e-2),
            sample=SampleConfig("euler", num_inference_steps=2, guidance_scale=2.0, batch_size=4),
            log=LogConfig(every=1, preview_every=2, checkpoint_every=2),
        ),
        **changes,
    )


@pytest.fixture
def prepared(text, folders, tmp_path) -> Path:
    """A folder with captions of an encoder that has gone since."""
    shutil.copytree(folders["t5"], tmp_path / "t5")
    prepare(Drawn(), PIXELS, tmp_path / "shards", SMALL, text=replace(text, source=str(tmp_path / "t5")))
    (tmp_path / "t5").rename(tmp_path / "gone")
    return tmp_path / "shards"


@pytest.mark.parametrize("named", [True, False])
def test_training_needs_no_weights_and_sampling_finds_them_again(text, prepared, named, tmp_path):
    asked = replace(text, source=str(tmp_path / "t5")) if named else TextConfig()
    train(config(prepared, text=asked), tmp_path / "run", WORLD)
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()
    with pytest.raises(UserError, match="there is no text encoder's folder"):
        Pipeline.from_pretrained(tmp_path / "run")("two blue squares")
    (tmp_path / "gone").rename(tmp_path / "t5")
    pipe = Pipeline.from_pretrained(tmp_path / "run")
    wanted = completed(replace(text, source=str(tmp_path / "t5")))
    assert pipe.card.text == wanted
    assert pipe("two blue squares").images[0].size == (8, 8)
    assert train(config(prepared, text=asked, steps=4), tmp_path / "run", WORLD) == checkpoints(tmp_path / "run")[-1]


def test_states_are_those_that_the_encoder_would_give(text, prepared, tmp_path):
    cached, items = assemble(config(prepared), WORLD), np.arange(8)
    a = cached.conditions(cached.data, items, range(8), 0.5)
    (tmp_path / "gone").rename(tmp_path / "t5")
    shutil.rmtree(prepared / "captions")
    alive = assemble(config(prepared, text=replace(text, source=str(tmp_path / "t5"))), WORLD)
    assert isinstance(cached.encoder, CachedText)
    assert isinstance(alive.encoder, Frozen)
    assert cached.config == alive.config
    b = alive.conditions(alive.data, items, range(8), 0.5)
    seen = b["text_mask"]
    assert torch.equal(a["text_mask"], seen)
    assert torch.equal(a["text"][seen], b["text"][seen])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "sentence"}, r"encoded with text\.kind t5; the configuration asks for sentence"),
        (
            {"length": 20},
            r"encoded with text\.length 12; the configuration asks for 20: set text\.length 12, or encode",
        ),
        (
            {"dtype": "fp32"},
            r"encoded with text\.dtype bf16; the configuration asks for fp32: set text\.dtype bf16, or",
        ),
        ({"fingerprint": "0" * 64}, r"encoded with text\.fingerprint \w{12}; the configuration asks for 0{12}: encode"),
    ],
)
def test_another_encoder_than_the_folders_is_refused(text, prepared, change, said):
    with pytest.raises(UserError, match=said) as refused:
        assemble(config(prepared, text=replace(text, source="", **change)), WORLD)
    assert "\n" not in str(refused.value)
    assert str(prepared) in str(refused.value)


def test_an_encoder_of_another_width_names_both(prepared):
    with pytest.raises(UserError, match=r"t5 gives states of width 40; model\.text_width is 24"):
        assemble(config(prepared, model=replace(HEARS, text_width=24)), WORLD)


def test_a_network_that_reads_ids_leaves_them_alone(prepared):
    ids = replace(HEARS, text_width=16, text_vocab=300, text_depth=1, text_heads=2)
    parts = assemble(config(prepared, model=ids, text=TextConfig("bytes", length=12)), WORLD)
    assert parts.encoder.vocab > 0
    with pytest.raises(UserError, match=r"text\.kind is none: name an encoder"):
        assemble(config(prepared, model=ids), WORLD)


def test_held_out_captions_are_encoded_too_or_refused(text, prepared, tmp_path):
    other = ("a dog", "a cat", "a red square", "a cow")
    (tmp_path / "gone").rename(tmp_path / "t5")
    config_of = replace(text, source=str(tmp_path / "t5"))
    prepare(Drawn(other), PIXELS, tmp_path / "encoded", SMALL, text=config_of)
    prepare(Drawn(other), PIXELS, tmp_path / "plain", SMALL)
    prepare(Drawn(WORDS), PIXELS, tmp_path / "familiar", SMALL)
    (tmp_path / "t5").rename(tmp_path / "gone")

    def held_out(name):
        data = DataConfig(str(prepared), batch_size=4, prefetch=0, validation=str(tmp_path / name), validation_size=4)
        return config(
            prepared, data=data, log=LogConfig(every=1, preview_every=9, checkpoint_every=2, evaluate_every=2)
        )

    for name in ("encoded", "familiar"):
        train(held_out(name), tmp_path / f"run-{name}", WORLD)
        lines = (tmp_path / f"run-{name}" / "metrics.jsonl").read_text().splitlines()
        assert any("val_loss" in json.loads(line) for line in lines)
    with pytest.raises(UserError, match=r"those of data\.validation are not \('a dog'\): give its `ditwright prepare`"):
        assemble(held_out("plain"), WORLD)


def test_an_encoder_is_hashed_once(text, monkeypatch, tmp_path):
    hashed, real = [], frozen.fingerprint
    monkeypatch.setattr(frozen, "fingerprint", lambda *args: hashed.append(args) or real(*args))
    pinned, encoder = encoder_for(text, HEARS, open_dataset("words"))
    assert pinned.fingerprint == encoder.fingerprint
    encoder(["a dog"])
    assert len(hashed) == 1
    encoder_for(pinned, HEARS, open_dataset("words"))
    assert len(hashed) == 2
    with pytest.raises(UserError, match="has other weights or another tokenizer"):
        encoder_for(replace(text, fingerprint="0" * 64), HEARS, open_dataset("words"))


def test_a_network_of_text_says_where_captions_may_be(text, tmp_path):
    name = in_a_folder(tmp_path / "in").partition(":")[0]
    said = r"has pictures without captions: 'picture 0' has no caption \(its source has story\); .* SOURCE:text=NAME"
    with pytest.raises(UserError, match=said) as refused:
        assemble(config(name, text=text), WORLD)
    assert "\n" not in str(refused.value)
    assemble(config(f"{name}:text=story", text=text), WORLD)
    with pytest.raises(UserError, match=r"unknown field of .* 'stroy'; known: file_name, story .did you mean 'story'"):
        assemble(config(f"{name}:text=stroy", text=text), WORLD)


def test_a_prepared_folder_has_the_captions_that_it_was_prepared_with(prepared):
    with pytest.raises(UserError, match="has captions of its own, or none; leave :text=story out"):
        assemble(config(Path(f"{prepared}:text=story")), WORLD)


def test_the_command_line(text, folders, capsys, tmp_path):
    words = ["prepare", in_a_folder(tmp_path / "in"), "--codec", "pixels", "--output", str(tmp_path / "out")]
    of_text = ["--text.kind", "t5", f"--text.source={folders['t5']}", "--text.length", "12", "--text.dtype", "bf16"]
    assert main([words[0], *of_text, *words[1:]]) == 0
    assert f"5 different captions encoded by t5 {folders['t5']} in bf16" in capsys.readouterr().out
    stored = json.loads((tmp_path / "out" / "captions" / "captions.json").read_text())["encoder"]
    assert from_dict(TextConfig, stored) == completed(text)
    assert to_dict(completed(text)) == stored
    verify = ["prepare", "--verify", "--output", str(tmp_path / "out")]
    assert main(verify) == 0
    assert "4 pictures in 1 shard, and 1 of captions: every byte is as it was written" in capsys.readouterr().out
    shard = tmp_path / "out" / "captions" / "captions-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(verify) == 2
    assert "1 of 2 shards" in (line := capsys.readouterr().err)
    assert "captions/captions-00000.safetensors; delete them and run the same `ditwright prepare` again" in line
    shard.unlink()
    assert main([*words, *of_text]) == 0
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--text.source here", "text.source goes with another text.kind than none; got 'here'"),
        ("--text.length=12", "--text.length=12 goes with --text.kind, which is none"),
        ("--text.kind bert", "text.kind must be one of none, bytes, clip"),
        ("--text.knd clip", "unknown key 'text.knd'"),
        ("--text.kind", "--text.kind needs a value"),
        ("--text.kind bytes", "there is nothing to encode ahead"),
        ("--text.kind t5 --text.source nowhere", "there is no text encoder's folder 'nowhere'"),
        ("--text.kind t5", "text.source is empty"),
        ("--textkind t5", "unrecognized arguments"),
    ],
)
def test_options_that_do_not_fit_are_one_line(words, said, capsys, tmp_path):
    name = in_a_folder(tmp_path / "in")
    assert main(["prepare", name, "--codec", "pixels", "--output", str(tmp_path / "out"), *words.split()]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_captions_are_not_told_lists_its_texts(text, capsys, folders, tmp_path):
    name = in_a_folder(tmp_path / "in").partition(":")[0]
    of_text = ["--text.kind", "t5", "--text.source", str(folders["t5"])]
    assert main(["prepare", name, "--codec", "pixels", "--output", str(tmp_path / "out"), *of_text]) == 2
    assert "0.png' has no caption (its source has story); where a column or key" in capsys.readouterr().err
