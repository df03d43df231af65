"""A run folder is held by one run, and what stands in its way there is named before anything is done."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys

import pytest
import torch

from ditwright.errors import UserError
from ditwright.run import train
from ditwright.train.folder import claimed
from ditwright.train.parallel import World

ALONE = World(torch.device("cpu"))
HOLDS = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_the_lock_is_of_a_file_and_leaves_none_behind(tiny, tmp_path):
    """Folders have none over a network."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").write_text("")  # of one that was killed
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path / "run/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=r"another process trains in '.*run'; wait, or choose another --output"):
            train(tiny("--steps 1"), tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        other.stdin.close()
    train(tiny("--steps 1"), tmp_path / "run")
    assert not (tmp_path / "run/.lock").exists()


def test_a_lock_whose_file_was_just_removed_is_taken_anew(tmp_path, monkeypatch):
    """Else two could hold one each, of the same name."""
    real, path = fcntl.flock, tmp_path / "run/.lock"

    def late(handle, how):
        monkeypatch.undo()
        path.unlink()  # by the one that held it until now
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claimed(tmp_path / "run", ALONE):
        assert path.exists()
        with pytest.raises(UserError, match="another process"), claimed(tmp_path / "run", ALONE):
            pass
        assert path.exists()


def test_where_files_have_no_locks_that_is_said(tiny, tmp_path, monkeypatch, capsys):
    def none(handle, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    train(tiny("--steps 1"), tmp_path / "run")
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run'} cannot be locked (Function not implemented): see that no other process trains" in said


def test_a_folder_that_nobody_may_write_to_needs_no_lock(tiny, tiny_run, tmp_path, monkeypatch, capsys):
    """A file system that is mounted so; who is root may write to all others."""
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    real = os.open

    def refused(path, flags, *mode, **more):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "access", lambda path, how: False)
    train(tiny("--steps 6"), folder)
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "best"])
def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_done(name, tiny, contents, tmp_path):
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "mine").write_text("")
    best = "--data.validation digits --data.validation_size 8 --log.evaluate_every 1 --log.keep_best 1"
    with pytest.raises(UserError, match=rf"run/{name}' is a folder, and the run needs its name: move it, or choose"):
        train(tiny(f"--steps 1 {best}"), tmp_path / "run")
    assert contents(tmp_path / "run") == {f"{name}/mine": b""}
    if name == "best":  # a name that only such runs need
        train(tiny("--steps 1"), tmp_path / "run")
        assert (tmp_path / "run/best/mine").exists()
