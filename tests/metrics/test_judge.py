"""A judge of one's own reference set: right on what it never saw, the same again, and never called FID."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditwright.data.digits import digits
from ditwright.errors import UserError
from ditwright.metrics.features import frechet_name
from ditwright.metrics.frechet import frechet
from ditwright.metrics.judge import Judge, _split, learn_judge, load_judge
from ditwright.metrics.statistics import gaussian_of


@pytest.fixture(scope="module")
def real():
    return digits()


@pytest.fixture(scope="module")
def judge(real):
    return learn_judge(real.images, real.targets, dataset="digits", steps=80)


def noise(count, *shape, channels=3):
    """Pictures of two classes that differ in brightness alone."""
    draw, labels = np.random.default_rng(0), np.arange(count) % 2
    images = draw.integers(0, 128, (count, *shape, channels)) + 100 * labels[:, None, None, None]
    return images.astype(np.uint8), labels + 5


def test_it_knows_digits_that_it_never_saw(real, judge):
    assert judge.facts.accuracy >= 0.95
    assert judge.facts.trained + judge.facts.held_out == 1797
    assert judge.accuracy(real.images, real.targets) >= 0.95
    assert judge.accuracy(real.images, (real.targets + 1) % 10) < 0.02
    found = judge(real.images[:7])
    assert found.pool.shape == (7, judge.feature_size)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)


def test_held_out_pictures_are_a_fifth_of_each_class_and_measure_it_alone(real):
    train, held_out = _split(real.targets, np.arange(10), seed=0)
    assert sorted([*train, *held_out]) == list(range(1797))
    np.testing.assert_array_equal(np.bincount(real.targets[held_out]), np.bincount(real.targets) // 5)
    blank = real.images.copy()
    blank[held_out] = 0  # had it learned from them, these would be all that it knows of blank pictures
    same = learn_judge(blank, real.targets, dataset="digits", steps=3)
    assert same.name == learn_judge(real.images, real.targets, dataset="digits", steps=3).name


def test_equal_arguments_give_an_equal_judge_and_global_random_state_stays(real):
    def name(seed):
        return learn_judge(real.images[:300], real.targets[:300], dataset="A set/of mine!", seed=seed, steps=3).name

    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert name(0) == name(0) != name(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert name(0).startswith("judge-a-set-of-mine-")
    assert frechet_name(name(0)).startswith("FD (judge-")


def test_its_features_tell_how_far_from_real_pictures_are(real, judge):
    draw = np.random.default_rng(0)
    order = draw.permutation(len(real.images))
    reference, others = gaussian_of(judge(real.images[order[:900]]).pool), real.images[order[900:]].astype(float)

    def distance(images):
        return frechet(reference, gaussian_of(judge(images.round().clip(0, 255).astype(np.uint8)).pool))

    real_ones, bad, worse = (distance(others + draw.normal(0, s, others.shape)) for s in (0, 32, 96))
    assert real_ones * 3 < bad < worse / 3
    assert real_ones * 3 < distance(0.8 * others)  # dimmer
    assert real_ones * 3 < distance(others[real.targets[order[900:]] < 7])  # fewer


def test_a_saved_judge_is_the_same_judge(judge, real, tmp_path):
    judge.save(tmp_path / "judge.safetensors")
    again = load_judge(tmp_path / "judge.safetensors")
    assert (again.name, again.facts, again.feature_size) == (judge.name, judge.facts, judge.feature_size)
    np.testing.assert_array_equal(again(real.images[:9]).pool, judge(real.images[:9]).pool)
    assert isinstance(again, Judge)


@pytest.mark.parametrize(
    ("shape", "channels", "works_at"), [((8, 11), 3, (8, 11)), ((40, 33), 3, (40, 33)), ((128, 96), 1, (64, 48))]
)
def test_any_size_from_8_and_colour_or_grey(shape, channels, works_at):
    images, labels = noise(50, *shape, channels=channels)
    judge = learn_judge(images, labels, dataset="noise", steps=4)
    assert (judge.facts.size, judge.facts.channels, judge.facts.classes) == (works_at, channels, (5, 6))
    assert judge(images[:3]).pool.shape == judge(images[:3, :9, :9]).pool.shape == (3, 64)
    if channels == 3:
        np.testing.assert_array_equal(judge(images[..., :1]).pool, judge(images[..., :1].repeat(3, -1)).pool)
    else:
        with pytest.raises(UserError, match="made for grey pictures; got 3 channels"):
            judge(images.repeat(3, -1))


def test_it_learns_what_only_brightness_tells():
    images, labels = noise(200, 9, 9)
    assert learn_judge(images, labels, dataset="noise", steps=30).facts.accuracy == 1


def test_sets_that_cannot_teach_are_refused():
    images, labels = noise(20, 8, 8)
    for bad, message in (
        ((images, labels * 0), "the reference has 1: use inception: or dinov2:"),
        ((images, np.where(np.arange(20) < 4, 3, 9)), "5 pictures of each class; the reference has 4 of class 3"),
        ((images[:, :7], labels), "8x8 or more; got 7x8"),
        ((images, labels[:-1]), r"one label for each picture: got \(19,\) for 20"),
        ((images / 255, labels), "uint8 pictures"),
    ):
        with pytest.raises(UserError, match=message):
            learn_judge(*bad, dataset="bad")


def test_files_that_hold_no_judge_are_refused(judge, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no checkpoint file"):
        load_judge(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="is no judge: its format is None"):
        load_judge(path)
    judge.save(path)
    facts = {"format": "ditwright-judge-1", "facts": json.dumps({"dataset": "digits"})}
    save_file(judge.module.state_dict(), path, facts)
    with pytest.raises(UserError, match="damaged facts"):
        load_judge(path)
    Judge(judge.module, replace(judge.facts, classes=(0, 1))).save(path)
    with pytest.raises(UserError, match=r"head.weight.*shape \(10, 64\); the network needs \(2, 64\)"):
        load_judge(path)
