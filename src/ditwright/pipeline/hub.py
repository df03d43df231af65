"""The Hugging Face hub: checkpoints down and up."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError
from ..extras import need

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # of files of weights
FILES = ["*.json", "*.yaml", "*.md", *(f"*{suffix}" for suffix in SUFFIXES)]


def is_hub_name(name: str) -> bool:
    """Whether a name that is no local path can be OWNER/NAME on the hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not name.endswith(SUFFIXES)


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a repository's files, or the one file of weights that it holds; from the cache when offline.

    UserError, with what to put where, for a name that is not there or cannot be had.
    """
    try:
        folder = Path(
            need("huggingface_hub", extra="hf").snapshot_download(name, revision=revision, allow_patterns=FILES)
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name!r} is no folder here and could not be had from the hub ({_reason(error)}); where there is a "
            f"connection run: hf download {name} --local-dir DIR, copy DIR here and give its path"
        ) from error
    weights = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
    alone = len(weights) == 1 and not any(folder.glob("*.json")) and not any(folder.glob("*.yaml"))
    return weights[0] if alone else folder


def push(folder: Path, name: str, *, private: bool, revision: str | None, message: str) -> str:
    """Upload a folder as a repository, made where it does not exist yet. Returns the address of the commit."""
    api = need("huggingface_hub", extra="hf").HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name!r} could not be uploaded ({_reason(error)}); is there a connection, and are you logged in "
            "(hf auth login) to an account that may write there?"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
