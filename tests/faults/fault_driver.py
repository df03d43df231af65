"""Faults at random moments of real training processes, each followed by a proof that nothing was lost. Run as

python tests/faults/fault_driver.py [--seed N] [--kills N] [--cases NAME,NAME]

Prints a table: case, seed, moment, outcome. Exit code 1 if any outcome is not ok. test_faults.py runs a small part.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a process with threads is not to be forked

import numpy as np
from fault_runs import (
    EVERY,
    HOOKS,
    LONG,
    STEPS,
    Moments,
    assert_same,
    finished,
    harm,
    kept_its_word,
    lines,
    losses,
    noted,
    saved,
    start,
    straight,
    train,
    went_on,
    with_mounts,
    words_of,
)
from fault_saves import full_tmpfs_in_shards, kill_in_a_background_save, kill_in_a_sharded_background_save
from fault_several import damaged_shards, nan_on_one_rank_of_two, one_rank_of_two_killed, one_two_one

from ditwright.codec.config import CodecConfig
from ditwright.data.base import batch_items
from ditwright.data.shards import Shards
from ditwright.data.streams import Stream
from ditwright.prepare import PrepareConfig, prepare


def kill_during_a_step(folder: Path, chance: random.Random) -> Moments:
    whole, run, kept = straight(folder, LONG), folder / "run", 0
    for aim in sorted(chance.sample(range(1, LONG - 5), 4)):
        going, delay = start(run, steps=LONG), chance.uniform(0, 0.02)
        while not going.over() and noted(run) < aim:
            time.sleep(0.0005)
        time.sleep(delay)
        going.send(signal.SIGKILL)
        left = going.left()
        assert left.code in (-signal.SIGKILL, 0), left.said
        went_on(left.said, kept)
        kept = kept_its_word(run, kept)
        yield f"{1000 * delay:.1f} ms after step {aim}; {kept} saved"
    finished(run, kept, LONG)
    assert_same(run, whole)


def kill_during_a_save(folder: Path, chance: random.Random) -> Moments:
    whole, run, kept = straight(folder, LONG), folder / "run", 0
    for _ in range(4):
        number, after = chance.randrange(4), chance.uniform(0, 0.03)
        left = train(run, steps=LONG, plan={"kill": ["save", number, after]})
        assert left.code == -signal.SIGKILL, f"it left with {left.code}"
        assert went_on(left.said, kept), left.said
        kept = kept_its_word(run, kept)
        yield f"{1000 * after:.1f} ms into save {number}; {kept} saved"
    finished(run, kept, LONG)
    assert_same(run, whole)


def kill_at_the_rename(folder: Path, chance: random.Random) -> Moments:
    whole, run, kept = straight(folder, LONG), folder / "run", 0
    for side in chance.sample((0, 1, 0, 1), 4):
        number = chance.randrange(4)
        left = train(run, steps=LONG, plan={"kill": ["rename", number, side]})
        assert left.code == -signal.SIGKILL, f"it left with {left.code}"
        assert went_on(left.said, kept), left.said
        due = kept + EVERY * (number + side)
        kept = kept_its_word(run, kept)
        assert kept == due, f"rename {number}: {kept} saved, not {due}"
        yield f"just {('before', 'after')[side]} rename {number}; {kept} saved"
    finished(run, kept, LONG)
    assert_same(run, whole)


def term_with_a_deadline(folder: Path, chance: random.Random) -> Moments:
    """A save takes 0.2 s: within 5 s it is made, within 0.1 s it is left out; the run says which. Then SIGKILL."""
    whole, run, kept = straight(folder, LONG), folder / "run", 0
    for within in chance.sample((5, 0.1), 2):
        aim = kept + EVERY + chance.randrange(1, 2 * EVERY)
        going = start(run, "--log.stop_within", within, steps=LONG, plan={"slow": 0.2})
        while not going.over() and noted(run) < aim:
            time.sleep(0.0005)
        going.send(signal.SIGTERM)
        time.sleep(within)
        if not going.over():
            going.send(signal.SIGKILL)
        left = going.left()
        kept = kept_its_word(run, kept)
        if within == 5:
            assert left.code == 128 + signal.SIGTERM, left.said
            assert f"SIGTERM: saved step {kept} of {LONG}" in left.said, left.said
        elif left.code == 128 + signal.SIGTERM:  # else it was in a save when the signal came, and was killed there
            assert f"the last one saved is {kept} of {LONG}" in left.said, left.said
        yield f"{within} s after step {aim}; {kept} saved"
    finished(run, kept, LONG)
    assert_same(run, whole)


def full_disk(folder: Path, chance: random.Random) -> Moments:
    """No file may grow beyond some bytes: the save that meets this fails in one line; what was saved stays whole."""
    whole, run = straight(folder), folder / "run"
    train(run, steps=6).ok()
    largest = max(path.stat().st_size for path in (run / "checkpoints").rglob("*.safetensors"))
    limit = chance.randrange(4096, largest)
    left = train(run, plan={"file": limit})
    assert (left.code, saved(run)) == (2, [3, 6]), left.said
    assert left.lines[-1].startswith("ditwright: error: "), left.said
    assert not list(run.rglob("*.half"))
    finished(run, 6, STEPS)
    assert_same(run, whole)
    yield f"files end at {limit:,} bytes"


def full_tmpfs(folder: Path, chance: random.Random) -> Moments:
    """A real file system that is full, in a mount namespace of its own, made larger afterwards."""
    whole, run, disk = straight(folder), folder / "run", folder / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (whole / "checkpoints").glob("step-*24/*"))
    room = int(size * chance.uniform(1.2, 2.9)) // 4096 * 4096
    quoted = shlex.join([sys.executable, HOOKS, *words_of(disk / "run")])
    said = with_mounts(f"""
        mount -t tmpfs -o size={room} none {disk} || exit 77
        {quoted}; [ $? = 2 ] || exit 1
        mount -o remount,size=64m {disk}
        {quoted} || exit 1
        cp -r {disk}/run {run}
    """)
    if said is None:
        yield "not tried: this machine lets nobody mount a tmpfs here"
        return
    assert "No space left on device" in said, said
    assert_same(run, whole)
    yield f"a disk of {room:,} bytes, checkpoints of {size:,}"


def damaged_checkpoint(folder: Path, chance: random.Random) -> Moments:
    """Truncated, a bit flipped in any file, or a file missing: named, passed over, and the one before it serves."""
    whole, made = straight(folder), straight(folder, 9, "--log.keep", 3)
    for damage in ("bit flipped", "truncated", "missing"):
        for several in (False, True):
            run = folder / f"{damage}-{several}"
            shutil.copytree(made, run)
            names = [harm(run / "checkpoints" / "step-00000009", damage, chance)]
            if several:
                names.append(harm(run / "checkpoints" / "step-00000006", damage, chance))
            left = finished(run, 3 if several else 6, STEPS)
            for step, (name, _) in zip((9, 6), names, strict=False):
                wanted = f"step-0000000{step}/{'checksums.json' if name == 'checksums.json' else name}"
                assert wanted in left.said.replace("'", ""), left.said
            assert_same(run, whole)
            yield f"{damage}: " + ", ".join(f"{name} {where}" for name, where in names)
    run = folder / "none is whole"
    shutil.copytree(made, run)
    for checkpoint in sorted((run / "checkpoints").iterdir()):
        harm(checkpoint, chance.choice(("bit flipped", "truncated", "missing")), chance)
    left = train(run)
    assert (left.code, len(left.lines), saved(run)) == (2, 1, [3, 6, 9]), left.said
    assert "no checkpoint of" in left.said
    yield "all three: one line, exit code 2, nothing changed"


def bit_flipped_beside_checkpoints(folder: Path, chance: random.Random) -> Moments:
    """In config.yaml or metrics.jsonl: the weights come out the same, whatever line says what was found."""
    whole, made = straight(folder), straight(folder, 9, "--log.keep", 3)
    for name in ("config.yaml", "metrics.jsonl"):
        run = folder / name
        shutil.copytree(made, run)
        path = run / name
        content = bytearray(path.read_bytes())
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        finished(run, 9, STEPS)
        ours, theirs = losses_read(run), losses(whole)
        assert {step: ours[step] for step in range(10, STEPS + 1)} == {
            step: theirs[step] for step in range(10, STEPS + 1)
        }
        yield f"bit {bit} of byte {place} of {name}"


def losses_read(run: Path) -> dict[int, float]:
    """As `losses`, of notes in which a line may tell anything."""
    return {line["step"]: line["loss"] for line in lines(run) if isinstance(line.get("loss"), float)}


def nan_in_a_gradient(folder: Path, chance: random.Random) -> Moments:
    """Skipped and counted; after K in a row back to the last checkpoint; for good where that does not help."""
    options = ("--optim.skip_nonfinite", 2, "--optim.rollbacks", 1)
    step = chance.randrange(5, 15)
    plan = {"nan": [step, step + 1]}
    run, again = folder / "skipped", folder / "skipped and killed"
    left = train(run, *options, plan=plan).ok()
    found = [(line["step"], line["skipped"]) for line in lines(run) if "skipped" in line]
    assert found == [(step, 1), (step + 1, 2)], found
    assert "net.blocks.1.mlp.x.fc1.weight" in left.said
    assert sorted(losses(run)) == [n for n in range(1, STEPS + 1) if n not in plan["nan"]]
    number = chance.randrange(2)
    assert train(again, *options, plan={**plan, "kill": ["save", step // EVERY + number, 0.0]}).code == -signal.SIGKILL
    train(again, *options, plan=plan).ok()
    assert_same(again, run)
    yield f"steps {step} and {step + 1}: skipped; the same after a kill"
    run = folder / "rolled back"
    left = train(run, *options, plan={"nan": [step, step + 1, step + 2], "times": 3}).ok()
    assert "going on from" in left.said, left.said
    assert [line["step"] for line in lines(run) if line.get("event") == "rollback"] == [(step + 1) // EVERY * EVERY]
    if (step + 1) // EVERY * EVERY < step:  # else the first skip is in what was saved
        assert_same(run, straight(folder))
    yield f"three from step {step} on, once: rolled back"
    run = folder / "for good"
    left = train(run, *options, plan={"nan": list(range(step, STEPS + 1))})
    assert left.code == 1, left.said
    assert left.lines[-1].startswith("ditwright: stopped: the gradient of step"), left.said
    assert "'net.blocks.1.mlp.x.fc1.weight'" in left.lines[-1], left.said
    yield f"all from step {step} on: stopped, {saved(run)[-1]} saved"


def shard_disappears(folder: Path, chance: random.Random) -> Moments:
    """A file of the data is gone in the midst of an epoch: one line that names it; back again, the run goes on."""
    data, run, other = folder / "shards", folder / "run", folder / "straight-shards"
    draws = np.random.default_rng(0)
    pairs = [(draws.integers(0, 255, (8, 8, 3), dtype=np.uint8), i % 2) for i in range(96)]
    prepare(
        Stream(pairs, class_names=("even", "odd")), CodecConfig("pixels"), data, PrepareConfig(size=8, shard_size=2)
    )
    options = "--model.channels 3 --model.out_channels 3 --model.num_classes 2 --codec.kind auto --codec.channels 3"
    more = [*options.split(), "--data.batch_size", "2", "--data.source", str(data)]
    train(other, *more).ok()
    aim, first, groups = chance.randrange(2, 8), dict[int, int](), Shards(data).groups
    for step in range(1, STEPS + 1):
        for item in batch_items(0, groups, 2, step - 1)[1].tolist():
            first.setdefault(item // 2, step)  # when a shard is needed first
    late = chance.choice([shard for shard, step in first.items() if step > aim + 2 * EVERY])
    tar, away = sorted(data.glob("*.tar"))[late], folder / "away.tar"
    going = start(run, *more, plan={"slow": 0.2})
    while not going.over() and noted(run) < aim:
        time.sleep(0.0005)
    tar.rename(away)
    left = going.left()
    if left.code == 0:  # it had been opened, and an open file stays
        outcome = "was open already"
    else:
        assert (left.code, len(left.lines)) == (2, 2), left.said
        assert tar.name in left.lines[-1], left.said
        outcome = f"stopped at step {noted(run)}"
        assert tar.name in train(run, *more).said  # it says so until it is back
    away.rename(tar)
    train(run, *more).ok()
    assert_same(run, other)
    yield f"{tar.name} after step {aim}: {outcome}"


def clock_goes_backwards(folder: Path, chance: random.Random) -> Moments:
    whole, run, seed = straight(folder), folder / "run", chance.randrange(1000)
    train(run, steps=chance.randrange(4, 20), plan={"clock": seed}).ok()
    train(run, plan={"clock": seed + 1}).ok()
    assert_same(run, whole)
    assert all(line["samples_per_second"] > 0 for line in lines(run) if "loss" in line)
    yield f"seed {seed}"


KILLS = (kill_during_a_step, kill_during_a_save, kill_at_the_rename, kill_in_a_background_save)
ONCE = (full_disk, damaged_checkpoint, bit_flipped_beside_checkpoints, nan_in_a_gradient, clock_goes_backwards)
SLOW = (term_with_a_deadline, shard_disappears, full_tmpfs)
SEVERAL = (one_two_one, one_rank_of_two_killed, nan_on_one_rank_of_two, damaged_shards)
SEVERAL += (full_tmpfs_in_shards, kill_in_a_sharded_background_save)
CASES = {case.__name__: case for case in (*KILLS, *ONCE, *SLOW, *SEVERAL)}


def rows(case: Callable[[Path, random.Random], Moments], seed: int, base: Path) -> Iterator[tuple[str, str]]:
    """(moment, outcome) of every fault that a case makes with a seed."""
    folder = base / f"{case.__name__}-{seed}"
    folder.mkdir()
    for made in base.glob("straight-*"):
        (folder / made.name).symlink_to(made)
    told: list[str] = []
    try:
        for moment in case(folder, random.Random(f"{case.__name__} {seed}")):
            told.append(moment)
    except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        yield from ((moment, "?") for moment in told)
        yield "", f"FAILED in {folder}: {error}"
        return
    yield from ((moment, "ok" if not moment.startswith("not tried") else "-") for moment in told)
    shutil.rmtree(folder)


def main(argv: list[str] | None = None) -> int:
    """Run cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next are those after it")
    parser.add_argument("--kills", type=int, default=60, help="random kill points, at least")
    parser.add_argument("--cases", default=",".join(CASES), help="names, by commas")
    args = parser.parse_args(argv)
    asked = [CASES[name] for name in args.cases.split(",")]
    plan = [(case, args.seed) for case in asked if case not in KILLS]
    kills = [case for case in asked if case in KILLS]
    rounds = -(-args.kills // (4 * len(kills))) if kills else 0
    plan = [(case, args.seed + n) for n, case in itertools.product(range(rounds), kills)] + plan
    base, began, failed, points = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic(), 0, 0
    straight(base)
    straight(base, LONG)
    print(f"{'case':<33} {'seed':>4}  outcome  moment", flush=True)
    for case, seed in plan:
        for moment, outcome in rows(case, seed, base):
            failed += outcome not in ("ok", "-")
            points += case in KILLS
            print(f"{case.__name__:<33} {seed:>4}  {outcome:<7}  {moment}", flush=True)
    print(f"{points} random kill points, {failed} failed, {time.monotonic() - began:.0f} s")
    if not failed:
        shutil.rmtree(base)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
