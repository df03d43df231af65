"""Sets of samples by a network that hears text: which prompt each hears, what is kept, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ditwright.data.prompts import Prompts
from ditwright.errors import UserError
from ditwright.evaluate import captioned
from ditwright.metrics.npz import write_samples
from ditwright.pictures import save_png
from ditwright.pipeline import Pipeline
from ditwright.pipeline.fid import Order, draw_set
from ditwright.text.config import TextConfig
from small_pipelines import pipeline, prompted_pipeline

pytest.importorskip("tokenizers")
WORDS = ("a red square", "a blue square", "", "two red squares", "nothing")
COUNT = 11  # in chunks of 4, and twice round the prompts


@pytest.fixture(scope="module")
def pipe():
    return prompted_pipeline(WORDS)


def order(pipe, output, texts=WORDS, source="here", **more):
    return Order(pipe, output, COUNT, pipe.card.sample, prompts=Prompts(source, texts), **more)


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    wanted = order(pipe, tmp_path_factory.mktemp("whole"))
    assert draw_set(wanted) == wanted.npz
    return wanted


def test_sample_i_hears_prompt_i_modulo_their_number(whole, pipe):
    asked = [WORDS[i % 5] for i in range(COUNT)]
    with np.load(whole.npz) as archive:
        assert archive.files == ["arr_0"]
        images = archive["arr_0"]
    assert np.array_equal(images, pipe.draw(asked))
    assert not np.array_equal(images, pipe.draw(["nothing"] * COUNT))
    assert whole.npz.with_suffix(".txt").read_text() == "".join(f"{text}\n" for text in asked)


def test_the_prompts_are_of_the_settings(whole, pipe, tmp_path):
    said = json.loads(whole.npz.with_suffix(".json").read_text())
    assert said["captions"] == "here"
    others = {source: order(pipe, tmp_path, source=source).settings()["prompts"] for source in ("here", "there")}
    assert set(others.values()) == {said["prompts"]}
    assert order(pipe, tmp_path, WORDS[::-1]).settings()["prompts"] != said["prompts"]


def test_processes_and_stops_do_not_matter(whole, pipe, tmp_path):
    wanted = order(pipe, tmp_path, source="moved")

    def stop(done):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_set(order(pipe, tmp_path), progress=stop)
    assert [draw_set(wanted, rank, 2) for rank in range(2)] == [None, wanted.npz]
    for suffix in (".npz", ".txt"):
        assert wanted.npz.with_suffix(suffix).read_bytes() == whole.npz.with_suffix(suffix).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"samples_11.{end}" for end in ("json", "npz", "txt")]


def test_a_set_begun_with_other_prompts_or_another_reader_is_refused(whole, pipe):
    for wanted, said in (
        (order(pipe, whole.output, WORDS[::-1]), "prompts is"),
        (order(prompted_pipeline(("other", "words")), whole.output), r"text\.fingerprint is"),
        (order(prompted_pipeline(WORDS, length=20), whole.output), r"text\.length is 16 there and 20 now"),
    ):
        with pytest.raises(UserError, match=f"holds samples of other settings: {said}"):
            draw_set(wanted)


def test_captions_and_networks_must_suit_each_other(pipe, tmp_path):
    with pytest.raises(UserError, match="captions are missing, for this network hears text; give --captions SOURCE"):
        Order(pipe, tmp_path, COUNT, pipe.card.sample)
    with pytest.raises(UserError, match="captions are for networks that hear text"):
        order(pipeline(), tmp_path)
    alone = Pipeline(pipe.denoiser, replace(pipe.card, text=TextConfig()))
    with pytest.raises(UserError, match="names no text encoder"):
        order(alone, tmp_path)
    assert list(tmp_path.iterdir()) == []


# read again, with their prompts


def test_a_set_is_read_with_its_prompts(whole):
    images, texts = captioned(str(whole.npz))
    assert texts == tuple(WORDS[i % 5] for i in range(COUNT))
    assert images.count == COUNT
    assert images.origin["captions"] == "here"


def test_samples_of_another_program_take_their_prompts_from_a_file(tmp_path):
    pictures = np.arange(3 * 8 * 8 * 3, dtype=np.int64).reshape(3, 8, 8, 3).astype(np.uint8)
    write_samples(tmp_path / "theirs.npz", [pictures], 3)
    (tmp_path / "prompts").write_text("one\ntwo\nthree\n")
    images, texts = captioned(str(tmp_path / "theirs.npz"), str(tmp_path / "prompts"))
    assert texts == ("one", "two", "three")
    assert np.array_equal(next(iter(images.batches(3, 0, 3))), pictures)
    with pytest.raises(UserError, match=r"the prompts of .* are missing: they lie beside it, in 'theirs\.txt'"):
        captioned(str(tmp_path / "theirs.npz"))
    (tmp_path / "prompts").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="has 2 prompts for 3 samples"):
        captioned(str(tmp_path / "theirs.npz"), str(tmp_path / "prompts"))


def test_pictures_that_say_their_prompt_are_read_without_what_lies_with_them(tmp_path):
    for i, text in enumerate(("one", "two")):
        save_png(Image.new("RGB", (8, 8), (i, 0, 0)), tmp_path / f"seed0-{i:05d}.png", {"prompt": text})
    save_png(Image.new("RGB", (32, 8)), tmp_path / "grid.png", {"prompts": ["one", "two"]})
    save_png(Image.new("RGB", (32, 8)), tmp_path / "seed0-00000-film.png", {"prompt": "one"})
    images, texts = captioned(str(tmp_path))
    assert texts == ("one", "two")
    assert next(iter(images.batches(9, 0, 9)))[:, 0, 0, 0].tolist() == [0, 1]
    with pytest.raises(UserError, match=r"--captions are for an \.npz"):
        captioned(str(tmp_path), "prompts.txt")
    save_png(Image.new("RGB", (9, 9)), tmp_path / "seed1-00000.png", {"prompt": "one"})
    with pytest.raises(UserError, match="pictures of several sizes"):
        captioned(str(tmp_path))
    save_png(Image.new("RGB", (8, 8)), tmp_path / "seed1-00000.png", {"class_label": 3})
    with pytest.raises(UserError, match="does not say its prompt"):
        captioned(str(tmp_path))
