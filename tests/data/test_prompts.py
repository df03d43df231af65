"""Prompts from whatever has captions, a line each, in an order that is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ditwright.codec.config import CodecConfig
from ditwright.data.base import Pictures
from ditwright.data.prompts import Prompts, captions_of, has_captions, lines, prompts_from, write_lines
from ditwright.data.sources import SOURCES, open_dataset, open_source
from ditwright.errors import UserError
from ditwright.pictures import save_png, to_pil
from ditwright.prepare import PrepareConfig, prepare

WORDS = tuple(f"prompt {n}" for n in range(10))


def captioned(texts=WORDS):
    return Pictures(np.zeros((len(texts), 8, 8, 3), np.uint8), np.zeros(len(texts), np.int64), (), texts=texts)


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(SOURCES, "words", lambda size=None: captioned())
    mute = Pictures(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64), ())
    monkeypatch.setitem(SOURCES, "mute", lambda size=None: mute)


@pytest.fixture
def folder(tmp_path):
    """Pictures of two sizes, of which none may be opened for its caption."""
    rows = []
    for n, words in enumerate(WORDS):
        save_png(to_pil(np.full((8 + n % 2, 8, 3), 20 * n, np.uint8)), tmp_path / f"{n}.png")
        rows.append({"file_name": f"{n}.png", "text": words})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_samples_hear_prompts_in_turn():
    assert Prompts("here", ("a", "b", "c")).of(range(2, 6)) == ["c", "a", "b", "c"]


def test_a_name_a_folder_shards_and_a_file_give_the_same(known, folder, tmp_path):
    prepare(open_source(str(folder)), CodecConfig("pixels"), tmp_path / "shards", PrepareConfig(size=8))
    (tmp_path / "prompts.txt").write_text("\n".join(WORDS[:5]) + "\n\n" + "\r\n".join(WORDS[5:]))
    for source in ("words", str(folder), str(tmp_path / "shards"), str(tmp_path / "prompts.txt")):
        assert prompts_from(source, 100) == Prompts(source, WORDS)
        assert prompts_from(source, 5).texts == WORDS[::2]  # fewer are spread over all of them
    assert captions_of(open_dataset("words"), 3, "words") == (WORDS[0], WORDS[3], WORDS[6])


def test_a_prompt_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "broken", lambda size=None: captioned(("two\nlines", "old\r\nones", "", "\u2028é")))
    found = prompts_from("broken", 9).texts
    assert found == ("two lines", "old ones", "", " é")
    write_lines(tmp_path / "kept.txt", found)
    assert tuple(lines(tmp_path / "kept.txt")) == found


def test_whether_there_are_captions_is_known_by_the_first(known):
    assert has_captions(open_dataset("words"))
    assert not has_captions(open_dataset("mute"))


def test_what_gives_no_prompts_is_one_line(known, tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for source, said in (
        ("mute", "'mute' has pictures without captions: 'picture 0' has no caption .*; or give a data set with"),
        ("nowhere", "no prompts in 'nowhere': there is no data set or folder"),
        (str(tmp_path / "empty.txt"), "holds no prompts; it takes one a line"),
        (str(tmp_path / "binary.txt"), "is no text in UTF-8"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            prompts_from(source, 4)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="cannot be read"):
        lines(tmp_path / "none.txt")
