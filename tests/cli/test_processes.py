"""What only a process of its own can show: imports, exit codes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ditwright.cli.main import VERBS

HELP = """
import contextlib, io, json, sys
from ditwright.cli.main import main

words, printed = json.loads(sys.argv[1]), []
for line in words:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(line)
    printed.append(text.getvalue())
heavy = sorted({"torch", "numpy", "sklearn", "PIL", "safetensors", "tqdm"} & sys.modules.keys())
print(json.dumps([printed, heavy]))
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


def test_help_explains_every_verb_and_imports_nothing_heavy():
    asked = [[], ["--help"], ["-h"], ["--version"], *([verb, "--help"] for verb in VERBS)]
    done = python("-c", HELP, json.dumps(asked))
    assert (done.returncode, done.stderr) == (0, "")
    (bare, full, short, version, *verbs), heavy = json.loads(done.stdout)
    assert heavy == []
    assert bare == full == short
    assert all(verb in full for verb in VERBS)
    assert version.startswith("ditwright 0.")
    for verb, text in zip(VERBS, verbs, strict=True):
        assert text.startswith(f"usage: ditwright {verb}")
        assert "--help" in text


def test_importing_the_library_imports_no_torch():
    code = "import ditwright, sys; assert 'torch' not in sys.modules; print(*dir(ditwright)); ditwright.PRESETS"
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"guided", "SAMPLERS", "PRESETS", "Pipeline", "convert"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    "start", [["-m", "ditwright"], [str(Path(sys.executable).with_name("ditwright"))]], ids=["-m", "script"]
)
def test_both_ways_to_start_are_the_command(start):
    done = python(*start, "info", "DiT-S/9")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ditwright: error: unknown preset 'DiT-S/9'")
    assert done.stderr.count("\n") == 1
    assert python(*start, "--help").stdout.startswith("usage: ditwright")


def test_a_signal_saves_and_leaves_with_its_exit_code(tiny_words, tmp_path):
    """SIGTERM, then Ctrl-C in the run that goes on."""
    command = [sys.executable, "-m", "ditwright", "train", "digits", *tiny_words, "--steps", "1000000"]
    metrics, saved = tmp_path / "metrics.jsonl", 0
    for number in (signal.SIGTERM, signal.SIGINT):
        seen = metrics.stat().st_size if metrics.exists() else 0
        process = subprocess.Popen(
            [*command, "--output", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.stat().st_size > seen:
                break
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (128 + number, ""), err
        first, *energy, last = err.splitlines()  # the second only where the machine tells it
        assert all(line.startswith("energy: ") for line in energy)
        assert first.startswith("going on at step" if saved else "training")
        before, saved = saved, int(last.removeprefix(f"{number.name}: saved step ").split()[0])
        assert last == f"{number.name}: saved step {saved} of 1000000; the same command goes on"
        assert saved > before
        assert (tmp_path / "checkpoints" / f"step-{saved:08d}" / "train.safetensors").exists()
