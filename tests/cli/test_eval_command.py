"""`ditwright eval`: judges, references, samples on the disk and samples that it draws; what it prints and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ditwright.cli.main import main
from ditwright.data.digits import digits
from ditwright.metrics.npz import write_samples
from ditwright.pictures import save_png, to_pil
from small_pipelines import prompted_pipeline


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with some digits as samples, some as a reference, and a judge that has seen little."""
    folder = tmp_path_factory.mktemp("eval")
    real = digits().images
    write_samples(folder / "real.npz", [real[:200]], 200)
    write_samples(folder / "fake.npz", [255 - real[200:260]], 60)
    words = ["eval", "judge", "digits-held-out", "--steps", "4", "--seed", "3"]
    assert main([*words, "--output", str(folder / "judge.safetensors")]) == 0
    return folder


@pytest.fixture
def words(place):
    """eval SAMPLES against the digits of `place`."""

    def make(samples, *more):
        ref = () if "--ref" in more else ("--ref", place / "real.npz")
        judge = () if "--extractor" in more else ("--extractor", f"judge:{place / 'judge.safetensors'}")
        return ["eval", samples, *ref, *judge, "--rounds", 20, *more]

    return make


def test_a_judge_says_how_good_it_is_and_how_to_use_it(command, tmp_path):
    path = tmp_path / "new" / "judge.safetensors"
    code, out, err = command("eval", "judge", "digits-held-out", "--steps", 2, "--output", path)
    assert (code, err) == (0, "")
    name, facts, use = out.splitlines()
    assert name.startswith("judge-digits-held-out-")
    assert name.endswith(f": {path}")
    assert facts.startswith("trained on 292 pictures; right on ")
    assert facts.endswith("% of 67 that it never saw")
    assert use == f"to use: ditwright eval SAMPLES --ref digits-held-out --extractor judge:{path}"


def test_samples_in_a_file_are_measured_against_pictures(command, words, place, tmp_path):
    code, out, err = command(*words(place / "fake.npz", "--output", tmp_path / "new" / "scores.json"))
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if line[0] != "[" and not line.startswith("caution")]
    names = [line.split()[0] for line in lines]
    assert names == ["FD", "IS", "KD", "precision", "recall", "density", "coverage"]
    assert all("judge-digits-held-out-" in line and "60 samples" in line for line in lines)
    assert all("against 200" in line for line in lines if line[:2] != "IS")
    assert "FID" not in out
    assert "caution: samples: 60 samples are few for 64 features" in out
    told = json.loads((tmp_path / "new" / "scores.json").read_text())
    for score, line in zip(told["scores"], lines, strict=True):
        assert line.startswith(score["name"])
        assert f"{score['value']:.5g}" in line.split()
    assert json.loads(command(*words(place / "fake.npz", "--json")).out) == told


def test_a_reference_made_beforehand_gives_the_same_numbers(command, words, place, tmp_path):
    path, judge = tmp_path / "ref.npz", f"judge:{place / 'judge.safetensors'}"
    made = command("eval", "ref", place / "real.npz", "--extractor", judge, "--output", path)
    assert made.code == 0
    assert made.out.splitlines()[0].startswith("200 pictures by judge-digits-held-out-")
    assert made.out.splitlines()[0].endswith(f": {path}")
    assert "caution: 200 samples are few for 64 features" in made.out
    one, two = (json.loads(command(*words(place / "fake.npz", "--json", *ref)).out) for ref in ((), ("--ref", path)))
    numbers = [[(s["name"], s["value"], s["low"], s["high"]) for s in told["scores"]] for told in (one, two)]
    assert numbers[0] == numbers[1]


def test_a_reference_may_keep_its_pictures(command, words, place, tmp_path):
    path, judge = tmp_path / "ref.npz", f"judge:{place / 'judge.safetensors'}"
    made = ("eval", "ref", place / "real.npz", "--extractor", judge, "--output", path, "--features", 0)
    assert command(*made).code == 0
    assert command(*words(place / "fake.npz", "--ref", path, "--metrics", "kid")).code == 2  # neither
    assert command(*made, "--with-pictures").code == 0
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["arr_0"], digits().images[:200])
    one, two = (
        json.loads(command(*words(place / "fake.npz", "--json", "--metrics", "kid,pr", *ref)).out)["scores"]
        for ref in ((), ("--ref", path))
    )
    assert [(s["name"], s["value"]) for s in two] == [(s["name"], pytest.approx(s["value"], rel=1e-6)) for s in one]


def test_samples_of_a_run_are_drawn_once_and_carry_their_settings(command, words, tiny_run, tmp_path):
    asked = words(tiny_run, "--metrics", "fid", "--num-samples", 30, "--draws", tmp_path, "--seed", 4, "--json")
    code, out, _ = command(*asked)
    assert code == 0
    (npz,) = tmp_path.rglob("*.npz")
    assert (npz.name, npz.parent.name[:14]) == ("samples_30.npz", "step-00000006-")
    drawn = json.loads(out)["scores"][0]["facts"]["drawn"]
    told = {name: drawn[name] for name in ("sampler", "num_inference_steps", "guidance_scale", "seed", "num_samples")}
    assert told == {"sampler": "heun", "num_inference_steps": 2, "guidance_scale": 1, "seed": 4, "num_samples": 30}
    assert drawn["checkpoint"].endswith("step-00000006")
    before = npz.stat().st_mtime_ns
    assert command(*asked).out == out
    assert npz.stat().st_mtime_ns == before
    other = command(
        *words(tiny_run, "--metrics", "fid", "--num-samples", 30, "--draws", tmp_path, "--sampler", "euler")
    )
    assert "; euler, 2 steps, guidance 1, seed 0, " in other.out
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_the_text_encoder_may_lie_elsewhere(command, refused, place, tmp_path):
    pytest.importorskip("tokenizers")
    pipe, texts = prompted_pipeline(("a red square", "a blue one")), tmp_path / "texts.txt"
    pipe.save_pretrained(tmp_path / "saved")
    texts.write_text("a red square\na blue one\n")
    (tmp_path / "saved" / "text").rename(tmp_path / "tokenizer")
    judge = f"judge:{place / 'judge.safetensors'}"
    words = ["eval", tmp_path / "saved", "--ref", place / "real.npz", "--extractor", judge, "--metrics", "fid"]
    words += ["--num-samples", 8, "--captions", texts, "--draws", tmp_path / "draws", "--rounds", 0]
    missing = tmp_path / "saved" / "text" / "tokenizer.json"
    assert f"there is no tokenizer {str(missing)!r}: bring it back" in refused(*words)
    code, out, _ = command(*words, "--text-encoder", tmp_path / "tokenizer")
    assert code == 0
    (npz,) = (tmp_path / "draws").rglob("*.npz")
    with np.load(npz) as archive:
        assert np.array_equal(archive["arr_0"], pipe.draw(["a red square", "a blue one"] * 4, guidance_scale=1.0))
    (tmp_path / "tokenizer").rename(tmp_path / "moved")
    assert command(*words, "--text-encoder", tmp_path / "moved").out == out
    assert list((tmp_path / "draws").rglob("*.npz")) == [npz]
    words[1] = place / "fake.npz"
    given = ("--text-encoder", tmp_path / "moved")
    assert "--text-encoder is for samples that are drawn" in refused(*words[:8], *given)
    words[1], told = tmp_path / "saved", ("--true-cfg-scale", 2, "--text-encoder", tmp_path / "moved")
    assert "true_cfg_scale is for networks that hear text and imitate guidance" in refused(*words, *told)


def test_a_preset_is_how_the_paper_drew(command, words, tiny_run, tmp_path):
    few = ("--metrics", "fid", "--num-samples", 12, "--num-inference-steps", 3, "--draws", tmp_path)
    code, out, _ = command(*words(tiny_run, *few, "--preset", "dit-paper", "--guidance-channels", 1))
    assert code == 0
    assert "; ddpm, 3 steps, guidance 1.5 on 1 channels, seed 0, " in out
    assert "guidance 1," in command(*words(tiny_run, *few, "--preset", "dit-paper-unguided")).out


def test_folders_shards_and_names_are_samples_too(command, words, place, tmp_path):
    (tmp_path / "png").mkdir()
    for i, image in enumerate(digits().images[:20]):
        save_png(to_pil(image), tmp_path / "png" / f"{i}.png")
    prepare = ("prepare", tmp_path / "png", "--codec", "pixels", "--output", tmp_path / "shards", "--no-flip")
    assert command(*prepare).code == 0
    numbers = {
        kind: json.loads(command(*words(name, "--metrics", "fid", "--json")).out)["scores"][0]["value"]
        for kind, name in {"png": tmp_path / "png", "shards": tmp_path / "shards"}.items()
    }
    assert numbers["png"] == pytest.approx(numbers["shards"], rel=1e-9)
    assert "359 samples against 200" in command(*words("digits-held-out", "--metrics", "fid")).out


def test_the_inception_score_needs_no_reference(command, place):
    judge = f"judge:{place / 'judge.safetensors'}"
    code, out, _ = command("eval", place / "fake.npz", "--extractor", judge, "--metrics", "is", "--rounds", 0)
    assert code == 0
    assert out.startswith("IS (judge-digits-held-out-")
    assert "[" not in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--extractor judge:nowhere", "there is no checkpoint file 'nowhere'"),
        ("--extractor judgee:x", "unknown extractor 'judgee:x'"),
        ("--metrics fid,fiid", "unknown metric 'fiid'; known: dc, fid, is, kid, pr, sfid (did you mean 'fid'?)"),
        ("--metrics ,", "no metric is asked for"),
        ("--metrics sfid", "sfid needs spatial features, which judge-"),
        ("--preset dit", "unknown preset 'dit'; known: dit-paper"),
        ("--preset dit-paper", "--preset is for samples that are drawn"),
        ("--num-samples 5", "--num-samples is for samples that are drawn"),
        ("--guidance-scale 5", "--guidance-scale is for samples that are drawn"),
        ("--size 9", "has pictures of 8 x 8, not 9"),
        ("--rounds -1", "--rounds must be at least 0; got -1"),
        ("--feature-batch 0", "--feature-batch must be at least 1; got 0"),
        ("--features 1", "at least 2 pictures must be kept; got 1"),
        ("--rounds many", "--rounds"),
        ("--ref nowhere.npz", "nowhere.npz"),
        ("--ref nowhere", "there is no data set or folder 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_one_line(more, said, refused, words, place):
    assert said in refused(*words(place / "fake.npz", *more.split()))


def test_what_cannot_be_measured_is_not_drawn_first(refused, words, place, tiny_run, tmp_path):
    for more, said in (
        ("--num-samples 1 --metrics fid", "1 samples are too few for fid"),
        ("--metrics sfid", "sfid needs spatial features"),
        ("--preset dit-paper", "guidance_channels must be at most 1; got 3"),
        ("--num-samples 0", "--num-samples must be at least 1; got 0"),
        ("--sampler none", "unknown sampler 'none'"),
        ("--guidance-scale much", "guidance_scale must be a number"),
        ("--family dit", "family and heads are for weights of other projects"),
        (f"--ref {place / 'fake.txt'}", "fake.txt"),
    ):
        assert said in refused(*words(tiny_run, "--draws", tmp_path / "draws", *more.split()))
    assert list(tmp_path.iterdir()) == []


def test_incomplete_commands_say_what_is_missing(refused, place, tmp_path, monkeypatch):
    judge = f"judge:{place / 'judge.safetensors'}"
    assert "--extractor is missing: inception:FILE" in refused("eval", place / "fake.npz", "--ref", "digits")
    assert "--ref is missing" in refused("eval", place / "fake.npz", "--extractor", judge)
    assert "--extractor is missing" in refused("eval", "ref", "digits", "--output", tmp_path / "x.npz")
    assert "a file that ends in .npz" in refused("eval", "ref", "digits", "--extractor", judge, "--output", tmp_path)
    assert "ends in .safetensors" in refused("eval", "judge", "digits", "--output", tmp_path / "x")
    assert "--steps must be at least 1" in refused("eval", "judge", "digits", "--output", "x.safetensors", "--steps", 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "by one process" in refused("eval", "judge", "digits", "--output", tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_references_of_what_are_no_pictures_are_refused(refused, place, tmp_path):
    judge = f"judge:{place / 'judge.safetensors'}"
    np.savez(tmp_path / "keys.npz", pictures=np.zeros((3, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "kind.npz", arr_0=np.zeros((3, 8, 8, 1), np.float32))
    (tmp_path / "mixed").mkdir()
    for side in (8, 9):
        Image.new("L", (side, side)).save(tmp_path / "mixed" / f"{side}.png")
    out = ("--extractor", judge, "--output", tmp_path / "out.npz")
    for name, said in (
        ("keys.npz", "has no array 'arr_0'; it holds pictures"),
        ("kind.npz", "arr_0 is float32; samples are uint8"),
        ("mixed", "pictures are of several sizes"),
    ):
        assert said in refused("eval", "ref", tmp_path / name, *out)
    assert not (tmp_path / "out.npz").exists()
