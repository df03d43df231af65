"""Names on the hub, with a hub made of folders: nothing here leaves the machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ditwright import convert
from ditwright.convert import Portable
from ditwright.diffusion.config import ProcessConfig
from ditwright.errors import UserError
from ditwright.pipeline import Pipeline
from ditwright.pipeline.hub import is_hub_name
from small_pipelines import pipeline

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of repositories, OWNER/NAME/REVISION; `shelf.asked` are the downloads."""
    folder = Shelf(tmp_path / "shelf")

    def download(name, *, revision=None, allow_patterns):
        folder.asked.append((name, revision))
        place = folder.path / name / (revision or "main")
        if not place.is_dir():
            raise hub.errors.LocalEntryNotFoundError("the hub cannot be reached\nand nothing is in the cache")
        assert all(
            any(path.match(pattern) for pattern in allow_patterns) for path in place.rglob("*") if path.is_file()
        )
        return str(place)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return folder


class Shelf:
    """Where repositories stand, and what was asked for."""

    def __init__(self, path: Path):
        self.path, self.asked = path, []


def test_a_name_on_the_hub_is_a_checkpoint(shelf):
    pipe = pipeline()
    pipe.save_pretrained(shelf.path / "someone" / "digits" / "main")
    again = Pipeline.from_pretrained("someone/digits")
    assert np.array_equal(again.draw([1]), pipe.draw([1]))
    assert shelf.asked == [("someone/digits", None)]


def test_a_revision_is_the_one_that_is_read(shelf):
    pipeline("karras").save_pretrained(shelf.path / "someone" / "digits" / "v1")
    assert Pipeline.from_pretrained("someone/digits", revision="v1").card == pipeline("karras").card
    assert shelf.asked == [("someone/digits", "v1")]


def test_a_repository_of_one_file_is_that_file(shelf):
    pipe = pipeline()
    state = {key.removeprefix("net."): tensor for key, tensor in pipe.denoiser.state_dict().items()}
    (shelf.path / "someone" / "SiT" / "main").mkdir(parents=True)
    portable = Portable(pipe.card.model, ProcessConfig(reversed_time=True), state, image_size=(64, 64))
    convert.write(portable, shelf.path / "someone" / "SiT" / "main" / "SiT.pt", to="sit")
    (shelf.path / "someone" / "SiT" / "main" / "README.md").write_text("hello")
    found = Pipeline.from_pretrained("someone/SiT", family="sit", heads=2, codec="pixels")
    assert found.card.model == pipe.card.model
    assert found.card.codec.channels == 1


def test_a_folder_here_comes_before_a_name_there(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline().save_pretrained(Path("runs/digits"))
    assert Pipeline.from_pretrained("runs/digits").card == pipeline().card
    assert shelf.asked == []


def test_without_the_hub_it_is_said_what_to_put_where(shelf):
    with pytest.raises(UserError) as caught:
        Pipeline.from_pretrained("someone/digits")
    line = str(caught.value)
    assert "'someone/digits' is no folder here" in line
    assert "the hub cannot be reached" in line
    assert "hf download someone/digits --local-dir DIR" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "name", ["nowhere", "./runs/digits", "runs/digits/checkpoints", "weights/DiT.pt", "/a/b", "a b/c"]
)
def test_what_is_no_name_of_the_hub_is_a_path(name, shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name(name)
    with pytest.raises(UserError, match="there is no run or checkpoint folder"):
        Pipeline.from_pretrained(name)
    assert shelf.asked == []


def test_a_revision_of_a_folder_is_refused(tmp_path):
    pipeline().save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="revision is for names on the hub"):
        Pipeline.from_pretrained(tmp_path / "saved", revision="main")


# upwards


class Api:
    """Takes what HfApi takes, and keeps it."""

    kept: Path
    calls: list

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("repo", repo_id, private, exist_ok))

    def create_branch(self, repo_id, *, branch, exist_ok):
        self.calls.append(("branch", repo_id, branch, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        self.calls.append(("upload", repo_id, revision, commit_message))
        shutil.copytree(folder_path, self.kept)
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def api(tmp_path, monkeypatch):
    monkeypatch.setattr(Api, "kept", tmp_path / "uploaded", raising=False)
    monkeypatch.setattr(Api, "calls", [], raising=False)
    monkeypatch.setattr(hub, "HfApi", Api)
    return Api


def test_what_is_pushed_is_a_whole_checkpoint(api):
    pipe = pipeline()
    assert pipe.push_to_hub("someone/digits", private=True) == "https://hub/someone/digits/commit/1"
    assert api.calls == [
        ("repo", "someone/digits", True, True),
        ("upload", "someone/digits", None, "Upload pipeline"),
    ]
    assert np.array_equal(Pipeline.from_pretrained(api.kept).draw([2]), pipe.draw([2]))
    assert 'Pipeline.from_pretrained("someone/digits")([0, 1])' in (api.kept / "README.md").read_text()


def test_a_branch_is_made_where_one_is_asked_for(api):
    pipeline().push_to_hub("someone/digits", revision="better", commit_message="Longer training")
    assert api.calls[1:] == [
        ("branch", "someone/digits", "better", True),
        ("upload", "someone/digits", "better", "Longer training"),
    ]


def test_a_refusal_of_the_hub_is_one_line(api, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError("401 Client Error\nfor url ...")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(UserError, match=r"'someone/digits' could not be uploaded \(401 Client Error\).*hf auth login"):
        pipeline().push_to_hub("someone/digits")
    assert not api.kept.exists()


# the model card


def front_matter(text: str) -> dict:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


@pytest.mark.parametrize("process", ["flow", "ddpm", "karras"])
def test_a_model_card_says_how_it_was_made(process, tmp_path):
    pipe = pipeline(process)
    pipe.save_pretrained(tmp_path / "digits")
    text = (tmp_path / "digits" / "README.md").read_text()
    assert front_matter(text)["library_name"] == "ditwright"
    assert front_matter(text)["pipeline_tag"] == "unconditional-image-generation"
    parameters = sum(p.numel() for p in pipe.denoiser.parameters())
    for fact in ("width 16", "2 heads", f"{parameters:,}", "zero, one, two", "8 x 8 pixels", "guidance 2", "torch 2."):
        assert fact in text
    card = pipe.card
    assert f"path {card.process.path}" in text
    assert f"target {card.process.target}" in text
    assert ("learned variance" in text) == card.process.learned_var
    assert 'Pipeline.from_pretrained("digits")([0, 1]).images' in text


def test_the_lines_of_a_model_card_draw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for classes in (3, 0):
        pipe = pipeline(classes=classes)
        pipe.save_pretrained(Path("own"))
        code = Path("own/README.md").read_text().split("```python\n")[1].split("```")[0]
        scope: dict = {}
        exec(compile(code, "README", "exec"), scope)
        assert len(scope["images"]) == 2
