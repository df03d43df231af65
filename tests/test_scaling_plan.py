"""A study names its runs and what they cost before anything is trained."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import yaml

from ditwright.config import dump_yaml, from_dict
from ditwright.errors import UserError
from ditwright.model.build import build
from ditwright.model.config import CONDITIONINGS
from ditwright.model.flops import macs, tokens
from ditwright.model.unet import unet_macs
from ditwright.scaling.plan import (
    available_memory,
    check_memory,
    effort,
    plan_table,
    rates_at,
    runs_of,
    seconds,
    space_of,
)
from ditwright.scaling.study import (
    CONDITIONING,
    HELD_OUT,
    LADDER,
    STUDIES,
    TRANSFER,
    UNET,
    Conditioning,
    HeldOut,
    Study,
    changed,
    find_study,
    settle,
)
from ditwright.train.cost import training_flops
from scaling_logs import SMALL, SPACE, WHOLE

DIGITS = STUDIES["digits"]()


def test_every_built_in_study_can_be_planned_on_its_data():
    for name, make in STUDIES.items():
        study = make()
        assert len(study.widths) >= 4
        assert len(study.seeds) >= 2
        assert study.held_out.width > max(study.widths)
        runs = runs_of(study)
        assert {run.space for run in runs} == {space_of(study.base())}, name
        ladder = [run for run in runs if run.role == LADDER]
        assert len(ladder) == len(study.widths) * len(study.patches) * len(study.seeds) * len(study.steps)
        assert all(run.config.data.validation != run.config.data.source for run in runs)


def test_counts_are_those_of_the_networks():
    for run in runs_of(SMALL, SPACE):
        model, config = run.config.model, run.config
        assert run.macs == sum(macs(model, SPACE).values())
        assert run.tokens == tokens(model, SPACE) == math.prod(side // model.patch[0] for side in SPACE)
        assert run.flops == training_flops(model, SPACE, config.steps * config.data.batch_size)
    (smallest, *_) = runs_of(SMALL, SPACE)
    net = build(smallest.config.model)
    assert smallest.parameters == sum(p.numel() for p in net.parameters())


def test_runs_come_by_seed_from_the_cheapest_on_and_the_held_out_one_last():
    runs = runs_of(replace(SMALL, held_out=HeldOut(16, 4)), SPACE)
    assert [run.role == HELD_OUT for run in runs] == [False] * (len(runs) - 1) + [True]  # however cheap it is
    seeds = [run.config.seed for run in runs[:-1]]
    assert seeds == sorted(seeds)
    costs = [run.flops for run in runs[:-1] if run.config.seed == 0]
    assert costs == sorted(costs)
    assert len({run.name for run in runs}) == len(runs)


def test_width_is_the_dial():
    study = replace(SMALL, block_width=32, head_width=16, lr=8e-3, lr_width=64, lr_power=1.0)
    found = {run.config.model.width: run.config for run in runs_of(study, SPACE)}
    assert {width: config.model.depth for width, config in found.items()} == {32: 1, 48: 2, 64: 2, 96: 3, 128: 4}
    assert all(config.model.width // config.model.heads == 16 for config in found.values())
    assert [found[width].optim.lr for width in (32, 64, 128)] == [0.016, 0.008, 0.004]
    assert {run.config.optim.lr for run in runs_of(replace(study, lr_power=0.0), SPACE)} == {0.008}


def test_lengths_are_steps_tokens_or_operations():
    study = replace(SMALL, steps=(10,), tokens=(1e6,), flops=(1e11,), seeds=(0,), held_out=None, conditioning=None)
    found: dict[str, list] = {}
    for run in runs_of(study, SPACE):
        found.setdefault(run.network, []).append(run)
    for runs in found.values():
        batch = study.batch_size
        assert 10 in [run.config.steps for run in runs]
        seen = [run.trained * run.tokens for run in runs]
        assert min(abs(count - 1e6) for count in seen) <= batch * runs[0].tokens
        step = runs[0].flops / runs[0].config.steps
        assert min(abs(run.flops - 1e11) for run in runs) <= step
    assert len(runs_of(replace(study, steps=(10, 10)), SPACE)) == len(runs_of(study, SPACE))


def test_the_papers_four_conditionings_at_equal_steps_beside_the_ladders_own():
    runs = runs_of(replace(SMALL, conditioning=Conditioning(64, 2)), SPACE)
    others = {run.kind for run in runs if run.role == CONDITIONING}
    assert others == CONDITIONINGS.keys() - {"adaln-zero"}  # which the ladder has already
    apart = runs_of(replace(SMALL, conditioning=Conditioning(80, 2)), SPACE)
    assert {run.kind for run in apart if run.role == CONDITIONING} == set(CONDITIONINGS)
    assert {run.config.steps for run in runs} == set(SMALL.steps)


def test_time_follows_from_a_rate_and_counts_validation_and_samples():
    (run, *_) = runs_of(SMALL, SPACE)
    config = replace(run.config, log=replace(run.config.log, evaluate_every=40), steps=100)
    short = replace(run, config=config)
    drawn = 1000 * 2 * config.sample.num_inference_steps  # heun looks twice
    assert effort(short, 1000) == pytest.approx(100 * 128 + (3 * 360 * 10 + drawn) / 3)
    (time,) = seconds([run], SMALL, rates_at([run], 1e9))
    assert time == pytest.approx(effort(run, SMALL.samples) * 6 * run.macs / 1e9)
    assert math.isnan(seconds([run], SMALL, {})[0])


def test_the_table_says_what_fits():
    runs = runs_of(SMALL, SPACE)
    times, largest = [10.0] * len(runs), max(run.bytes for run in runs)
    states = [row[-1] for row in plan_table(runs, times, available=largest, done=[runs[1].name], budget=30).rows]
    assert states[:5] == ["", "done", "", "", "over budget"]
    assert plan_table(runs, times, available=largest - 1, budget=30).rows[-1][-1] == "too large"


def test_a_run_that_cannot_fit_is_named_before_anything_starts():
    runs = runs_of(SMALL, SPACE)
    check_memory(runs, max(run.bytes for run in runs))
    with pytest.raises(UserError, match=r"w128-p2-400-s0 needs about 0\.1 GB, and 0\.0 GB are free \(\d+ runs"):
        check_memory(runs, 1000)
    assert available_memory(torch.device("cpu")) > 1e6


def test_processes_beside_each_other_share_the_memory(monkeypatch):
    whole = available_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert available_memory(torch.device("cpu")) < whole / 4


def test_checkpointed_activations_need_less():
    plain, saving = (
        runs_of(changed(SMALL, ["--train.checkpoint_activations", value]), SPACE)[-1].bytes
        for value in ("false", "true")
    )
    assert saving < 0.6 * plain
    for most in (0.8 * plain, 2 * plain, 0.5 * saving):  # it takes as much as it may, if that is enough
        (*_, run) = runs_of(changed(SMALL, ["--train.memory_gb", str(most / 1e9)]), SPACE)
        assert run.bytes == pytest.approx(min(plain, max(saving, most)))


def test_a_study_is_yaml(tmp_path):
    assert from_dict(Study, yaml.safe_load(dump_yaml(DIGITS))) == DIGITS
    (tmp_path / "mine.yaml").write_text(dump_yaml(SMALL))
    assert find_study(str(tmp_path / "mine.yaml")) == (SMALL, "mine")


def test_options_change_a_study_and_its_runs():
    words = "--widths 64,128 --held_out.width 256 --train.optim.ema 0.5 --train.data.validation_size=7"
    words += " --transfer.steps 7 --unets.lr 0.5"
    study = changed(DIGITS, words.split())
    assert (study.widths, study.held_out) == ((64, 128), HeldOut(256, 1))
    assert (study.transfer.steps, study.unets.lr, study.unets.widths) == (7, 0.5, DIGITS.unets.widths)
    assert (study.base().optim.ema, study.base().data.validation_size) == (0.5, 7)
    assert study.base().data.validation == DIGITS.base().data.validation
    assert changed(study, ["--train.optim.ema", "0.6"]).base().optim.ema == 0.6
    assert changed(DIGITS, []) == DIGITS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--widths 40", "multiples of head_width 16; got 40"),
        ("--widths 64,64", "none of them twice"),
        ("--steps []", "a length above 0"),
        ("--held_out.width 64", "is in the ladder too"),
        ("--conditioning.kinds adaln-one", "unknown conditioning 'adaln-one'"),
        ("--recipe digit", "unknown recipe 'digit'; known: digits"),
        ("--lr_power 1", "with mup the rates follow the width by themselves"),
        ("--lr_width 40", "lr_width must be a multiple of head_width 16"),
        ("--transfer.widths 40", "widths of transfer must be multiples of head_width 16; got 40"),
        ("--transfer.factors 1", "transfer needs a width, a seed, two factors"),
        ("--unets.widths 12", "width 12 is not divisible by groups 8"),
        ("--samples 1", "samples must be 2 or more"),
        ("--lr 0", "lr above 0"),
        ("--train 3", "as in --train.optim.ema 0.99"),
        ("--options optim.ema", "options look like"),
        ("--train.optim.emma 1", "unknown key 'optim.emma'"),
        ("--train.data.validation= --train.data.validation_size 512", "name them, as in"),
        ("--patches 3", "not divisible"),
        ("--widths 64 --patches 2,4", "at least 3 networks of different cost"),
    ],
)
def test_what_makes_no_study_is_refused_in_one_line(words, message):
    with pytest.raises(UserError, match=message) as refused:
        runs_of(changed(DIGITS, words.split()), SPACE)
    assert "\n" not in str(refused.value)


def test_a_folder_keeps_its_study_which_may_grow_and_not_change(tmp_path):
    study = settle(replace(SMALL, precision="auto"), tmp_path, lambda: "fp32")
    assert study.precision == "fp32"
    again = settle(replace(SMALL, precision="auto"), tmp_path, lambda: pytest.fail("it is known already"))
    assert again == study
    grown = replace(SMALL, widths=(32, 48, 64, 96, 256), seeds=(0, 1, 2), held_out=HeldOut(512, 2))
    assert settle(grown, tmp_path, lambda: "bf16").precision == "fp32"
    assert find_study(str(tmp_path))[0] == replace(grown, precision="fp32")
    settle(changed(grown, ["--train.log.every", "7"]), tmp_path, lambda: "bf16")
    for other, key in ((replace(SMALL, batch_size=64), "batch_size"), (replace(SMALL, lr=1.0), "lr")):
        with pytest.raises(UserError, match=f"holds another study: {key} is"):
            settle(other, tmp_path, lambda: "bf16")
    with pytest.raises(UserError, match="holds another study: options is"):
        settle(changed(SMALL, ["--train.optim.ema", "0.5"]), tmp_path, lambda: "bf16")


def test_u_nets_and_learning_rates_stand_beside_the_ladder():
    runs = runs_of(WHOLE, SPACE)
    nets = [run for run in runs if run.role == UNET]
    assert {run.name for run in nets} == {f"unet{width}-400-s{seed}" for width in (8, 32) for seed in (0, 1)}
    assert {run.config.optim.lr for run in nets} == {WHOLE.unets.lr}
    for run in nets:
        model, ladder = run.config.model, runs[0].config.model
        assert run.macs == sum(unet_macs(model, SPACE).values())
        assert run.parameters == sum(p.numel() for p in build(model).parameters())
        assert (model.channels, model.num_classes) == (ladder.channels, ladder.num_classes)
    tried = [run for run in runs if run.role == TRANSFER]
    assert len(tried) == 2 * 3 * 5
    assert {run.config.steps for run in tried} == {100}
    for run in tried:
        lr, width = run.config.optim.lr, run.config.optim.mup_width
        assert run.network == f"w{run.config.model.width}-p4-{'mup' if width else 'standard'}-x{lr / WHOLE.lr:g}"
        assert width in (0, WHOLE.lr_width)
    plain = {run.name: run.config for run in runs_of(SMALL, SPACE)}
    beside = {run.name: run.config for run in runs if run.role not in (UNET, TRANSFER)}
    assert beside == plain


def test_with_mup_every_run_has_one_rate_meant_at_one_width():
    ladder = [run.config.optim for run in runs_of(replace(SMALL, mup=True), SPACE)]
    assert {(optim.lr, optim.mup_width) for optim in ladder} == {(SMALL.lr, SMALL.lr_width)}


def test_what_stands_beside_may_be_added_and_grow_and_not_change(tmp_path):
    settle(SMALL, tmp_path, lambda: "fp32")
    settle(WHOLE, tmp_path, lambda: "fp32")
    grown = replace(WHOLE, unets=replace(WHOLE.unets, widths=(8, 16, 32)))
    settle(replace(grown, transfer=replace(WHOLE.transfer, factors=(0.5, 1.0, 8.0))), tmp_path, lambda: "fp32")
    for other, key in (
        (replace(WHOLE, unets=replace(WHOLE.unets, lr=0.5)), "unets.lr"),
        (replace(WHOLE, transfer=replace(WHOLE.transfer, steps=7)), "transfer.steps"),
    ):
        with pytest.raises(UserError, match=f"holds another study: {key} is"):
            settle(other, tmp_path, lambda: "fp32")


def test_u_nets_train_where_transformers_keep_to_a_budget():
    runs = runs_of(changed(WHOLE, ["--train.memory_gb", "9"]), SPACE)
    assert {(run.role == UNET, run.config.memory_gb) for run in runs} == {(True, 0), (False, 9)}


def test_u_nets_train_where_transformers_keep_few_activations():
    runs = runs_of(changed(WHOLE, ["--train.checkpoint_activations", "true"]), SPACE)
    assert {run.config.checkpoint_activations for run in runs if run.role == UNET} == {False}
    assert {run.config.checkpoint_activations for run in runs if run.role != UNET} == {True}
