"""Tiny text encoders in folders as transformers saves them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from small_encoders import CAPTIONS, bert, clip, fast, llama, t5, write


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Of drawings, three dozen."""
    return CAPTIONS


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each encoder, tokenizer and all. Copy one before changing it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    nets = {
        "clip": clip(transformers, projected=False),
        "projected": clip(transformers),
        "t5": t5(transformers),
        "causal": llama(transformers),
        "sentence": bert(transformers),
    }
    marks = {
        "clip": ("<s>", "</s>", "</s>"),
        "projected": ("<s>", "</s>", "</s>"),
        "t5": ("", "</s>", "<pad>"),
        "causal": ("<s>", "", ""),
        "sentence": ("[CLS]", "[SEP]", "[PAD]"),
    }
    for name, net in nets.items():
        write(net, root / name)
        more = {"eos_token": "<s>"} if name == "causal" else {}
        fast(transformers, *marks[name], root / name, **more)
    return {name: root / name for name in nets}


@pytest.fixture(scope="session")
def make_sd3(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """make_sd3() is a new folder of an SD3 pipeline's three encoders and tokenizers."""
    transformers = pytest.importorskip("transformers")

    def made() -> Path:
        root = tmp_path_factory.mktemp("sd3") / "pipeline"
        write(clip(transformers, 1), root / "text_encoder")
        changes = {"hidden_size": 20, "projection_dim": 14, "pad_token_id": 0, "hidden_act": "gelu"}
        write(clip(transformers, 2, **changes), root / "text_encoder_2")
        torch.manual_seed(3)
        write(t5(transformers), root / "text_encoder_3")
        fast(transformers, "<s>", "</s>", "</s>", root / "tokenizer")
        fast(transformers, "<s>", "</s>", "<pad>", root / "tokenizer_2")
        fast(transformers, "", "</s>", "<pad>", root / "tokenizer_3")
        return root

    return made


@pytest.fixture(scope="session")
def sd3_folder(make_sd3: Callable[[], Path]) -> Path:
    """One of them. Do not change it."""
    return make_sd3()


@pytest.fixture
def flux_folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A FLUX pipeline's encoders and tokenizers, anew."""
    root = tmp_path / "flux"
    for name, number in (("clip", ""), ("t5", "_2")):
        for place in ("text_encoder", "tokenizer"):
            shutil.copytree(folders[name], root / f"{place}{number}")
            unwanted = "tokenizer*" if place == "text_encoder" else "*model*"
            for file in (root / f"{place}{number}").glob(unwanted):
                file.unlink()
    return root
