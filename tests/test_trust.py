"""What comes from outside is data: nothing of it is run, unpacked, or opened whatever its size (SECURITY.md)."""

from __future__ import annotations

import ast
import io
import os
import random
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ditwright
from ditwright.cli.main import main
from ditwright.data.images import Unreadable, open_rgb
from ditwright.data.shards import Shards
from ditwright.data.sources import open_dataset, open_source
from ditwright.data.webdataset import open_tars
from ditwright.errors import UserError
from ditwright.extras import at_revision

FILES = sorted(Path(ditwright.__file__).parent.rglob("*.py"))
PACKAGES = {"pickle", "_pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}  # that run what they read
PACKAGES |= {"subprocess", "pty", "code", "codeop", "runpy"}  # that run programs
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input", "os.system", "os.popen", "os.startfile"}
CALLS |= {"numpy.load", "numpy.lib.format.read_array", "shutil.unpack_archive", "torch.jit.load", "torch.hub.load"}
STARTS = ("os.exec", "os.spawn", "os.posix_spawn", "torch.package.", "torch.serialization.load")
UNPACKS = {"extract", "extractall"}
KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}  # never anything but False
YAML = {"yaml.safe_load", "yaml.safe_dump", "yaml.YAMLError"}


def offences(source: str) -> Iterator[str]:
    """What a file does that nothing here may do."""
    tree, names = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for name in names.values():
        if name.split(".")[0] in PACKAGES:
            yield f"imports {name}"

    def full(node: ast.expr) -> str:
        first, dot, rest = ast.unparse(node).partition(".")
        return (names.get(first, first) + dot + rest).removeprefix("builtins.")

    plain = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            name = full(node)
            if name in CALLS or name.startswith(STARTS) or (name == "torch.load" and id(node) not in plain):
                yield f"uses {name}"
            if isinstance(node, ast.Attribute) and node.attr in UNPACKS:
                yield f"unpacks by {name}"
            if name.startswith("yaml.") and name not in YAML:
                yield f"uses {name}"
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS and ast.unparse(node.value) != "False":
            yield f"passes {node.arg}={ast.unparse(node.value)}"
        elif isinstance(node, ast.ExceptHandler) and silent(node):
            yield f"swallows {ast.unparse(node.type) if node.type else 'everything'} in line {node.lineno}"
        elif isinstance(node, ast.Call) and full(node.func) == "contextlib.suppress":
            yield f"swallows {', '.join(map(ast.unparse, node.args))}"


def silent(handler: ast.ExceptHandler) -> bool:
    """Whether an error disappears: nothing is done about it; or it is any at all, and neither raised nor passed on."""
    if all(
        isinstance(p, ast.Pass) or (isinstance(p, ast.Expr) and isinstance(p.value, ast.Constant)) for p in handler.body
    ):
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    if not any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds):
        return False
    inside = [node for part in handler.body for node in ast.walk(part)]
    return not any(isinstance(n, ast.Raise) or (isinstance(n, ast.Name) and n.id == handler.name) for n in inside)


def test_nothing_that_is_read_is_run_and_no_error_disappears():
    found = [f"{path}: {what}" for path in FILES for what in offences(path.read_text())]
    assert found == []
    assert sum("torch.load(" in path.read_text() for path in FILES) == 1, "the one place that reads foreign torch files"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import subprocess as sp",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "import torch\nread = torch.load",
        "import torch\ntorch.load(path, weights_only=flag)",
        "eval(text)",
        "import builtins\nbuiltins.exec(text)",
        "run = exec",
        "import os\nos.system(command)",
        "from os import system",  # found where it is used
        "import os\nos.execvp(name, words)",
        "start(command, shell=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import load\nload(text)",
        "import yaml\nyaml.unsafe_load(text)",
        "import numpy as np\nnp.load(path)",
        "read(file, allow_pickle=True)",
        "library.from_pretrained(name, trust_remote_code=True)",
        "tar.extractall(folder)",
        "archive.extract(member)",
        "import shutil\nshutil.unpack_archive(path)",
        "try:\n    work()\nexcept:\n    result = None",
        "try:\n    work()\nexcept Exception:\n    result = None",
        "try:\n    work()\nexcept (OSError, BaseException) as error:\n    result = None",
        "try:\n    work()\nexcept OSError:\n    pass",
        "try:\n    work()\nexcept OSError:\n    ...",
        "import contextlib\nwith contextlib.suppress(OSError):\n    work()",
    ],
)
def test_each_offence_is_seen(source):
    used = source.replace("from os import system", "from os import system\nsystem(command)")
    assert list(offences(used)), source


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
        "net.eval()\nblock.compile()\nre.compile(pattern)",
        "import yaml\nyaml.safe_load(text)",
        "try:\n    work()\nexcept Exception as error:\n    raise UserError(error) from error",
        "try:\n    work()\nexcept BaseException as error:\n    queue.put(error)",
        "try:\n    work()\nexcept FileNotFoundError:\n    found = None",
    ],
)
def test_what_is_allowed_is_none(source):
    assert list(offences(source)) == []


def png(side=4):
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def member(name, data=b"", **facts):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


END = bytes(1024)


@pytest.fixture
def hostile(tmp_path):
    """A shard whose names, links and devices all lead out of its folder; beside it a file that must stay as it is."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(png(9))
    names = ["../escaped.png", str(tmp_path / "absolute.png"), "../../../etc/cron.d/x.png", "a/../../up.png", "..png"]
    shard = b"".join(member(name, png()) for name in names)
    shard += member("symbolic.png", type=tarfile.SYMTYPE, linkname="../secret.png")
    shard += member("hard.png", type=tarfile.LNKTYPE, linkname="../secret.png")
    shard += member("folder.png", type=tarfile.SYMTYPE, linkname="/tmp")
    shard += member("folder.png/through.png", png())
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        shard += member(f"device{kind.decode()}.png", type=kind, devmajor=1, devminor=5)
    (inside / "shard.tar").write_bytes(shard + END)
    return inside


def test_a_tar_cannot_write_outside_its_folder_nor_read_there(hostile, tmp_path, contents):
    """Nothing of a tar is ever unpacked: names are only told, pictures read in place, links and devices passed over."""
    before = contents(tmp_path)
    source = open_source(str(hostile))
    sizes = {open_rgb(source[n].read()).size for n in range(len(source))}
    assert (len(source), sizes) == (5, {(4, 4)})  # none of them the secret; "..png" has no name before the extension
    data = open_dataset(str(hostile), 4)
    assert data.read(np.arange(5), np.zeros(5, bool)).shape == (5, 4, 4, 3)
    assert contents(tmp_path) == before
    out = tmp_path / "out"
    assert main(["prepare", str(hostile), "--codec", "pixels", "--size", "4", "--output", str(out)]) == 0
    assert {path: held for path, held in contents(tmp_path).items() if not path.startswith("out/")} == before
    with tarfile.open(next(out.glob("*.tar"))) as made:
        assert all(Path(name).name == name and ".." not in name for name in made.getnames())
    assert len(Shards(out)) == 5


@pytest.mark.parametrize(
    "header",
    [
        member("a.txt", size=-512),  # its end before its beginning: a reader that trusts it never comes to an end
        member("a.txt", size=2**62),
        member("a.txt", type=tarfile.GNUTYPE_LONGNAME, size=2**50),
        member("a.txt", type=tarfile.XHDTYPE, size=2**50),
        member("x", b"30 GNU.sparse.map=not,numbers\n".ljust(30), type=tarfile.XHDTYPE) + member("a.txt"),
        member("x", b"20 size=-99999999999\n", type=tarfile.XHDTYPE) + member("a.txt", b"words"),
    ],
)
def test_sizes_that_lie_are_refused_in_one_line(header, tmp_path):
    shard = tmp_path / "x.tar"
    shard.write_bytes(member("0.png", png()) + header + member("b.png", png()) + END)
    with pytest.raises(UserError, match=r"x.tar' is not a whole, uncompressed .tar file") as error:
        open_tars([shard])
    assert "\n" not in str(error.value)


def test_a_sparse_member_is_no_sample(tmp_path):
    """Its size is what it would be unpacked, which need not be there to be read."""
    sparse = bytearray(member("big.png", png(), type=tarfile.GNUTYPE_SPARSE))
    sparse[483:495] = b"77777777777\0"  # the size unpacked: 8 GiB
    sparse[148:156] = b" " * 8
    sparse[148:156] = f"{sum(sparse[:512]):06o}\0 ".encode()
    shard = tmp_path / "x.tar"
    shard.write_bytes(bytes(sparse) + member("a.png", png()) + END)
    assert open_tars([shard]).names == ["a.png"]


def test_damage_of_any_kind_gives_a_source_or_one_line(tmp_path):
    """Bits flipped anywhere in the headers: what cannot be read is said, and nothing else comes out."""
    whole = member("a.png", png()) + member("a.cls", b"1") + member("b.png", png()) + member("b.cls", b"0") + END
    chance, shard = random.Random(0), tmp_path / "x.tar"
    told = []
    for _ in range(400):
        bad = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            start = 512 * chance.randrange(0, len(bad) // 512)
            bad[start + chance.randrange(0, 512)] ^= 1 << chance.randrange(8)
            if chance.random() < 0.7:  # with a sum that is right again: it gets further
                bad[start + 148 : start + 156] = b" " * 8
                bad[start + 148 : start + 156] = f"{sum(bad[start : start + 512]):06o}\0 ".encode()
        shard.write_bytes(bad)
        try:
            source = open_tars([shard])
            for n in range(len(source)):
                source[n].read()
        except UserError as error:  # Unreadable is one
            told.append(str(error))
    assert len(told) > 100
    assert not any("\n" in line for line in told)
    assert os.listdir(tmp_path) == ["x.tar"]


def bomb(width, height):
    """A PNG of a few bytes that claims so many pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_have_a_pixel_limit_and_a_larger_one_is_a_line_of_the_report(tmp_path, capsys):
    """Seen in the header, before a pixel is decoded; training stops at it by name, `prepare` passes over it."""
    most = Image.MAX_IMAGE_PIXELS
    assert most is not None
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.png").write_bytes(png(8))
    (folder / "bomb.png").write_bytes(bomb(30_000, 30_000))
    with pytest.raises(Unreadable, match=f"has 30,000 x 30,000 pixels, more than the {most:,} that are safe to open"):
        open_rgb((folder / "bomb.png").read_bytes())
    words = ["prepare", str(folder), "--codec", "pixels", "--size", "8", "--output", str(tmp_path / "out")]
    assert main([*words, "--max-corrupt", "0.3"]) == 0
    assert "4 pictures in 1 shard" in capsys.readouterr().out
    lines = [line for line in (tmp_path / "out/report.txt").read_text().splitlines() if "bomb.png" in line]
    assert len(lines) == 1
    assert "more than" in lines[0]


def test_a_text_chunk_that_swells_is_a_damaged_picture():
    """A PNG's compressed text may claim gigabytes."""
    whole = png()
    swollen = b"note\0\0" + zlib.compress(bytes(80_000_000))
    chunk = struct.pack(">I", len(swollen)) + b"zTXt" + swollen + struct.pack(">I", zlib.crc32(b"zTXt" + swollen))
    with pytest.raises(Unreadable):
        open_rgb(whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        ("owner/name", ("owner/name", "")),
        ("./runs/a@b", ("./runs/a@b", "")),
        ("owner/name@", ("owner/name@", "")),
        ("/abs/x@y", ("/abs/x@y", "")),
    ],
)
def test_a_hub_name_may_be_pinned(name, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert at_revision(name) == found


def test_a_path_that_is_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/a@b").mkdir()
    assert at_revision("runs/a@b") == ("runs/a@b", "")


def test_every_download_takes_the_revision_that_is_asked(monkeypatch, tmp_path):
    """Checkpoints, codecs, text encoders, extractors, data sets: what reaches the hub's own functions."""
    hub = pytest.importorskip("huggingface_hub")
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("transformers")
    from ditwright.codec.base import find_codec
    from ditwright.metrics.extractors import extractor_from
    from ditwright.pipeline import Pipeline
    from ditwright.pipeline.folder import moved
    from ditwright.text.config import TextConfig

    monkeypatch.chdir(tmp_path)
    asked = []

    def fails(name, *more, revision=None, **rest):
        asked.append((name, revision))
        raise OSError("no hub here")

    for place, function in ((hub, "snapshot_download"), (hub, "hf_hub_download"), (datasets, "load_dataset")):
        monkeypatch.setattr(place, function, fails)
    for ask in (
        lambda: Pipeline.from_pretrained("owner/net@abc"),
        lambda: Pipeline.from_pretrained("owner/net", revision="abc"),
        lambda: find_codec("owner/net@abc"),
        lambda: find_codec("owner/net", revision="abc"),
        lambda: extractor_from("dinov2:owner/net@abc"),
        lambda: open_source("hf:owner/net:revision=abc"),
    ):
        with pytest.raises(UserError, match="owner/net"):
            ask()
    assert asked == [("owner/net", "abc")] * 6
    text = moved(TextConfig("t5", "else/where"), "owner/net@abc")
    assert (text.source, text.revision) == ("owner/net", "abc")


def test_security_md_names_what_it_rests_on():
    """Every test that it points to is there."""
    root = Path(__file__).parents[1]
    text = (root / "SECURITY.md").read_text()
    places = re.findall(r"`(tests/\S+?\.py)(?:::(\w+))?`", text)
    assert len(places) >= 5
    for file, name in places:
        assert not name or f"def {name}(" in (root / file).read_text(), (file, name)
        assert (root / file).is_file(), file
