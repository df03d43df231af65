"""The byte-level BPE: every string, there and back, and what is cut."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditwright.errors import UserError
from ditwright.text.tokenizer import FILE, Tokenizer, learn

pytest.importorskip("tokenizers")
ALWAYS = learn(["a red circle", "a blue square"], 280, length=2000)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_every_string_comes_back(text):
    ids, mask = ALWAYS([text])
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    row = ids[0, mask[0]].tolist()
    assert (row[0], row[-1]) == (1, 2)
    assert not {0, 1, 2} & set(row[1:-1])
    assert ALWAYS.decode(row[1:-1]) == text.encode("utf-8", "replace").decode()


def test_the_names_of_the_marks_are_text_like_any_other():
    ids, mask = ALWAYS(["<end> of <pad>"])
    assert (ids[0] == 2).sum() == 1
    assert mask.sum() > 5
    assert ALWAYS.decode(ids[0, mask[0]].tolist()) == "<end> of <pad>"


def test_merges_make_prompts_short_and_padding_is_masked(captions):
    tokenizer = learn(captions, 400, length=20)
    assert 259 < tokenizer.vocab <= 400
    ids, mask = tokenizer([captions[0], ""])
    assert ids.shape == mask.shape == (2, 20)
    assert mask[0].sum() < 14 < len(captions[0])
    assert ids[1].tolist() == [1, 2] + 18 * [0]
    assert mask[1].tolist() == 2 * [True] + 18 * [False]
    assert not ids[~mask].any()


def test_what_is_cut_is_named(captions):
    tokenizer = learn(captions, 400, length=8)
    text = "a small red circle in the style of Miró"
    with pytest.warns(UserWarning, match=r"^the prompt was cut after 8 tokens; lost: '") as warned:
        ids, mask = tokenizer([text])
    lost = str(warned[0].message).split("lost: ")[1].strip("'")
    kept = tokenizer.decode(ids[0].tolist())
    assert f"{kept} {lost}" == text or f"{kept}{lost}" == text
    assert mask.all()
    assert ids[0, -1] == 2  # the end mark stays
    with pytest.warns(UserWarning, match=r"\(so were 1 more of 3 prompts\)$"):
        tokenizer([text, "a", text])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a small red"])


def test_it_is_the_same_from_the_same_captions_in_any_process(captions, tmp_path):
    code = "import sys; from ditwright.text.tokenizer import learn; print(learn(sys.argv[1:], 350).fingerprint)"
    printed = subprocess.run([sys.executable, "-c", code, *captions], capture_output=True, text=True, check=True).stdout
    tokenizer = learn(captions, 350)
    assert printed.strip() == tokenizer.fingerprint
    assert learn(captions[1:], 350).fingerprint != tokenizer.fingerprint
    tokenizer.save(tmp_path)
    again = Tokenizer.read(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert torch.equal(again(captions)[0], tokenizer(captions)[0])
    assert again(["<end>"])[1].sum() > 3


def test_what_is_no_tokenizer_is_refused(tmp_path, captions):
    with pytest.raises(UserError, match=r"there is no tokenizer .*tokenizer.json': bring it back"):
        Tokenizer.read(tmp_path)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.read(tmp_path)
    (tmp_path / FILE).write_text(ALWAYS.backend.to_str().replace("<begin>", "<start>"))
    with pytest.raises(UserError, match="does not begin with <pad>, <begin>, <end>"):
        Tokenizer.read(tmp_path)
    with pytest.raises(UserError, match=r"at least 259; got 0: a network of states .*name another text.kind, or none"):
        learn(captions, 0)
    with pytest.raises(UserError, match=r"at least 259; got 100$"):
        learn(captions, 100)
    for prompts in ("one string", [], ["a", 3]):
        with pytest.raises(UserError, match="prompts are a list of one or more strings"):
            ALWAYS(prompts)
