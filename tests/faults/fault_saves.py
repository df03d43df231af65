"""Faults that happen while a checkpoint is written in the background, or in shards."""

from __future__ import annotations

import random
import shlex
import signal
from pathlib import Path

from fault_runs import (
    EVERY,
    LONG,
    STEPS,
    Moments,
    assert_close,
    assert_same,
    finished,
    saved,
    straight,
    torchrun,
    torchrun_command,
    train,
    went_on,
    with_mounts,
)
from fault_several import SHARDS

from ditwright.files import damage

LATER = ("--log.async_save", "true")
PAGE = 4096  # of a tmpfs


def kill_in_a_background_save(folder: Path, chance: random.Random) -> Moments:
    whole, run, kept = straight(folder, LONG), folder / "run", 0
    for _ in range(4):
        number, after = chance.randrange(4), chance.uniform(0, 0.03)
        left = train(run, *LATER, steps=LONG, plan={"kill": ["save", number, after]})
        assert left.code == -signal.SIGKILL, f"it left with {left.code}"
        assert went_on(left.said, kept), left.said
        due, kept = kept + EVERY * number, kept_of(run, kept + EVERY * number)
        yield f"{1000 * after:.1f} ms into save {number}, {'whole' if kept > due else 'not whole'}; {kept} saved"
    finished(run, kept, LONG, *LATER)
    assert_same(run, whole)


def kill_in_a_sharded_background_save(folder: Path, chance: random.Random) -> Moments:
    """Of two processes with a half of the weights each: torchrun ends the other, and what is started again goes on."""
    whole, run, kept = folder / "whole", folder / "run", 0
    said = torchrun(whole, *SHARDS, steps=LONG).communicate(timeout=600)[0]
    assert saved(whole)[-1] == LONG, said
    for rank in chance.sample((0, 1, 0, 1), 4):
        number, after = chance.randrange(4), chance.uniform(0, 0.25)
        plan = {"kill": ["save", number, after], "rank": rank}
        said = torchrun(run, *SHARDS, *LATER, steps=LONG, plan=plan).communicate(timeout=600)[0]
        assert "Signal 9" in said, said
        assert went_on(said, kept), said
        due, kept = kept + EVERY * number, kept_of(run, kept + EVERY * number)
        how = "whole" if kept > due else "not whole"
        yield f"rank {rank}, {1000 * after:.1f} ms into save {number}, {how}; {kept} saved"
    said = torchrun(run, *SHARDS, *LATER, steps=LONG).communicate(timeout=600)[0]
    assert went_on(said, kept), said
    assert saved(run)[-1] == LONG, said
    assert_same(run, whole)


def kept_of(run: Path, due: int) -> int:
    """After a kill in the save after that of step `due`: it is there whole or not at all, and none before is lost."""
    kept = max(saved(run), default=0)
    assert kept in (due, due + EVERY), f"step {due} was saved, {due + EVERY} begun, and there are {saved(run)}"
    return kept


def full_tmpfs_in_shards(folder: Path, chance: random.Random) -> Moments:
    """The third save of two processes with a half of the weights each meets a real file system that is full.

    While the shards are written, or after them, where the main process writes the rest.
    """
    whole, made, disk = straight(folder), folder / "made", folder / "disk"
    said = torchrun(made, *SHARDS, steps=2 * EVERY).communicate(timeout=600)[0]
    assert saved(made) == [EVERY, 2 * EVERY], said
    disk.mkdir()
    newest = made / "checkpoints" / f"step-{2 * EVERY:08d}"
    shards, rest = taken(newest / "train.dcp"), taken(newest) - taken(newest / "train.dcp")
    for name, least, most in (("in the shards", 0, shards), ("after the shards", shards, rest)):
        for how, more in (("at once", ()), ("in the background", LATER)):
            run = folder / f"{name}, {how}".replace(" ", "-")
            room = taken(made) + int(least + chance.uniform(0.1, 0.9) * most) // PAGE * PAGE
            said = with_mounts(f"""
                mount -t tmpfs -o size={room} none {disk} || exit 77
                cp -r {made} {disk}/run || exit 1
                {shlex.join(torchrun_command(disk / "run", *SHARDS, *more))} && exit 1
                cp -r {disk}/run {run}
            """)
            if said is None:
                yield "not tried: this machine lets nobody mount a tmpfs here"
                return
            told = [line for line in said.splitlines() if line.startswith("ditwright: error: ")]
            full = [line for line in told if "No space left on device" in line]
            assert full, said
            assert all("another process of this run is gone" in line for line in told if line not in full), said
            assert saved(run) == [EVERY, 2 * EVERY], said
            assert [damage(path) for path in (run / "checkpoints").glob("step-*")] == ["", ""]
            said = torchrun(run, *SHARDS, *more).communicate(timeout=600)[0]
            assert went_on(said, 2 * EVERY), said
            assert saved(run)[-1] == STEPS, said
            assert_close(run, whole)
            yield f"{name}, {how}: a disk of {room:,} bytes, checkpoints of {shards + rest:,}"


def taken(folder: Path) -> int:
    """What the files of a folder take of a tmpfs, in bytes."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())
