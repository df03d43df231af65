"""A set of samples for FID is the same, byte for byte, whatever the number of processes and of stops."""

from __future__ import annotations

import json
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from ditwright.errors import UserError
from ditwright.pipeline import fid
from ditwright.pipeline.fid import Order, draw_set
from ditwright.rng import generator
from small_pipelines import autoencoder, latent_pipeline, pipeline

COUNT = 23  # in chunks of 4, the last of them short


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def order(pipe, output, count=COUNT, **settings):
    others = {key: settings.pop(key) for key in ("seed", "size", "origin") if key in settings}
    return Order(pipe, output, count, pipe.settings({"num_inference_steps": 2, **settings}), **others)


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """The set that one process draws in one go."""
    wanted = order(pipe, tmp_path_factory.mktemp("whole"))
    assert draw_set(wanted) == wanted.npz
    return wanted


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_set_is_what_adm_reads(whole, pipe):
    with np.load(whole.npz) as archive:
        assert archive.files == ["arr_0"]
        images = archive["arr_0"]
    assert (images.shape, images.dtype) == ((COUNT, 8, 8, 1), np.uint8)
    labels = [int(generator(0, i, "label").integers(3)) for i in range(COUNT)]
    assert set(labels) == {0, 1, 2}
    assert np.array_equal(images, pipe.draw(labels, num_inference_steps=2))
    with zipfile.ZipFile(whole.npz) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type) == ("arr_0.npy", zipfile.ZIP_STORED)
        with archive.open(entry) as file:  # ADM reads it piece by piece, by this header
            assert np.lib.format.read_magic(file) == (1, 0)
            assert np.lib.format.read_array_header_1_0(file) == (images.shape, False, np.uint8)
            assert file.read() == images.tobytes()


def test_beside_a_set_lie_its_settings_and_nothing_else(whole):
    assert files(whole.output) == ["samples_23.json", "samples_23.npz"]
    said = json.loads(whole.npz.with_suffix(".json").read_text())
    assert (said["num_samples"], said["seed"], said["size"], said["dtype"]) == (COUNT, 0, [8, 8], "float32")
    assert (said["sampler"], said["num_inference_steps"], said["guidance_scale"]) == ("ddim", 2, 2.0)
    assert len(said["weights"]) == 64


@pytest.mark.parametrize("world", [2, 3, 9])
def test_the_number_of_processes_does_not_matter(world, whole, pipe, tmp_path):
    wanted = order(pipe, tmp_path)
    made = [draw_set(wanted, rank, world) for rank in reversed(range(world))]
    assert made == [None] * (world - 1) + [wanted.npz]
    assert wanted.npz.read_bytes() == whole.npz.read_bytes()
    assert files(tmp_path) == files(whole.output)


def test_processes_that_meet_make_one_set(whole, pipe, tmp_path):
    wanted = order(pipe, tmp_path)
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda rank: draw_set(wanted, rank, 4), range(4)))
        assert made.count(wanted.npz) == 1
        assert made.count(None) == 3
        assert wanted.npz.read_bytes() == whole.npz.read_bytes()
        assert files(tmp_path) == files(whole.output)
        wanted.npz.unlink()
        wanted.npz.with_suffix(".json").unlink()


class Killed(Exception):
    pass


def test_a_set_goes_on_where_it_stopped_whatever_the_number_of_processes(whole, pipe, tmp_path, monkeypatch):
    """Stopped twice; each chunk is drawn once."""
    wanted, drawn = order(pipe, tmp_path), []
    draw = type(pipe).draw

    def counted(pipe, labels, **settings):
        drawn.append(settings["first"])
        return draw(pipe, labels, **settings)

    monkeypatch.setattr(type(pipe), "draw", counted)

    def stop_at(count):
        def stop(done):
            if done >= count:
                raise Killed

        return stop

    with pytest.raises(Killed):
        draw_set(wanted, progress=stop_at(8))
    (wanted.parts / ".000002.77.half").write_bytes(b"half a part")
    with pytest.raises(Killed):
        draw_set(wanted, 1, 2, progress=stop_at(12))
    assert [draw_set(wanted, rank, 3) for rank in range(3)] == [None, None, wanted.npz]
    assert sorted(drawn) == list(range(0, COUNT, 4))
    assert wanted.npz.read_bytes() == whole.npz.read_bytes()
    assert files(tmp_path) == files(whole.output)


@pytest.mark.parametrize("place", ["assemble", "discard", "shutil.rmtree"])
def test_a_stop_while_the_set_is_put_together_loses_nothing(place, whole, pipe, tmp_path, monkeypatch):
    wanted = order(pipe, tmp_path)
    owner, _, name = place.rpartition(".")
    target = getattr(fid, owner) if owner else fid

    def stop(*args, ignore_errors=False):
        if not ignore_errors:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(target, name, stop)
        with pytest.raises(Killed):
            draw_set(wanted)
    assert len(list(tmp_path.rglob("*.npy"))) == 6
    assert draw_set(wanted) == wanted.npz
    assert wanted.npz.read_bytes() == whole.npz.read_bytes()
    draw_set(order(pipe, tmp_path, 3))  # the next one tidies up
    assert files(tmp_path) == ["samples_23.json", "samples_23.npz", "samples_3.json", "samples_3.npz"]


@pytest.mark.parametrize("damage", [b"", b"noise", "cut"])
def test_a_damaged_part_is_drawn_again(damage, whole, pipe, tmp_path):
    wanted = order(pipe, tmp_path)
    draw_set(wanted, 0, 2)
    content = wanted.part(2).read_bytes()
    wanted.part(2).write_bytes(content[:-7] if damage == "cut" else damage)
    assert draw_set(wanted) == wanted.npz
    assert wanted.npz.read_bytes() == whole.npz.read_bytes()


def test_a_part_damaged_behind_our_back_is_named_and_drawn_again(whole, pipe, tmp_path):
    wanted = order(pipe, tmp_path)
    draw_set(wanted, 0, 2)
    wanted.part(2).write_bytes(b"noise")
    with pytest.raises(UserError, match=r"000002\.npy' is damaged .*the same command draws it again"):
        draw_set(wanted, 1, 2)
    assert [draw_set(wanted, rank, 2) for rank in range(2)] == [wanted.npz, None]
    assert wanted.npz.read_bytes() == whole.npz.read_bytes()


def test_a_set_that_is_there_is_left_alone(whole, pipe, monkeypatch):
    before = whole.npz.stat().st_mtime_ns
    monkeypatch.setattr(type(pipe), "draw", None)
    assert [draw_set(whole, rank, 2) for rank in range(2)] == [whole.npz, None]
    assert whole.npz.stat().st_mtime_ns == before


@pytest.mark.parametrize("at", [700, 0, -22])
def test_a_damaged_set_is_not_told_as_samples(at, whole, pipe, tmp_path):
    """In its pictures, in the zip's own header, and where its list of contents ends."""
    wanted = order(pipe, tmp_path)
    shutil.copytree(whole.output, tmp_path, dirs_exist_ok=True)
    assert draw_set(wanted) == wanted.npz
    content = bytearray(wanted.npz.read_bytes())
    content[at] ^= 1
    wanted.npz.write_bytes(content)
    with pytest.raises(UserError, match=r"samples_23\.npz' is damaged \(.*\); remove it, and the same command"):
        draw_set(wanted)
    wanted.npz.unlink()
    assert draw_set(wanted).read_bytes() == whole.npz.read_bytes()


DIFFERENT = [
    ({"seed": 1}, "seed is 0 there and 1 now"),
    ({"num_inference_steps": 3}, "num_inference_steps is 2 there and 3 now"),
    ({"guidance_scale": 1.5}, "guidance_scale is 2.0 there and 1.5 now"),
    ({"batch_size": 5}, "batch_size is 4 there and 5 now"),
    ({"size": (4, 4)}, "size is .* there and .* now"),
]


@pytest.mark.parametrize(("settings", "said"), DIFFERENT)
@pytest.mark.parametrize("begun", ["in part", "whole"])
def test_other_settings_are_refused_naming_the_difference(begun, settings, said, pipe, tmp_path):
    draw_set(order(pipe, tmp_path), 0, 2 if begun == "in part" else 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"{tmp_path}.*{said}.*choose another --output"):
        draw_set(order(pipe, tmp_path, **settings))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_count_is_refused_half_way_and_beside_a_whole_set_another_set(whole, pipe, tmp_path):
    draw_set(order(pipe, tmp_path), 0, 2)
    with pytest.raises(UserError, match="num_samples is 23 there and 7 now"):
        draw_set(order(pipe, tmp_path, 7))
    draw_set(order(pipe, tmp_path))
    draw_set(order(pipe, tmp_path, 7))
    assert files(tmp_path) == ["samples_23.json", "samples_23.npz", "samples_7.json", "samples_7.npz"]
    with np.load(tmp_path / "samples_7.npz") as few, np.load(whole.npz) as many:
        assert np.array_equal(few["arr_0"], many["arr_0"][:7])


def test_parts_of_another_set_are_left_alone(pipe, tmp_path):
    draw_set(order(pipe, tmp_path, 7))
    draw_set(order(pipe, tmp_path), 0, 2)
    before = files(tmp_path)
    draw_set(order(pipe, tmp_path, 7))
    assert files(tmp_path) == before


def test_other_weights_are_refused_but_a_checkpoint_may_have_moved(pipe, tmp_path):
    draw_set(order(pipe, tmp_path, origin={"checkpoint": "here"}), 0, 2)
    with pytest.raises(UserError, match=r"weights is \w+ there and \w+ now"):
        draw_set(order(changed(), tmp_path, origin={"checkpoint": "here"}))
    assert draw_set(order(pipe, tmp_path, origin={"checkpoint": "there"})) is not None


def changed():
    other = pipeline()
    other.denoiser.net.head.proj.bias.data += 1
    return other


def test_parts_without_their_settings_are_refused(pipe, tmp_path):
    wanted = order(pipe, tmp_path)
    draw_set(wanted, 0, 2)
    (wanted.parts / "settings.json").unlink()
    with pytest.raises(UserError, match=r"settings\.json' is missing or damaged"):
        draw_set(wanted)


def test_progress_counts_the_samples_of_all_processes(pipe, tmp_path):
    first, second = [], []
    draw_set(order(pipe, tmp_path), 1, 2, progress=first.append)
    draw_set(order(pipe, tmp_path), 0, 2, progress=second.append)
    assert first == [0, 4, 8, 11]
    assert second == [11, 15, 19, 23]


def test_a_network_without_classes_draws_its_set(tmp_path):
    wanted = order(pipeline(classes=0), tmp_path, 5)
    draw_set(wanted)
    with np.load(wanted.npz) as archive:
        assert np.array_equal(archive["arr_0"], wanted.pipe.draw([None] * 5, num_inference_steps=2))


def test_what_cannot_be_drawn_is_refused_before_anything_is_made(pipe, tmp_path):
    with pytest.raises(UserError, match="at least 1"):
        order(pipe, tmp_path / "out", 0)
    with pytest.raises(UserError, match="not divisible"):
        order(pipe, tmp_path / "out", size=(7, 8))
    with pytest.raises(UserError, match="unknown sampler"):
        replace(order(pipe, tmp_path / "out"), config=replace(pipe.card.sample, sampler="none"))
    without = latent_pipeline(autoencoder(tmp_path / "vae"))
    (tmp_path / "vae").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="vae"):
        order(without, tmp_path / "out")
    assert not (tmp_path / "out").exists()
