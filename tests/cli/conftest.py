"""The command line as a function: words in; exit code and what was printed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from ditwright.cli.main import main


class Printed(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Printed]:
    """command("info", "DiT-S/2") runs that and tells how it ended."""

    def run(*words: object) -> Printed:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = left.code
        return Printed(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(command: Callable[..., Printed]) -> Callable[..., str]:
    """The one line with which a command is refused."""

    def run(*words: object) -> str:
        code, out, err = command(*words)
        assert code == 2, err
        assert out == ""
        assert err.startswith("ditwright: error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err

    return run
