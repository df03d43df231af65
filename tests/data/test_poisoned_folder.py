"""One folder with everything that folders of pictures have been seen to hold."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ditwright.data.images import Unreadable, centre_crop, open_rgb, size_of
from ditwright.data.sources import open_dataset, open_source
from ditwright.errors import UserError

RED = (255, 0, 0)
GOOD = {  # (height, width) and the colour at the upper left
    "animated.gif": ((6, 8), RED),
    "cmyk.jpg": ((16, 16), RED),
    "exif-rotated.jpg": ((32, 16), RED),
    "grey-16-bit.png": ((2, 2), (128, 128, 128)),
    "palette.png": ((1, 2), (255, 255, 255)),
    "plain.PNG": ((5, 5), RED),
    "wide.png": ((2, 20_000), RED),
}
BAD = {
    "bomb.png": "has 50,000 x 50,000 pixels, more than the 89,478,485 that are safe to open",
    "float.tif": "holds floating-point values of unknown range (mode F); save it with 8 or 16 bits",
    "text.png": "is not a picture (it begins with 'version https://git-lfs.github.c')",
    "truncated.jpg": "is truncated",
    "zero.jpg": "is empty",
}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poisoned")
    red = Image.new("RGB", (8, 6), RED)
    red.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (8, 6), "blue")])
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=100)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was on its side: what is left in the file belongs at the top
    halves = Image.new("RGB", (32, 16), "blue")
    halves.paste(RED, (0, 0, 16, 16))
    halves.save(folder / "exif-rotated.jpg", exif=exif, quality=100)
    Image.fromarray(np.full((2, 2), 128 * 257, np.uint16)).save(folder / "grey-16-bit.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 255, 0])
    palette.save(folder / "palette.png", transparency=0)
    red.crop((0, 0, 5, 5)).save(folder / "plain.PNG")
    red.resize((20_000, 2)).save(folder / "wide.png")
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    pixels = b"IDAT" + zlib.compress(bytes(100_000))
    (folder / "bomb.png").write_bytes(bomb + struct.pack(">I", len(pixels) - 4) + pixels)
    Image.new("F", (3, 3)).save(folder / "float.tif")
    (folder / "text.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    Image.effect_noise((64, 64), 90).save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:-400])
    (folder / "zero.jpg").touch()
    (folder / "Thumbs.db").write_bytes(b"not even called a picture")
    return folder


def test_each_gives_its_pixels_or_its_reason(poisoned):
    source, seen, refused = open_source(str(poisoned)), {}, {}
    for record in map(source.__getitem__, range(len(source))):
        file = record.name.removeprefix(f"{poisoned}/")
        try:
            image = open_rgb(record.read())
        except Unreadable as error:
            refused[file] = str(error)
            continue
        assert size_of(record.read()) == (image.height, image.width)
        assert centre_crop(image, 8).shape == (8, 8, 3)
        seen[file] = ((image.height, image.width), np.asarray(image)[0, 0].tolist())
    assert refused == BAD
    assert seen == {file: (size, pytest.approx(colour, abs=3)) for file, (size, colour) in GOOD.items()}
    assert source.ignored == {".db": 1}


@pytest.mark.parametrize("file", BAD)
def test_training_stops_at_each_bad_one_with_its_name(poisoned, file):
    data = open_dataset(str(poisoned), 8)
    names = sorted([*GOOD, *BAD])
    with pytest.raises(UserError) as error:
        data.read(np.array([names.index("plain.PNG"), names.index(file)]), np.zeros(2, bool))
    assert (
        str(error.value) == f"{str(poisoned / file)!r} {BAD[file]}; `ditwright prepare` skips and lists such pictures"
    )
