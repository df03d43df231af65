"""`ditwright replay`: the table, the JSON, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest


def logged(folder, step):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(line["loss"] for line in lines if line["step"] == step)


def test_the_table_says_whose_weights_and_has_the_highest_loss_first(command, tiny_run):
    code, out, err = command("replay", tiny_run, "--step", 4)
    assert (code, err) == (0, "")
    first, second, heads, *rows = out.splitlines()
    loss = logged(tiny_run, 4)
    assert first.startswith(f"step 4 of {tiny_run}: loss {loss!r} of 8 samples, gradient norm ")
    assert first.endswith("; logged was the same to the digit")
    assert second == "weights: of step 3, the checkpoint of step 3: those that the step had"
    assert heads.split() == ["loss", "t", "item", "place", "class"]
    losses = [float(row.split()[0]) for row in rows]
    assert len(losses) == 8
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / 8 == pytest.approx(loss, rel=1e-4)


def test_steps_between_are_said(command, tiny_run):
    _, out, err = command("replay", tiny_run, "--step", 6)
    assert "weights: of step 5, the checkpoint of step 3 and 2 step(s) done again: those that the step had" in out
    assert err == "doing 2 steps after the checkpoint of step 3 again\n"
    _, out, _ = command("replay", tiny_run, "--step", 2)
    assert "weights: of step 1, the run's first weights and 1 step(s) done again: those that the step had" in out
    _, out, err = command("replay", tiny_run, "--step", 6, "--from-checkpoint")
    assert "weights: of step 3, the checkpoint of step 3: not those of step 5 that it had" in out
    assert f"; logged was {logged(tiny_run, 6)!r}, " in out
    assert err == ""


@pytest.mark.parametrize("sort", ["loss", "place", "t"])
def test_json_has_it_all_in_the_order_that_is_asked(sort, command, tiny_run):
    code, out, _ = command("replay", tiny_run, "--step", 5, "--json", "--sort", sort)
    told = json.loads(out)
    assert code == 0
    assert (told["run"], told["step"], told["checkpoint"], told["weights"]) == (str(tiny_run), 5, 3, 4)
    assert told["same_weights"] is True
    assert told["loss"] == told["logged"] == logged(tiny_run, 5)
    assert told["samples"][0].keys() == {
        *("place", "item", "name", "label", "class_name", "caption", "dropped", "mirrored", "t", "loss"),
    }
    values = [sample[sort] for sample in told["samples"]]
    assert values == sorted(values, reverse=sort == "loss")


def test_a_step_that_was_not_logged_says_so(command, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines[:3]) + lines[3][:20])
    assert "; this step was not logged" in command("replay", folder, "--step", 4).out
    (folder / "metrics.jsonl").unlink()
    assert "; this step was not logged" in command("replay", folder, "--step", 4).out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--step", 7], "--step must be from 1 to 6"),
        ([], "required: --step"),
        (["--step", 6, "--most", 1], "give --most 2, or --from-checkpoint"),
        (["--step", 6, "--sort", "size"], "invalid choice: 'size'"),
    ],
)
def test_what_does_not_go_is_one_line(words, line, refused, tiny_run):
    assert line in refused("replay", tiny_run, *words)


def test_no_run_is_one_line(refused, tmp_path):
    assert "holds no run" in refused("replay", tmp_path / "nowhere", "--step", 1)
