"""Pictures into shards: the same bytes whoever makes them and whatever happens on the way; nothing lost or doubled."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ditwright.codec.base import find_codec
from ditwright.codec.config import CodecConfig
from ditwright.config import from_dict, to_dict
from ditwright.data.base import Record
from ditwright.data.buckets import Buckets
from ditwright.data.images import Unreadable, centre_crop
from ditwright.data.shards import Shards
from ditwright.data.tar import TarWriter
from ditwright.errors import UserError
from ditwright.prepare import PrepareConfig, prepare, survey, work
from ditwright.prepare.folder import locked
from ditwright.prepare.place import Place
from ditwright.rng import generator

SMALL = PrepareConfig(size=8, shard_size=3, workers=2, max_corrupt=0.5)
ATTEMPTS = Path(__file__).with_name("prepare_attempts.py")


@dataclass
class Source:
    """Pictures of noise that count how often they are read."""

    pixels: list[np.ndarray]
    damaged: set[int] = field(default_factory=set)
    class_names: tuple[str, ...] = ("even", "odd")
    folder: str = "here"
    read: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, number: int) -> Record:
        name = f"{self.folder}/{number}.png"
        return Record(name, partial(self._read, number), number % 2, f"picture {number}" if number % 3 else None)

    def _read(self, number: int) -> np.ndarray:
        self.read.append(number)
        if number in self.damaged:
            raise Unreadable("is truncated")
        return self.pixels[number]


def noise(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """A picture of each size."""
    return [
        generator(0, number, "test").integers(0, 256, (*size, 3), dtype=np.uint8) for number, size in enumerate(sizes)
    ]


def source(count: int = 8, **facts: Any) -> Source:
    return Source(noise(*[(8 + number % 3, 9) for number in range(count)]), **facts)


@dataclass
class Fake:
    """A codec of two channels that averages squares of four by four; how sure it is depends on the picture too."""

    config: CodecConfig
    by: float = 1.0

    def moments(self, images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 127.5 - 1
        mean = torch.nn.functional.avg_pool2d(pixels, 4)[:, :2] * self.by
        return torch.cat([mean, 2 * mean.roll(1, 3) - 1], 1)

    def latents(self, moments: Tensor, noise: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        mean, logvar = moments.float().chunk(2, 1)
        drawn = mean if noise is None else mean + (logvar / 2).exp() * noise(mean)
        return (drawn - self.config.shift[0]) * self.config.scale[0]

    def to(self, *place: object) -> Fake:
        return self


FAKE = CodecConfig("kl", 2, 4, scale=(0.5,), shift=(0.25,), source="fake", fingerprint="f00")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """The codec of configuration FAKE."""
    codec = Fake(FAKE)
    monkeypatch.setattr(work, "completed", lambda config: config)
    monkeypatch.setattr(work, "codec_from", lambda config: codec)
    return codec


def drawn(shards: Shards) -> tuple[np.ndarray, np.ndarray]:
    """All moments of a set of one size as it is, and mirrored."""
    (group,) = shards.groups
    everyone = np.ones(len(group.items), bool)
    return shards.read(group.items, ~everyone), shards.read(group.items, everyone)


def test_shards_hold_what_the_codec_makes_of_every_picture(fake, tmp_path):
    index = prepare(pictures := source(), FAKE, tmp_path, replace(SMALL, dtype="float32"))
    shards = Shards(tmp_path)
    assert (len(shards), index.parts, [tar.count for tar in index.shards]) == (8, 3, [3, 3, 2])
    assert shards.class_names == ("even", "odd")
    assert from_dict(CodecConfig, shards.codec) == FAKE
    cropped = np.stack([centre_crop(Image.fromarray(pixels), 8) for pixels in pictures.pixels])
    plain, mirrored = drawn(shards)
    np.testing.assert_array_equal(plain, fake.moments(cropped))
    np.testing.assert_array_equal(mirrored, fake.moments(np.ascontiguousarray(cropped[:, :, ::-1])))
    items = np.array([7, 0, 4])
    assert shards.labels(items).tolist() == [1, 0, 0]
    assert shards.captions(items) == ["picture 7", None, "picture 4"]
    assert [facts["name"] for facts in shards.facts(items)] == ["here/7.png", "here/0.png", "here/4.png"]
    assert [facts["size"] for facts in shards.facts(items)] == [[9, 9], [8, 9], [9, 9]]


def test_statistics_are_those_of_the_latents_as_drawn(fake, tmp_path):
    statistics = prepare(source(), FAKE, tmp_path, SMALL).statistics
    mean, logvar = np.split(np.concatenate(drawn(Shards(tmp_path))).astype(np.float64), 2, axis=1)
    std = np.sqrt(np.exp(logvar).mean((0, 2, 3)) + mean.var((0, 2, 3)))  # of the mixture: law of total variance
    np.testing.assert_allclose(statistics.mean, mean.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, std, rtol=1e-5)


def test_half_precision_is_the_default_and_one_view_is_enough(fake, tmp_path):
    prepare(source(), FAKE, tmp_path / "wide", replace(SMALL, dtype="float32"))
    prepare(source(), FAKE, tmp_path / "half", replace(SMALL, flips=False))
    wide, half = Shards(tmp_path / "wide"), Shards(tmp_path / "half")
    items, plain = np.arange(8), np.zeros(8, bool)
    np.testing.assert_array_equal(half.read(items, plain), wide.read(items, plain).astype(np.float16))
    with pytest.raises(UserError, match=r"prepared with --no-flip .* set data\.flip to 0"):
        half.read(items, ~plain)


@pytest.mark.parametrize("changes", [{"workers": 1}, {"workers": 5, "batch_size": 2}])
def test_threads_and_batches_change_no_byte(fake, contents, changes, tmp_path):
    prepare(source(), FAKE, tmp_path / "a", SMALL)
    prepare(source(), FAKE, tmp_path / "b", replace(SMALL, **changes))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_batches_on_a_gpu_hold_pictures_of_one_size(fake, contents, monkeypatch, tmp_path):
    """This codec treats every picture of a batch alike, so the bytes are those of one picture at a time."""
    pictures = Source(noise(*[(8, 8), (8, 12), (8, 8), (12, 8), (8, 12), (8, 8), (8, 8)] * 3), {4, 9})
    config = replace(SMALL, size=None, buckets=Buckets(8, 4), shard_size=10, batch_size=3, max_corrupt=0.5)
    prepare(pictures, FAKE, tmp_path / "alone", config)
    asked: list[int] = []
    moments = fake.moments
    monkeypatch.setattr(fake, "moments", lambda images: (asked.append(len(images)), moments(images))[1])
    monkeypatch.setattr(Place, "here", staticmethod(lambda: Place(0, 1, torch.device("cuda"), 2)))
    prepare(pictures, FAKE, tmp_path / "batched", config)
    assert max(asked) == 3
    assert contents(tmp_path / "batched") == contents(tmp_path / "alone")


class Killed(BaseException):
    """No line of the program that dies can catch it and go on to change the disk."""


def die_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """From the n-th change of the disk on, 0 first, no other happens."""
    changes = count()

    def watched(real: Callable) -> Callable:
        def change(*args: object, **kwargs: object) -> object:
            if next(changes) >= number:
                raise Killed
            return real(*args, **kwargs)

        return change

    for name in ("fsync", "replace", "unlink", "mkdir"):
        patch.setattr(os, name, watched(getattr(os, name)))


def test_a_kill_at_any_change_of_the_disk(fake, contents, tmp_path):
    pictures = Source(noise(*[(8, 8), (8, 12)] * 3), {2})
    config = replace(SMALL, size=None, buckets=Buckets(8, 4))
    go = partial(prepare, pictures, FAKE, config=config)
    go(tmp_path / "straight")
    straight = contents(tmp_path / "straight")
    for number in count():
        folder = tmp_path / f"killed-{number}"
        with pytest.MonkeyPatch.context() as patch:
            die_at(number, patch)
            try:
                go(folder)
            except Killed:
                pass
            else:
                break
        go(folder)
        assert contents(folder) == straight, number
    assert number > 20


def test_kills_at_random_moments_and_any_number_of_processes(contents, tmp_path):
    for number, pixels in enumerate(noise(*[(16, 20)] * 120)):
        path = tmp_path / "pictures" / str(number % 2) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    path.write_bytes(b"no picture")
    command = [sys.executable, "-W", "ignore", str(ATTEMPTS), str(tmp_path / "pictures"), str(tmp_path), "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    kept = json.loads(run.stdout)
    assert len(set(kept)) > 2  # killed at two places on its way at least
    straight = contents(tmp_path / "straight")
    assert len(Shards(tmp_path / "straight")) == 119
    assert contents(tmp_path / "together") == straight
    assert contents(tmp_path / "killed") == straight


def test_processes_need_not_run_at_the_same_time(fake, contents, monkeypatch, capsys, tmp_path):
    prepare(source(), FAKE, tmp_path / "one", SMALL)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert prepare(source(), FAKE, tmp_path / "two", SMALL) is None
    assert "process 1 of 2 is done; others are still at work" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"is not finished \(parts done: 1\); run the same `ditwright prepare` again"):
        Shards(tmp_path / "two")
    monkeypatch.setenv("RANK", "0")
    assert prepare(source(), FAKE, tmp_path / "two", SMALL).count == 8
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_the_same_process_twice_waits_for_itself(fake, contents, tmp_path):
    prepare(source(), FAKE, tmp_path / "one", SMALL)
    second = threading.Thread(target=prepare, args=(source(), FAKE, tmp_path / "two", SMALL))
    (tmp_path / "two").mkdir()
    with locked(tmp_path / "two" / ".shard-000001.lock", wait=False) as ours:
        assert ours
        second.start()
        while not (tmp_path / "two" / "shard-000000.json").exists():
            time.sleep(0.01)
        second.join(0.2)
        assert second.is_alive()
        assert not (tmp_path / "two" / "shard-000001.json").exists()
    second.join()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_what_is_done_is_not_done_again(fake, contents, tmp_path):
    prepare(pictures := source(), FAKE, tmp_path, SMALL)
    before = contents(tmp_path)
    pictures.read.clear()
    prepare(pictures, FAKE, tmp_path, SMALL)
    assert (pictures.read, contents(tmp_path)) == ([], before)
    shard = tmp_path / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-000001.tar' has \d+ bytes, not \d+: it was cut or changed; delete it"):
        Shards(tmp_path)
    prepare(pictures, FAKE, tmp_path, SMALL)
    assert (sorted(pictures.read), contents(tmp_path)) == ([3, 4, 5], before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_cleanly(fake, contents, capsys, number, tmp_path):
    class Signalled(Source):
        def _read(self, item: int) -> np.ndarray:
            if item == 4:
                signal.raise_signal(number)
                time.sleep(0.05)
            return super()._read(item)

    prepare(source(), FAKE, tmp_path / "straight", SMALL)
    with pytest.raises(SystemExit) as left:
        prepare(Signalled(source().pixels), FAKE, tmp_path / "left", replace(SMALL, workers=1))
    assert left.value.code == 128 + number
    assert f"{number.name}: 1 parts are done; the same command goes on" in capsys.readouterr().err
    assert not list((tmp_path / "left").glob(".*"))
    prepare(source(), FAKE, tmp_path / "left", SMALL)
    assert contents(tmp_path / "left") == contents(tmp_path / "straight")


def test_a_full_disk_leaves_no_half_shard(fake, contents, monkeypatch, tmp_path):
    prepare(source(), FAKE, tmp_path / "straight", SMALL)
    with monkeypatch.context() as patch:
        write, written = TarWriter._write, count()

        def full(self: TarWriter, data: bytes) -> None:
            if next(written) > 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, data)

        patch.setattr(TarWriter, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(source(), FAKE, tmp_path / "full", SMALL)
    assert sorted(contents(tmp_path / "full")) == ["settings.json", "shard-000000.json", "shard-000000.tar"]
    prepare(source(), FAKE, tmp_path / "full", SMALL)
    assert contents(tmp_path / "full") == contents(tmp_path / "straight")


@pytest.mark.parametrize(
    ("pictures", "codec", "changes", "key"),
    [
        (source(), FAKE, {"size": 12}, r"size is 8 there and 12 now"),
        (source(), FAKE, {"dtype": "float32"}, r"dtype is float16 there and float32 now"),
        (source(), FAKE, {"flips": False}, r"flips is True there and False now"),
        (source(), FAKE, {"shard_size": 4}, r"shard_size is 3 there and 4 now"),
        (source(), replace(FAKE, fingerprint="bad"), {}, r"codec\.fingerprint is f00 there and bad now"),
        (source(9), FAKE, {}, r"the number of pictures is 8 there and 9 now"),
        (source(class_names=("odd", "even")), FAKE, {}, r"class_names is \['even', 'odd'\] there"),
    ],
)
def test_other_settings_are_refused_by_name(fake, contents, pictures, codec, changes, key, tmp_path):
    prepare(source(), FAKE, tmp_path, SMALL)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"holds shards of other settings: {key}"):
        prepare(pictures, codec, tmp_path, replace(SMALL, **changes))
    assert contents(tmp_path) == before


def test_renamed_pictures_are_others_but_a_moved_folder_is_the_same(fake, tmp_path):
    prepare(source(folder="here/a"), FAKE, tmp_path, SMALL)
    prepare(source(folder="there/b"), replace(FAKE, source="moved"), tmp_path, SMALL)

    class Renamed(Source):
        def __getitem__(self, number: int) -> Record:
            return replace(super().__getitem__(number), name=f"here/a/{number + (number > 4)}.png")

    with pytest.raises(UserError, match="the digest of the pictures' names is"):
        prepare(Renamed(source().pixels), FAKE, tmp_path, SMALL)


def test_corrupt_pictures_are_listed_and_the_others_keep_their_numbers(fake, tmp_path):
    index = prepare(source(damaged={0, 4, 7}), FAKE, tmp_path, SMALL)
    assert [one.name for one in index.corrupt] == ["here/0.png", "here/4.png", "here/7.png"]
    assert {one.reason for one in index.corrupt} == {"is truncated"}
    shards = Shards(tmp_path)
    assert [facts["name"] for facts in shards.facts(np.arange(5))] == [f"here/{i}.png" for i in (1, 2, 3, 5, 6)]
    assert shards.labels(np.arange(5)).tolist() == [1, 0, 1, 1, 0]
    report = (tmp_path / "report.txt").read_text()
    assert "8 pictures: 5 used, 3 left out" in report
    assert "left out, corrupt: 3 (38 %)\n  here/0.png is truncated\n  here/4.png is truncated" in report


def test_too_many_corrupt_pictures_stop_it_as_soon_as_that_is_certain(fake, contents, tmp_path):
    pictures = source(20, damaged={1, 4, 8, 19})
    some = replace(SMALL, max_corrupt=0.1, workers=1)
    with pytest.raises(UserError) as error:
        prepare(pictures, FAKE, tmp_path / "stopped", some)
    assert "3 of 20 pictures are corrupt, more than the 2 that --max-corrupt 0.1 allows" in str(error.value)
    assert "here/1.png is truncated, here/4.png is truncated" in str(error.value)
    assert max(pictures.read) < 12
    tars = sorted(path.name for path in (tmp_path / "stopped").glob("*.tar"))
    assert tars == ["shard-000000.tar", "shard-000001.tar"]
    before = max(pictures.read)
    pictures.read.clear()
    prepare(pictures, FAKE, tmp_path / "stopped", replace(some, max_corrupt=0.2))
    assert min(pictures.read) == 6 <= before
    prepare(pictures, FAKE, tmp_path / "straight", SMALL)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_corrupt_pictures_of_all_processes_count(fake, monkeypatch, tmp_path):
    pictures, some = source(12, damaged={0, 3}), replace(SMALL, max_corrupt=0.1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    prepare(pictures, FAKE, tmp_path, some)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="2 of 12 pictures are corrupt"):
        prepare(pictures, FAKE, tmp_path, some)


def test_pictures_of_mixed_sizes_need_a_size_or_buckets(fake, tmp_path):
    pictures = Source(noise((8, 8), (8, 8), (8, 8), (8, 12)))
    plain = replace(SMALL, size=None)
    with pytest.raises(UserError, match=r"mixed sizes: 'here/0.png' is 8 x 8, 'here/3.png' is 8 x 12; .*--size"):
        prepare(pictures, FAKE, tmp_path / "a", plain)
    with pytest.raises(UserError, match=r"mixed sizes: '.*shard-000000.tar' is 8 x 8, 'here/3.png' is 8 x 12"):
        prepare(pictures, FAKE, tmp_path / "a", plain)
    begun = Source(noise((8, 8), (8, 12)))
    with pytest.raises(UserError, match=r"mixed sizes: 'here/0.png' is 8 x 8, 'here/1.png' is 8 x 12"):
        prepare(begun, FAKE, tmp_path / "b", plain)
    assert prepare(begun, FAKE, tmp_path / "b", SMALL).count == 2  # nothing was done with the other settings
    assert prepare(Source(noise((8, 12), (8, 12))), FAKE, tmp_path / "c", plain).groups[0].size == (8, 12)


@pytest.mark.parametrize("config", [replace(SMALL, size=10), replace(SMALL, size=None, buckets=Buckets(12, 6, 4))])
def test_sizes_that_make_no_whole_latents_are_refused_at_once(fake, config, tmp_path):
    with pytest.raises(UserError, match="make no whole latents: sides are multiples of 4"):
        prepare(source(), FAKE, tmp_path / "none", config)
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"'here/0.png' of 8 x 9 pixels makes no whole latents.*--size N"):
        prepare(source(), FAKE, tmp_path / "plain", replace(SMALL, size=None))


def test_buckets_and_what_is_left_out(fake, tmp_path):
    sizes = [(8, 8), (8, 12), (80, 8), (12, 8), (4, 4), (8, 9), (8, 13), (9, 8)]
    config = replace(SMALL, size=None, buckets=Buckets(8, 4), shard_size=5)
    index = prepare(pictures := Source(noise(*sizes), {7}), FAKE, tmp_path, config)
    shards = Shards(tmp_path)
    assert index.dropped == {"too long": 1, "too small": 1}
    assert [group.size for group in shards.groups] == sorted(group.size for group in shards.groups)
    assert sum(len(group.items) for group in shards.groups) == index.count == 5
    for group in shards.groups:
        assert shards.read(group.items, np.zeros(len(group.items), bool)).shape[2:] == tuple(s // 4 for s in group.size)
        for facts in shards.facts(group.items):
            assert config.target(*facts["size"]) == group.size
    report = (tmp_path / "report.txt").read_text()
    assert "left out, too long: 1 (12 %)\n  here/2.png is 80 x 8, 10 to 1" in report
    found = survey(pictures, config)
    assert found.text(None) == report
    assert set(found.sizes) == set(config.buckets.sizes)  # the empty ones too


def test_an_iterable_is_walked_in_its_order(fake, contents, tmp_path):
    @dataclass
    class Walked:
        source: Source
        class_names: tuple[str, ...] = ("even", "odd")

        def __iter__(self) -> Iterator[Record]:
            return (self.source[number] for number in range(len(self.source)))

    def tars(folder: Path) -> dict[str, bytes]:
        return {name: data for name, data in contents(folder).items() if name.startswith("shard-")}

    prepare(source(damaged={4}), FAKE, tmp_path / "known", SMALL)
    prepare(Walked(source(damaged={4})), FAKE, tmp_path / "walked", SMALL)
    assert tars(tmp_path / "walked") == tars(tmp_path / "known")
    prepare(Walked(again := source(damaged={4})), FAKE, tmp_path / "walked", SMALL)
    assert again.read == []
    for other in (source(7), source(10)):
        with pytest.raises(UserError, match=r"has other pictures than when .* was begun"):
            prepare(Walked(other), FAKE, tmp_path / "walked", SMALL)
    with pytest.raises(UserError, match="2 of 8 pictures are corrupt"):
        prepare(Walked(source(damaged={4, 5})), FAKE, tmp_path / "bad", replace(SMALL, max_corrupt=0.125))


def test_any_iterable_of_pictures_will_do(tmp_path):
    pairs = ((pixels, number % 2) for number, pixels in enumerate(noise(*[(8, 8)] * 5)))
    prepare(pairs, CodecConfig(), tmp_path, PrepareConfig(shard_size=2))
    shards = Shards(tmp_path)
    assert from_dict(CodecConfig, shards.codec) == CodecConfig("pixels")
    assert shards.labels(np.arange(5)).tolist() == [0, 1, 0, 1, 0]
    plain, mirrored = drawn(shards)
    np.testing.assert_array_equal(plain, np.stack(noise(*[(8, 8)] * 5)).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(mirrored, plain[..., ::-1])


def test_values_that_do_not_fit_are_not_written(fake, tmp_path):
    fake.by = 1e6
    with pytest.raises(UserError, match=r"values for 'here/0.png' that float16 cannot hold; try --dtype float32"):
        prepare(source(), FAKE, tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("label", [None, 2, -1])
def test_labels_must_fit_the_classes(fake, label, tmp_path):
    class Odd(Source):
        def __getitem__(self, number: int) -> Record:
            return replace(super().__getitem__(number), label=label)

    with pytest.raises(UserError, match=rf"has the label {label}; its source has 2 classes"):
        prepare(Odd(source().pixels), FAKE, tmp_path, SMALL)


def test_folders_that_are_not_for_shards_are_refused(fake, tmp_path):
    with pytest.raises(UserError, match="'nothing' holds no pictures"):
        prepare(Source([]), FAKE, tmp_path / "none", SMALL, name="nothing")
    with pytest.raises(UserError, match=r"not one of the pictures can be used: here/0.png is truncated"):
        prepare(source(1, damaged={0}), FAKE, tmp_path / "bad", replace(SMALL, max_corrupt=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shard-000000.tar").write_bytes(b"not to be touched")
    with pytest.raises(UserError, match=r"holds other things \('shard-000000.tar'\); name a new or an empty folder"):
        prepare(source(), FAKE, tmp_path / "mine", SMALL)
    assert (tmp_path / "mine" / "shard-000000.tar").read_bytes() == b"not to be touched"
    with pytest.raises(UserError, match="is a file; name a folder"):
        prepare(source(), FAKE, tmp_path / "mine" / "shard-000000.tar", SMALL)


def test_a_real_autoencoder(contents, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    wide = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 2}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(**wide, **blocks).save_pretrained(tmp_path / "vae")
    codec = find_codec(str(tmp_path / "vae"))
    prepare(source(), codec, tmp_path / "a", replace(SMALL, workers=1))
    prepare(source(), codec, tmp_path / "b", replace(SMALL, workers=4))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    shards = Shards(tmp_path / "a")
    assert shards.codec == to_dict(codec)
    assert drawn(shards)[0].shape == (8, 4, 4, 4)
    assert drawn(shards)[0].dtype == np.float16
