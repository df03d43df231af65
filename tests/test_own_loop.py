"""The page on people's own loops is a program that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs/your_own_loop.md").read_text()


def test_the_page_runs_as_it_stands(tmp_path):
    pytest.importorskip("accelerate")
    program = "\n".join(re.findall(r"```python\n(.+?)```", PAGE, re.S))
    (tmp_path / "loop.py").write_text(program + "\nprint(pictures.shape)\n")
    done = subprocess.run(
        [sys.executable, "loop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first, last = (float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout))
    assert last < first < 3
    assert "(2, 8, 8, 1)" in done.stdout
    assert (tmp_path / "runs/own/model.safetensors").is_file()
