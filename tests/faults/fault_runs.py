"""Runs of `ditwright train digits` that faults happen to: in forks of this process, or under torchrun.

And what must be so after any fault.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fault_hooks

from ditwright.cli.main import main
from ditwright.model.weights import read_safetensors
from ditwright.train.state import read_whole

Moments = Iterator[str]  # a case yields a line for every fault it made, and raises AssertionError where one did harm
HOOKS = str(Path(fault_hooks.__file__))
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
EVERY, STEPS, LONG = 3, 24, 60
TINY = f"""
    --model.width 16 --model.heads 2 --model.patch 2,2 --model.stages.0.depth 2 --data.batch_size 8 --precision fp32
    --optim.lr 2e-3 --optim.warmup 2 --optim.schedule constant --log.every 1 --log.preview_every 0
    --log.checkpoint_every {EVERY} --sample.sampler heun --sample.num_inference_steps 2
""".split()


@dataclass
class Left:
    """How a process left: its exit code, -9 where it was killed, and what it said."""

    code: int
    said: str
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        assert "Traceback" not in self.said, self.said
        self.lines = self.said.splitlines()

    def ok(self) -> Left:
        assert self.code == 0, f"it left with {self.code}: {self.said}"
        return self


@dataclass
class Going:
    """A fork that trains."""

    pid: int
    told: Path

    def over(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)  # a process that is over keeps its number until it is asked how it left

    def left(self, within: float = 600) -> Left:
        end = time.monotonic() + within
        while not self.over():
            assert time.monotonic() < end, f"it hangs: {self.told.read_text()}"
            time.sleep(0.002)
        return Left(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), self.told.read_text())


def words_of(run: Path, *more: object, steps: int = STEPS) -> list[str]:
    """What a person would type; later words win."""
    given: dict[str, str] = {}
    words = [*TINY, "--steps", str(steps), "--output", str(run), *map(str, more)]
    for name, value in zip(words[::2], words[1::2], strict=True):
        given[name] = value
    return ["train", "digits", *(word for pair in given.items() for word in pair)]


def start(run: Path, *more: object, steps: int = STEPS, plan: dict[str, Any] | None = None) -> Going:
    """Train in a fork, into a folder or on with what it holds."""
    told = run.with_name(f"{run.name}.told")
    sys.stdout.flush()
    if pid := os.fork():
        return Going(pid, told)
    code = 1
    try:
        out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        fault_hooks.install(plan or {})
        try:
            code = main(words_of(run, *more, steps=steps))
        except SystemExit as error:
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
            code = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(code)


def train(run: Path, *more: object, steps: int = STEPS, plan: dict[str, Any] | None = None) -> Left:
    """The same, waited for."""
    return start(run, *more, steps=steps, plan=plan).left()


def torchrun(
    run: Path,
    *more: object,
    steps: int = STEPS,
    processes: int = 2,
    restarts: int = 0,
    plan: dict[str, Any] | None = None,
) -> subprocess.Popen[str]:
    """Train in several processes, as a person would start them."""
    command = torchrun_command(run, *more, steps=steps, processes=processes, restarts=restarts)
    environment = os.environ | ONE_THREAD | {"FAULTS": json.dumps(plan or {})}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def torchrun_command(run: Path, *more: object, steps: int = STEPS, processes: int = 2, restarts: int = 0) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    return [*command, f"--max-restarts={restarts}", "--monitor-interval=0.1", HOOKS, *words_of(run, *more, steps=steps)]


def with_mounts(script: str) -> str | None:
    """What a shell script says that may mount what it likes, unseen by others; None where this machine lets nobody.

    It leaves with 77 where it cannot mount.
    """
    command = ["unshare", "-m", "sh", "-c", script]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=600)
    if done.returncode == 77 or "unshare" in done.stderr:
        return None
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def saved(run: Path) -> list[int]:
    """The steps of its checkpoints."""
    found = (re.fullmatch(r"step-(\d+)", path.name) for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def noted(run: Path) -> int:
    """How many steps a run has noted."""
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def lines(run: Path) -> list[dict[str, Any]]:
    """All that it noted."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """By step; a step that was noted twice is an error."""
    found = [(line["step"], line["loss"]) for line in lines(run) if "loss" in line]
    assert len(dict(found)) == len(found), "a step was noted twice"
    return dict(found)


def weights(run: Path) -> dict[str, Any]:
    """All tensors of its newest checkpoint: the average, the weights, the optimizer's."""
    newest = max((run / "checkpoints").glob("step-*"))
    return {"model": read_safetensors(newest / "model.safetensors"), "train": read_whole(newest / "train.safetensors")}


def assert_same(run: Path, straight: Path) -> None:
    """The same losses and the same final tensors, to the last bit."""
    assert losses(run) == losses(straight), "other losses"
    ours, theirs = weights(run), weights(straight)
    for name in theirs:
        assert ours[name].keys() == theirs[name].keys(), f"other tensors in {name}"
        different = [key for key, tensor in theirs[name].items() if not bool((tensor == ours[name][key]).all())]
        assert not different, f"other bits in {name}: {different[0]}"


def assert_close(run: Path, straight: Path, most: float = 1e-5) -> None:
    """The same losses to within a share, across numbers of processes."""
    ours, theirs = losses(run), losses(straight)
    assert ours.keys() == theirs.keys(), f"other steps: {sorted(ours.keys() ^ theirs.keys())}"
    apart = max(abs(ours[step] / theirs[step] - 1) for step in theirs)
    assert apart <= most, f"losses are {apart:.1e} apart"


def straight(folder: Path, steps: int = STEPS, *more: object) -> Path:
    """A run that nothing happened to; made once for each kind."""
    run = folder / "-".join(["straight", str(steps), *map(str, more)]).replace("/", "_")
    if not run.exists():
        train(run, *more, steps=steps).ok()
    return run


def kept_its_word(run: Path, before: int) -> int:
    """After a kill: nothing is lost beyond the last save. Returns the step that the run goes on from."""
    there = saved(run)
    kept = there[-1] if there else 0
    assert kept >= before, f"it had saved step {before} and has {there}"
    assert kept >= (noted(run) - 1) // EVERY * EVERY, f"{noted(run)} steps are noted, {there} are saved"
    return kept


def went_on(said: str, kept: int) -> bool:
    """Whether a run said where it begins, as one does that lived so long: at the step that was kept, and no other."""
    lines = [line for line in said.splitlines() if line.startswith(("going on at step", "training on"))]
    right = f"going on at step {kept} " if kept else "training on"
    assert all(line.startswith(right) for line in lines), f"step {kept} is saved: {said}"
    return bool(lines)


def finished(run: Path, kept: int, steps: int, *more: object) -> Left:
    """The run goes on from the step that was kept, and on to its end."""
    left = train(run, *more, steps=steps).ok()
    assert went_on(left.said, kept) or kept == steps, left.said
    return left


def harm(checkpoint: Path, damage: str, chance: random.Random, among: str = "*") -> tuple[str, str]:
    """Damage a file of a checkpoint. Returns its name and where."""
    path = chance.choice(sorted(path for path in checkpoint.rglob(among) if path.is_file()))
    content = bytearray(path.read_bytes())
    name = str(path.relative_to(checkpoint))
    if damage == "missing":
        path.unlink()
        return name, ""
    place = chance.randrange(len(content))
    if damage == "truncated":
        path.write_bytes(content[:place])
        return name, f"at byte {place}"
    bit = chance.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return name, f"bit {bit} of byte {place}"
