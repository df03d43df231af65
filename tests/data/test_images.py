"""Pictures of every kind that folders hold: the right pixels, or the right reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ditwright.data import images
from ditwright.data.images import Unreadable, centre_crop, cover, open_rgb, read_file, size_of

RNG = np.random.default_rng(0)
WHITE = [255, 255, 255]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG byte by byte: what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in body)


def pixels(data) -> np.ndarray:
    image = open_rgb(data)
    assert image.mode == "RGB"
    assert size_of(data) == (image.height, image.width)
    return np.asarray(image)


def reason(data) -> str:
    with pytest.raises(Unreadable) as error:
        open_rgb(data)
    return str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_formats_without_loss_come_back_to_the_bit(kind):
    picture = noise(5, 9)
    assert np.array_equal(pixels(encoded(picture, kind)), picture)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_formats_with_loss_come_back_nearly(kind):
    picture = Image.linear_gradient("L").resize((40, 24))
    assert np.abs(pixels(encoded(picture, kind)).astype(int) - np.asarray(picture)[..., None]).max() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_over_white(mode):
    alpha = np.array([[0, 255, 128]], np.uint8)
    colour = np.array([[10, 20, 30]], np.uint8)
    grey = Image.fromarray(np.stack((colour, alpha), -1))
    picture = grey if mode == "LA" else grey.convert("RGBA") if mode == "RGBA" else Image.new("PA", (3, 1))
    if mode == "PA":
        picture.putpalette([v for v in range(256) for _ in range(3)])
        picture.putdata(list(zip(colour[0].tolist(), alpha[0].tolist(), strict=True)))
    got = pixels(picture)[0, :, 0]
    assert got.tolist() == pytest.approx([255, 20, 30 * 128 / 255 + 255 * 127 / 255], abs=1)


@pytest.mark.parametrize("clear", [1, bytes([255, 0, 255])])
def test_a_palette_with_transparency_is_over_white(clear):
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    for kind in ("PNG", "GIF") if clear == 1 else ("PNG",):
        got = pixels(encoded(picture, kind, transparency=clear, optimize=False))
        assert got[0].tolist() == [[255, 0, 0], WHITE, [0, 0, 255]]


def test_a_transparent_colour_of_a_png_is_white():
    eight = png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 9, 9, 9]), (b"tRNS", struct.pack(">3H", 1, 2, 3)))
    assert pixels(eight)[0].tolist() == [WHITE, [9, 9, 9]]
    sixteen = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 65535, 257), (b"tRNS", struct.pack(">H", 257)))
    assert pixels(sixteen)[0, :, 0].tolist() == [255, 255]
    bits = png(8, 1, 1, 0, b"\0\xaa", (b"tRNS", struct.pack(">H", 1)))
    assert pixels(bits)[0, :, 0].tolist() == [255, 0] * 4


def test_cmyk_is_converted():
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert pixels(flat)[0, 0].tolist() == [255, 0, 0]
    assert np.abs(pixels(encoded(flat, "JPEG", quality=95))[0, 0].astype(int) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    wide = np.linspace(0, 65535, 300).round().astype(np.uint16).reshape(10, 30)
    grey = pixels(encoded(Image.fromarray(wide), kind))[..., 0]
    assert np.array_equal(grey, np.round(wide / 257))
    assert len(np.unique(grey)) == 256


def test_eight_bits_in_sixteen_come_back():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(pixels(encoded(Image.fromarray(grey * np.uint16(257)), "PNG"))[..., 0], grey)
    assert np.array_equal(pixels(grey * np.uint16(257))[..., 0], grey)


@pytest.mark.parametrize("values", [[0, 70000], [-1, 300], [0, 200]])
def test_integers_of_unknown_range_are_refused(values):
    assert "32-bit integers" in reason(Image.fromarray(np.array([values], np.int32)))


def test_floating_point_is_refused_with_its_reason():
    assert "floating-point values of unknown range" in reason(encoded(Image.new("F", (4, 4)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_is_taken(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(moving)).n_frames == 3
    assert (pixels(moving) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(kind, orientation):
    corners = np.kron(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8), np.ones((16, 32, 1)))
    upright = Image.fromarray(corners.astype(np.uint8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Transpose numbers: what a camera held so would have seen
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels(encoded(stored, kind, exif=exif, **({"quality": 100} if kind in ("JPEG", "WEBP") else {})))
    assert got.shape == (32, 64, 3)
    assert np.abs(got[4::23, 8::47].astype(int) - corners[4::23, 8::47]).max() < 12


def test_exif_after_the_pixels_of_a_png_counts_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = png(2, 1, 8, 0, b"\0\x01\x02")
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    assert pixels(plain[:-12] + chunk + plain[-12:])[..., 0].tolist() == [[1], [2]]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_damaged_exif_turns_nothing(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(Image.new("RGB", (8, 4)), kind, exif=exif)
    at = whole.index(exif.tobytes().removeprefix(b"Exif\0\0"))
    assert pixels(whole).shape == (8, 4, 3)
    assert pixels(whole[:at] + b"garbage!" + whole[at + 8 :]).shape == (4, 8, 3)


def test_a_20000_pixels_wide_picture_is_a_picture():
    data = encoded(Image.new("RGB", (20_000, 3), "red"), "PNG")
    assert pixels(data).shape == (3, 20_000, 3)
    assert (centre_crop(open_rgb(data), 32) == [255, 0, 0]).all()


def test_a_bomb_is_seen_in_its_header(monkeypatch):
    """Whatever warnings do, in every thread alike, and without decoding."""
    bombs = [png(side, side, 8, 2, b"") for side in (10_000, 60_000)]  # Pillow warns of the first, refuses the second
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for action in ("error", "ignore", "default"):
        with warnings.catch_warnings(record=action == "default") as told:
            warnings.simplefilter(action)
            with ThreadPoolExecutor(4) as pool:
                reasons = list(pool.map(reason, bombs * 4))
            assert not told
        assert all("pixels, more than the 89,478,485 that are safe" in text for text in reasons)
    with pytest.raises(Unreadable, match="60,000 x 60,000"):
        size_of(bombs[1])


def test_what_is_not_a_picture_is_told():
    assert reason(b"") == "is empty"
    assert reason(b"a text that somebody called photo.png\n") == (
        "is not a picture (it begins with 'a text that somebody called phot')"
    )
    assert reason(b"\n\r\n <!DOCTYPE html>\r\n") == "is not a picture (it begins with '<!DOCTYPE html>')"
    assert reason(b" \n") == "is not a picture (its format is unknown)"
    assert reason(b"\0\1\2\3" * 20) == "is not a picture (its format is unknown)"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").startswith("is not a picture")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_truncated_picture_is_refused(kind):
    whole = encoded(noise(64, 64), kind)
    assert reason(whole[: len(whole) * 2 // 3]).startswith(("is truncated", f"is a damaged {kind}"))
    if kind in ("JPEG", "PNG", "BMP"):
        assert reason(whole[: len(whole) * 2 // 3]) == "is truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damage_of_any_kind_gives_a_picture_or_a_reason(kind):
    whole = np.frombuffer(encoded(noise(9, 7), kind), np.uint8)
    refused = 0
    for _ in range(60):
        harmed = whole.copy()
        harmed[RNG.integers(0, min(len(harmed), 200), 4)] = RNG.integers(0, 256, 4)
        try:
            pixels(harmed.tobytes())
        except Unreadable:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_arrays_are_pictures(shape):
    array = np.full(shape, 7, np.uint8)
    if shape[-1] == 4:
        array[..., 3] = 255
    assert (pixels(array) == np.full((4, 5, 3), 7)).all()


@pytest.mark.parametrize("array", [np.zeros((3, 8, 9), np.uint8), np.zeros((8, 9, 3), np.float32), np.zeros((0, 9, 3))])
def test_other_arrays_are_refused(array):
    assert f"array of {array.dtype}" in reason(array)


def test_a_picture_given_open_is_not_changed():
    exif = Image.Exif()
    exif[0x0112] = 6
    given = Image.open(io.BytesIO(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)))
    assert open_rgb(given).size == (4, 8)
    assert given.size == (8, 4)
    assert given.getexif()[0x0112] == 6


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(Unreadable, match=r"cannot be read \(No such file"):
        read_file(tmp_path / "gone.png")


def adm(image: Image.Image, size: int) -> np.ndarray:
    """Dhariwal & Nichol's crop, from its description: plain Pillow and NumPy."""
    while min(image.size) // 2 >= size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    factor = size / min(image.size)
    shape = (round(image.size[0] * factor), round(image.size[1] * factor))
    array = np.array(image.resize(shape, resample=Image.Resampling.BICUBIC))
    above, before = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[above : above + size, before : before + size]


SIZES = [(1, 1, 8), (500, 333, 256), (333, 500, 256), (512, 512, 256), (511, 700, 256), (1031, 517, 64), (20, 2000, 16)]


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_the_centre_crop_is_adms_to_the_bit(height, width, size):
    picture = noise(height, width)
    crop = centre_crop(picture, size)
    assert crop.dtype == np.uint8
    assert np.array_equal(crop, adm(picture, size))


def test_the_centre_crop_is_adms_at_any_size():
    for height, width, size in RNG.integers(1, (200, 200, 70), (150, 3)).tolist():
        picture = noise(height, width)
        assert np.array_equal(centre_crop(picture, size), adm(picture, size)), (height, width, size)


def test_a_thin_picture_needs_no_memory_for_what_is_cut_off(monkeypatch):
    smooth = Image.radial_gradient("L").resize((300, 40)).convert("RGB")
    whole = centre_crop(smooth, 64).astype(int)
    monkeypatch.setattr(images, "THIN", 0)
    assert np.abs(centre_crop(smooth, 64) - whole).max() <= 1
    monkeypatch.undo()
    resize, made = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: made.append(size) or resize(self, size, *a, **k)
    )
    assert centre_crop(Image.new("RGB", (20_000, 1)), 64).shape == (64, 64, 3)
    assert made == [(64, 64)]  # and not 1,280,000 x 64


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (32, 128)])
@pytest.mark.parametrize("picture", [(100, 300), (300, 100), (97, 131), (20, 30)])
def test_cover_fills_its_size_and_keeps_the_middle(picture, size):
    """A picture with a bright cross through its centre keeps the cross in the middle."""
    array = np.zeros((*picture, 3), np.uint8)
    array[picture[0] // 2] = array[:, picture[1] // 2] = 255
    got = cover(Image.fromarray(array), size)[..., 0].astype(float)
    assert got.shape == size
    for axis in (0, 1):
        line = got.sum(1 - axis)
        scale = max(size[0] / picture[0], size[1] / picture[1])
        assert abs(line.argmax() + 0.5 - size[axis] / 2) <= max(1, scale)


def test_cover_of_the_same_size_changes_nothing():
    picture = noise(48, 80)
    assert np.array_equal(cover(picture, (48, 80)), picture)
