"""Pictures to numbers: the same as the metrics' own functions give, from any source, on any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from ditwright.cli.main import main
from ditwright.codec.config import CodecConfig
from ditwright.data.base import spread
from ditwright.data.digits import digits
from ditwright.data.sources import open_source
from ditwright.diffusion.config import SampleConfig
from ditwright.errors import UserError
from ditwright.evaluate import (
    PRESETS,
    Images,
    Reading,
    completed,
    evaluate,
    images_from,
    labelled,
    make_reference,
    reference_from,
)
from ditwright.evaluate import compare as compare_module
from ditwright.evaluate.side import KEPT, MOMENTS, Side, share
from ditwright.metrics.bootstrap import interval
from ditwright.metrics.features import ModuleExtractor, Seen
from ditwright.metrics.frechet import frechet, linearised
from ditwright.metrics.judge import learn_judge
from ditwright.metrics.kernel import mmd
from ditwright.metrics.manifold import density_coverage, precision_recall
from ditwright.metrics.npz import read_reference, write_samples
from ditwright.metrics.score import inception_score
from ditwright.metrics.statistics import gaussian_of
from ditwright.pictures import save_png, to_pil
from ditwright.pipeline.fid import Order, draw_set
from ditwright.prepare import PrepareConfig, prepare
from ditwright.train.parallel import World, join
from small_pipelines import pipeline

ALONE = World(torch.device("cpu"))
KEYS = ["fid", "sfid", "is", "kid", "precision", "recall", "density", "coverage"]
COUNT = 130


class Small(nn.Module):
    """Random weights; all that the published Inception gives, in small."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2)
        noise = torch.Generator().manual_seed(0)
        self.conv.weight.data.normal_(generator=noise)
        self.conv.bias.data.normal_(generator=noise)

    def forward(self, x):
        maps = self.conv(x).relu()
        pool = maps.mean((2, 3))
        return Seen(pool, maps[:, :2].flatten(1), (0.1 * pool).softmax(-1))


def small(name="small"):
    return ModuleExtractor(Small(), name, size=8)


@pytest.fixture(scope="module")
def real():
    return digits("train").images[:300]


@pytest.fixture(scope="module")
def fake():
    """Other digits, brighter."""
    return np.minimum(digits("held out").images[:COUNT].astype(int) + 30, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scores(real, fake):
    return evaluate(fake, real, small(), rounds=50)


def test_the_numbers_are_those_of_the_metrics_themselves(scores, real, fake):
    ours, theirs, name = small()(fake), small()(real), small().name
    pools = [theirs.pool.astype(np.float64), ours.pool.astype(np.float64)]
    expected = {
        "fid": frechet(*(gaussian_of(pool) for pool in pools)),
        "sfid": frechet(*(gaussian_of(side.spatial) for side in (theirs, ours))),
        "is": inception_score(ours.probabilities).mean,
        "kid": mmd(*pools),
        **precision_recall(*pools)._asdict(),
        **density_coverage(*pools)._asdict(),
    }
    assert [score.facts["metric"] for score in scores] == KEYS == list(expected)
    for key, value in expected.items():
        assert scores[key].value == pytest.approx(value, rel=1e-6, abs=1e-9), key
    moved = linearised(gaussian_of(pools[0]), pools[1])
    around = interval(lambda drawn: moved[drawn].mean(), COUNT, rounds=50)
    assert (scores["fid"].low, scores["fid"].high) == pytest.approx(around, rel=1e-5)
    assert scores["is"].facts["std"] == pytest.approx(inception_score(ours.probabilities).std, rel=1e-4)
    assert scores["recall"].facts["extractor"] == name


def test_every_interval_is_around_its_number(scores):
    for score in scores:
        assert score.low <= score.value <= score.high
        assert score.high > score.low
    assert scores["fid"].low > 0.1 * scores["fid"].value


def test_a_set_against_itself_is_at_no_distance(real):
    scores = evaluate(real, real, small(), ("fid", "sfid", "pr", "dc"), rounds=20)
    assert scores["fid"].value == pytest.approx(0, abs=1e-8)
    assert scores["sfid"].value == pytest.approx(0, abs=1e-8)
    assert [scores[key].value for key in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_a_judge_tells_digits_from_bright_digits(real, fake):
    train = digits("train")
    judge = learn_judge(train.images, train.targets, dataset="digits", steps=40)
    held_out = digits("held out").images[:COUNT]
    same, other = (evaluate(images, real, judge, ("fid",), rounds=0) for images in (held_out, fake))
    assert same["fid"].value < other["fid"].value
    assert same["fid"].name == f"FD ({judge.name})"
    assert judge.name.startswith("judge-digits-")
    assert evaluate(fake, real, judge, rounds=0)["is"].name == f"IS ({judge.name})"


def test_only_the_published_network_gives_names_that_papers_use(real, fake):
    extractor = small()
    extractor.name = "inception-v3-tf-6726825d"
    scores = evaluate(fake[:20], real[:30], extractor, rounds=0)
    assert [score.name for score in scores] == ["FID", "sFID", "IS", "KID", *KEYS[4:]]
    scores = evaluate(fake[:20], real[:30], small(), rounds=0)
    name = small().name
    assert [s.name for s in scores][:4] == [f"{n} ({name})" for n in ("FD", "spatial FD", "IS", "KD")]
    assert scores["fid"] is scores[f"FD ({name})"] is scores[0]
    with pytest.raises(UserError, match="no number 'clip' was measured; there are fid, sfid"):
        scores["clip"]


def test_every_printed_line_carries_what_its_number_depends_on(real, tmp_path):
    pipe = pipeline()
    config = replace(pipe.card.sample, num_inference_steps=3, sampler="euler", guidance_scale=1.5)
    order = Order(pipe, tmp_path, 24, config, 7, origin={"checkpoint": "runs/here"})
    draw_set(order)
    scores = evaluate(order.npz, real, small(), rounds=30)
    *lines, legend = scores.text().split("\ncaution")[0].splitlines()
    assert len(lines) == len(KEYS)
    for line, score in zip(lines, scores, strict=True):
        assert line.startswith(score.name)
        assert "euler, 3 steps, guidance 1.5, seed 7, runs/here (weights " in line
        assert small().name in line
        assert ("24 samples against 300" in line) == (score.facts["metric"] != "is")
        assert f"{score.value:.5g}" in line
        assert f"[{score.low:.4g}, {score.high:.4g}]" in line
        assert score.facts["drawn"]["weights"] == order.settings()["weights"]
        assert str(score).split() == line.split()
    assert legend.startswith("[low, high]: 95% intervals")
    assert json.loads(json.dumps(scores.plain()))["scores"][0]["value"] == scores["fid"].value


def test_guidance_is_told_as_it_was(tmp_path, real, fake):
    write_samples(tmp_path / "x.npz", [fake], COUNT)
    settings = {"num_samples": COUNT, "sampler": "ddpm", "num_inference_steps": 250, "guidance_scale": 1.5, "seed": 0}
    more = {"guidance_channels": 3, "guidance_interval": [0.1, 0.9], "guidance_rescale": 0.5, "weights": "abcdef0123"}
    (tmp_path / "x.json").write_text(json.dumps(settings | more))
    line = str(evaluate(tmp_path / "x.npz", real, small(), ("fid",), rounds=0)[0])
    assert line.endswith(
        "; ddpm, 250 steps, guidance 1.5 on 3 channels at times 0.1 to 0.9, rescaled 0.5, seed 0, weights abcdef01"
    )
    for foreign in ("{", "[]", "{}", json.dumps(settings | {"num_samples": 1})):
        (tmp_path / "x.json").write_text(foreign)
        assert evaluate(tmp_path / "x.npz", real, small(), ("fid",), rounds=0)[0].facts["drawn"] == {}


@pytest.fixture(scope="module")
def sources(real, tmp_path_factory):
    """The same pictures in every form."""
    folder = tmp_path_factory.mktemp("sources")
    images = real[:40]
    (folder / "png").mkdir()
    for i, image in enumerate(images):
        save_png(to_pil(image), folder / "png" / f"{i:03d}.png")
    write_samples(folder / "x.npz", [images], len(images))
    source = open_source(str(folder / "png"))
    prepare(source, CodecConfig("pixels"), folder / "shards", PrepareConfig(flips=False, workers=1), name="png")
    return {"array": images, "npz": folder / "x.npz", "png": folder / "png", "shards": folder / "shards"}


@pytest.mark.parametrize("kind", ["npz", "png", "shards"])
def test_pictures_are_the_same_in_every_form(kind, sources):
    one, other = images_from(sources["array"]), images_from(sources[kind])
    assert (other.count, str(sources[kind])) == (one.count, other.name)
    for start, stop in ((0, 40), (7, 29), (33, 33), (30, 99)):
        held = list(other.batches(8, start, stop))
        assert [len(batch) for batch in held] == [len(batch) for batch in one.batches(8, start, stop)]
        if held:
            np.testing.assert_array_equal(np.concatenate(held), sources["array"][start:stop])
    np.testing.assert_array_equal(other.first(), sources["array"][:1])


def test_a_data_set_by_its_name_and_folders_that_are_cropped(sources):
    assert images_from("digits-held-out").count == len(digits("held out").images)
    assert images_from(sources["png"], 6).first().shape == (1, 6, 6, 1)
    with pytest.raises(UserError, match="has pictures of 8 x 8, not 6; only folders are cropped"):
        images_from(sources["npz"], 6)


def test_colour_stays_where_there_is_any(tmp_path):
    colours = np.zeros((2, 8, 8, 3), np.uint8)
    colours[1, 0, 0] = (1, 2, 3)
    for i, image in enumerate(colours):
        save_png(to_pil(image), tmp_path / f"{i}.png")
    np.testing.assert_array_equal(next(images_from(tmp_path).batches(2, 0, 2)), colours)


def test_a_judge_learns_from_pictures_with_classes(tmp_path):
    images, labels = labelled("digits-held-out")
    held_out = digits("held out")
    np.testing.assert_array_equal(images, held_out.images)
    np.testing.assert_array_equal(labels, held_out.targets)
    save_png(to_pil(images[0]), tmp_path / "0.png")
    with pytest.raises(UserError, match="has no classes for a judge to tell apart"):
        labelled(str(tmp_path))


def test_what_is_kept_is_evenly_spread():
    assert spread(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(7, 3).tolist() == [0, 2, 4]
    assert spread(3, 0).tolist() == []


def test_statistics_are_of_all_pictures_though_few_features_are_kept(scores, real, fake):
    few = evaluate(fake, real, small(), ("fid", "is", "pr"), rounds=10, keep=50)
    assert few["fid"].value == pytest.approx(scores["fid"].value, rel=1e-9)
    assert few["is"].value == pytest.approx(scores["is"].value, rel=1e-9)
    expected = precision_recall(small()(real[::6]).pool, small()(fake[spread(COUNT, 50)]).pool)
    assert few["precision"].value == pytest.approx(expected.precision)
    assert (few["recall"].facts["samples"], few["recall"].facts["reference"]) == (50, 50)
    assert few["fid"].facts["samples"] == COUNT
    assert "an array: features of 50 of 130 pictures are kept, evenly spread" in few.cautions


def test_without_intervals_nothing_is_kept(monkeypatch, real, fake):
    asked, collect = [], compare_module.collect

    def watched(images, extractor, needs, reading):
        asked.append(needs)
        return collect(images, extractor, needs, reading)

    monkeypatch.setattr(compare_module, "collect", watched)
    score = evaluate(fake, real, small(), ("fid",), rounds=0)[0]
    assert (score.low, score.high) == (None, None)
    assert asked == [{(MOMENTS, "pool")}] * 2
    assert "95%" not in evaluate(fake, real, small(), ("fid",), rounds=0).text()


def test_batches_do_not_matter_and_a_reference_can_be_seen_once(scores, real, fake):
    side = compare_module.collect(
        images_from(real), small(), {(MOMENTS, "pool"), (KEPT, "pool")}, Reading(ALONE, batch_size=11)
    )
    again = evaluate(fake, side, small(), ("fid", "kid"), rounds=0, batch_size=7)
    assert isinstance(side, Side)
    for key in ("fid", "kid"):
        assert again[key].value == pytest.approx(scores[key].value, rel=1e-5)


# references in files


@pytest.fixture(scope="module")
def reference(real, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "ref.npz"
    make_reference(images_from(real), small(), path, Reading(ALONE, keep=300))
    return path


def test_a_reference_on_the_disk_is_the_pictures_it_was_made_from(reference, scores, real, fake):
    found = evaluate(fake, reference, small(), rounds=50)
    assert found.scores[0].facts["reference_from"] == str(reference)
    for score, expected in zip(found, scores, strict=True):
        assert (score.value, score.low, score.high) == (expected.value, expected.low, expected.high)
        assert score.facts["reference"] == expected.facts["reference"]
    with np.load(reference) as archive:  # as ADM's evaluator reads it
        features = small()(real)
        for mean, covariance, rows in (("mu", "sigma", features.pool), ("mu_s", "sigma_s", features.spatial)):
            np.testing.assert_allclose(archive[mean], rows.astype(float).mean(0), rtol=1e-5)
            np.testing.assert_allclose(archive[covariance], np.cov(rows.astype(float).T), rtol=1e-4, atol=1e-7)
    held = read_reference(reference)
    assert (held.pool.count, held.pool.extractor) == (300, small().name)


def test_statistics_alone_are_enough_for_distances_of_statistics(real, fake, tmp_path):
    make_reference(images_from(real), small(), tmp_path / "ref.npz", Reading(ALONE, keep=0))
    found = evaluate(fake, tmp_path / "ref.npz", small(), rounds=10)
    assert [score.facts["metric"] for score in found] == ["fid", "sfid", "is"]
    with pytest.raises(UserError, match=r"kid needs features of single pictures, which '.*ref\.npz' does not hold"):
        evaluate(fake, tmp_path / "ref.npz", small(), ("fid", "kid"))


def test_a_reference_of_adm_has_pictures_for_what_needs_features(scores, real, fake, tmp_path):
    held = gaussian_of(small()(real).pool)
    np.savez(tmp_path / "adm.npz", arr_0=real, mu=held.mean, sigma=held.covariance)
    found = evaluate(fake, tmp_path / "adm.npz", small(), ("fid", "kid"), rounds=0)
    for key in ("fid", "kid"):
        assert found[key].value == pytest.approx(scores[key].value, rel=1e-9)
    assert found["fid"].facts["reference"] is None
    assert "130 samples against an unknown number" in str(found["fid"])
    assert any("does not say what made its features" in line for line in found.cautions)
    with pytest.raises(UserError, match=r"sfid needs spatial statistics \(mu_s, sigma_s\), which 'x'"):
        evaluate(fake, Side("x", parts={(MOMENTS, "pool"): held}), small(), ("sfid",))


def test_a_reference_with_its_pictures_needs_no_others(scores, real, fake, tmp_path):
    make_reference(images_from(real), small(), tmp_path / "ref.npz", Reading(ALONE, 0, 7), with_pictures=True)
    with np.load(tmp_path / "ref.npz") as archive:  # as ADM's evaluator reads it
        np.testing.assert_array_equal(archive["arr_0"], real)
        assert {"mu", "sigma", "mu_s", "sigma_s"} < set(archive)
    found = evaluate(fake, tmp_path / "ref.npz", small(), rounds=50)
    for score, expected in zip(found, scores, strict=True):
        assert (score.value, score.low, score.high) == pytest.approx((expected.value, expected.low, expected.high))
    again = evaluate(tmp_path / "ref.npz", real, small(), ("fid",), rounds=0)  # it is a set of samples too
    assert again["fid"].value == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("coloured", [False, True])
def test_grey_and_coloured_pictures_become_one_array(coloured, tmp_path):
    """Batches of a folder come in grey where all of their pictures are."""
    pictures = np.repeat(digits().images[:9], 3, 3)
    if coloured:
        pictures[5, 0, 0] = (1, 2, 3)
    for i, image in enumerate(pictures):
        save_png(to_pil(image), tmp_path / f"{i}.png")
    made = tmp_path / "ref.npz"
    make_reference(images_from(tmp_path), small(), made, Reading(ALONE, 0, 2), with_pictures=True)
    with np.load(made) as archive:
        np.testing.assert_array_equal(archive["arr_0"], pictures if coloured else pictures[..., :1])


def test_pictures_are_kept_in_the_memory_of_a_batch(tmp_path):
    """25 MB of them."""

    def batches(size, start, stop):
        return (np.full((min(size, stop - i), 64, 64, 3), i % 251, np.uint8) for i in range(start, stop, size))

    reading = Reading(ALONE, 0, 16)
    tracemalloc.start()
    make_reference(Images("many", 2048, batches), small(), tmp_path / "ref.npz", reading, with_pictures=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6
    assert images_from(tmp_path / "ref.npz").count == 2048


def test_a_reference_kept_as_a_side_may_lack_statistics(scores, real, fake):
    """It is `completed` for one metric, which need not be a Frechet distance."""
    side = completed(reference_from(real), small(), ("kid",), Reading(ALONE))
    assert side.parts.keys() == {(KEPT, "pool")}
    assert evaluate(fake, side, small(), ("kid",), rounds=0)["kid"].value == scores["kid"].value


# what is said, and what is refused


def test_cautions_say_what_a_number_cannot(real, fake):
    few = evaluate(fake[:10], real[:20], small(), ("fid", "is"), rounds=10)
    assert any(
        line.startswith("samples: 10 samples are few for 12 features: the covariance has rank 9 at most")
        and "for samples of the reference itself" in line
        for line in few.cautions
    )
    assert any(line.startswith("reference: 20 samples are few for 12 features") for line in few.cautions)
    assert any("1 samples to a split are few for 12 classes" in line for line in few.cautions)
    assert all(f"caution: {line}" in few.text() for line in few.cautions)
    other = evaluate(fake.repeat(2, 1), real, small(), ("fid",), rounds=0)
    assert "samples are of 16 x 8 pixels, the reference of 8 x 8" in other.cautions
    assert evaluate(fake, real, small(), ("fid", "kid"), rounds=0).cautions == ()


def test_classes_in_an_order_are_noticed(fake):
    class Sure(nn.Module):
        def forward(self, x):
            return Seen(x.mean((2, 3)), None, torch.eye(2)[(x.mean((1, 2, 3)) > 0).long()])

    images = np.where(np.arange(COUNT) % 2, 255, 0).astype(np.uint8)[:, None, None, None] + 0 * fake
    mixed, in_order = (
        evaluate(a, None, ModuleExtractor(Sure(), "sure"), ("is",)) for a in (images, np.sort(images, 0))
    )
    assert mixed["is"].value == pytest.approx(2, rel=0.01)
    assert mixed.cautions == ()
    assert in_order["is"].value == pytest.approx(1, rel=0.01)
    assert "classes come in an order" in in_order.cautions[0]


class Broken(nn.Module):
    def forward(self, x):
        pool = x.mean((2, 3))
        return torch.where(pool > 0.99, torch.nan, pool)


def test_features_that_are_not_numbers_are_refused_with_the_picture(real, fake):
    bad = np.concatenate([fake[:100], np.full_like(fake[:1], 255)])
    with pytest.raises(UserError, match=r"broken-\w+ gives NaN or infinite features for picture 100 of 'an array'"):
        evaluate(bad, real, ModuleExtractor(Broken(), "broken"), ("fid",))


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


REFUSED = [
    ({"metrics": ("fid", "fidd")}, "unknown metric 'fidd'; known: dc, fid, is, kid, pr, sfid"),
    ({"metrics": ()}, "no metric is asked for"),
    ({"samples": 1, "metrics": ("fid",)}, "1 samples are too few for fid: at least 2"),
    ({"samples": 9, "metrics": ("is",)}, "9 samples are too few for is: at least 10"),
    ({"samples": 3, "metrics": ("pr",)}, "3 samples are too few for pr: at least 4"),
    ({"real": 5, "metrics": ("dc",)}, "5 pictures in 'an array' are too few for dc: at least 6"),
    ({"samples": 1}, "1 samples are too few for fid"),
    ({"reference": None, "metrics": ("kid",)}, "kid needs a reference; without one only is can be had"),
    ({"extractor": "incption:x"}, "unknown extractor 'incption:x'.*did you mean 'inception'"),
    ({"keep": 1}, "at least 2 pictures must be kept"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_cannot_be_measured_is_refused(given, said, real, fake):
    given = {"samples": COUNT, "real": 300, "extractor": small(), **given}
    images, reference = fake[: given.pop("samples")], real[: given.pop("real")]
    with pytest.raises(UserError, match=said):
        evaluate(images, given.pop("reference", reference), given.pop("extractor"), **given)


def test_files_that_are_something_else_are_refused(real, fake, reference, tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nameless = gaussian_of(small()(real).pool)
    for samples, ref, extractor, said in (
        (save(tmp_path / "a.npz", images=fake), real, small(), "has no array 'arr_0'; it holds images"),
        (save(tmp_path / "b.npz", arr_0=fake / 255), real, small(), "arr_0 is float64; samples are uint8"),
        (
            fake,
            save(tmp_path / "c.npz", x=fake),
            small(),
            "is no reference: it holds x, neither mu and sigma nor arr_0",
        ),
        (fake, save(tmp_path / "d.npz", mu=nameless.mean), small(), "no mu and sigma"),
        (fake, reference, small("other"), f"was made with {small().name}, the samples' features come from other-"),
        (
            fake,
            save(tmp_path / "e.npz", mu=nameless.mean, sigma=nameless.covariance),
            ModuleExtractor(plain, "five"),
            r"has 12 features to a picture, five-\w+ gives 5; use that extractor, or make another",
        ),
        (
            fake,
            save(tmp_path / "f.npz", mu=nameless.mean, sigma=nameless.covariance, ditwright_features=real),
            small(),
            "ditwright_features is uint8",
        ),
        (fake / 255, real, small(), r"pictures are uint8 \(number, height, width, 1 or 3\); got float64"),
        (tmp_path / "none.npz", real, small(), "none.npz"),
        (str(tmp_path / "none"), real, small(), "there is no data set or folder"),
    ):
        with pytest.raises((UserError, FileNotFoundError), match=said):
            evaluate(samples, ref, extractor, ("fid",), rounds=0)
    with pytest.raises(UserError, match="sfid needs spatial features, which five-"):
        evaluate(fake, real, ModuleExtractor(plain, "five"), ("sfid",))


def test_pictures_of_several_sizes_are_refused(tmp_path, real):
    for side in (8, 9):
        save_png(to_pil(np.zeros((side, side, 1), np.uint8)), tmp_path / f"{side}.png")
    with pytest.raises(UserError, match=r"of several sizes: .*8.png' is 8 x 8, .*9.png' is 9 x 9"):
        evaluate(tmp_path, real, small())
    assert images_from(tmp_path, 8).count == 2


def test_latents_are_refused(monkeypatch):
    class Latents:
        groups, codec, class_names = digits().groups, {"kind": "kl", "channels": 4, "factor": 8}, ("a", "b")

    monkeypatch.setattr("ditwright.evaluate.pictures.open_dataset", lambda name, size: Latents())
    with pytest.raises(UserError, match=r"holds latents \(codec kl\), and metrics look at pictures"):
        images_from("shards")
    Latents.groups = digits().groups * 2
    with pytest.raises(UserError, match="holds pictures of several sizes"):
        images_from("shards")


def test_presets_are_the_papers_settings_and_leave_out_what_only_pleases():
    own = SampleConfig("heun", 20, 4.0, (0.1, 0.9), 0.2, 2, batch_size=5)
    assert PRESETS["plain"].config(own) == SampleConfig("heun", 20, batch_size=5)
    paper = SampleConfig("ddpm", 250, 1.5, guidance_channels=3, batch_size=5)
    assert (PRESETS["dit-paper"].count, PRESETS["dit-paper"].config(own)) == (50_000, paper)
    free = replace(paper, guidance_scale=1.0, guidance_channels=None)
    assert PRESETS["dit-paper-unguided"].config(own) == free


# several processes


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_processes_take_whole_batches_and_every_picture_once(size):
    for count in (1, 64, 130, 1000):
        parts = [share(count, 16, World(torch.device("cpu"), rank, size)) for rank in range(size)]
        assert [place for part in parts for place in part] == list(range(count))
        assert all(part.start % 16 == 0 or not part for part in parts)


@pytest.fixture(scope="module")
def forked(tiny_run, tmp_path_factory):
    """What 1, 2 and 7 processes find, and what the command prints in 2; see the end of this file."""
    folder = tmp_path_factory.mktemp("forked")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, __file__, str(folder), str(tiny_run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("processes", [2, 7])
def test_any_number_of_processes_finds_the_same(processes, forked):
    one, several = (json.loads((forked / f"{n}.json").read_text()) for n in (1, processes))
    assert len(one["scores"]) == len(KEYS)
    assert one["cautions"] == several["cautions"]
    assert "an array: features of 60 of 130 pictures are kept, evenly spread" in one["cautions"]
    for a, b in zip(one["scores"], several["scores"], strict=True):
        rounded = [{k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in s["facts"].items()} for s in (a, b)]
        assert rounded[0] == rounded[1]
        assert [a[key] for key in ("value", "low", "high")] == pytest.approx(
            [b[key] for key in ("value", "low", "high")], rel=1e-9
        )


def test_two_processes_draw_and_measure_as_one_command(forked):
    one, two = (json.loads((forked / f"run-{n}.json").read_text()) for n in (1, 2))
    assert one["scores"][0]["value"] == pytest.approx(two["scores"][0]["value"], rel=1e-9)
    assert one["scores"][0]["facts"]["drawn"] == two["scores"][0]["facts"]["drawn"]
    sets = [next((forked / f"draws-{n}").rglob("*.npz")).read_bytes() for n in (1, 2)]
    assert sets[0] == sets[1]


def test_two_processes_make_the_reference_of_one(forked):
    """Of grey pictures, which the first process sees, and a coloured one, which only the other does."""
    with np.load(forked / "ref-1.npz") as one, np.load(forked / "ref-2.npz") as two:
        assert one["arr_0"].shape == (20, 8, 8, 3)
        assert set(one) == set(two)
        for name in one:
            if one[name].dtype.kind == "U":
                assert one[name] == two[name]
            else:
                np.testing.assert_allclose(two[name], one[name], rtol=1e-9, atol=1e-12)


def _fork(rank: int, size: int, work) -> int:
    """The id of a process that works as one of several."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        work()
        status = 0
    finally:
        os._exit(status)


def _together(size: int, work, meeting: Path) -> None:
    def joined(rank):
        if size > 1:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        work(rank)

    pids = [_fork(rank, size, lambda rank=rank: joined(rank)) for rank in range(size)]
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert ended == [0] * size, ended


if __name__ == "__main__":
    folder, run = Path(sys.argv[1]), sys.argv[2]
    bright, plain = digits("held out").images[:COUNT], digits("train").images[:60]
    write_samples(folder / "ref.npz", [digits("train").images[:100]], 100)
    judge_path = folder / "judge.safetensors"
    learn_judge(plain, np.arange(60) % 2, dataset="any", steps=1).save(judge_path)

    def measured(rank: int, size: int) -> None:
        found = evaluate(bright, plain, small(), rounds=20, keep=60, batch_size=8)
        assert (found is None) == (rank > 0)
        if found is not None:
            (folder / f"{size}.json").write_text(json.dumps(found.plain()))

    def commanded(rank: int, size: int) -> None:
        words = ["eval", run, "--ref", folder / "ref.npz", "--extractor", f"judge:{judge_path}", "--metrics", "fid"]
        words += ["--num-samples", 70, "--batch-size", 16, "--rounds", 9, "--feature-batch", 8]
        words += ["--draws", folder / f"draws-{size}", "--output", folder / f"run-{size}.json"]
        assert main([str(word) for word in words]) == 0

    for n in (1, 2, 7):
        _together(n, lambda rank, n=n: measured(rank, n), folder / f"meeting-{n}")

    def grey_but_for_the_last(size: int, start: int, stop: int):
        return (np.full((1, 8, 8, 3 if i == 19 else 1), 9 * i, np.uint8) for i in range(start, stop))

    def referred(rank: int, size: int) -> None:
        reading = Reading(join(), 10, 1)
        images = Images("mixed", 20, grey_but_for_the_last)
        make_reference(images, small(), folder / f"ref-{size}.npz", reading, with_pictures=True)

    for n in (1, 2):
        _together(n, lambda rank, n=n: commanded(rank, n), folder / f"meeting-run-{n}")
        _together(n, lambda rank, n=n: referred(rank, n), folder / f"meeting-ref-{n}")
