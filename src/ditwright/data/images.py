"""Pictures as people have them, of any mode, turned by Exif, animated, damaged or too large: made RGB, cut to size.

H height, W width, C channels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ..errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")  # none that runs another program
EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp"),
    *("tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif", "jp2"),
)
THIN = 2**26  # pixels that scaling may make before the crop: 200 MB

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by Exif orientation: what makes it upright
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # where a PNG may say it, even after the pixels


class Unreadable(UserError):
    """A picture that cannot be used. The text is what follows its name: "is truncated", "is not a picture"."""


def read_file(path: str | Path) -> bytes:
    """A picture's file as it is. Unreadable where the system refuses."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror or error})") from error


def open_rgb(data: bytes | Image.Image | np.ndarray) -> Image.Image:
    """A picture in mode RGB: its first frame, upright as Exif has it, over white where it is transparent.

    16 bits of grey are scaled to 8. Colour profiles are not applied. Arrays are uint8 or uint16, (H, W) or (H, W, C)
    with C of 1, 3 or 4. Unreadable where there is no such picture.
    """
    image = _header(data)
    with _blaming_the_file(image):
        image.load()
        turn = _TURNS.get(_orientation(image))
        return _rgb(image.transpose(turn) if turn is not None else image)


def size_of(data: bytes | Image.Image | np.ndarray) -> tuple[int, int]:
    """(height, width) that `open_rgb` would give; from the header alone unless a PNG or TIFF may be turned."""
    image = _header(data)
    if image.format == "PNG" and isinstance(data, bytes) and not any(mark in data for mark in _PNG_EXIF):
        return image.height, image.width
    with _blaming_the_file(image):
        if image.format == "TIFF" and _orientation(image) != 1:
            image.load()  # Pillow turns these itself
        swapped = _orientation(image) >= 5
    return (image.width, image.height) if swapped else (image.height, image.width)


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The square in the middle, (size, size, 3) uint8, to the bit as ADM makes it (Dhariwal & Nichol 2021)."""
    return cover(image, (size, size))


def cover(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The middle of an RGB picture, scaled to just cover `size`: (height, width, 3) uint8.

    ADM's steps: halve by averaging as long as both sides stay large enough, then scale bicubically, then crop.
    """
    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    whole = (round(image.width * scale), round(image.height * scale))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    box = (left, top, left + width, top + height)
    if whole[0] * whole[1] <= THIN:
        return np.array(image.resize(whole, Image.Resampling.BICUBIC).crop(box))
    x, y = image.width / whole[0], image.height / whole[1]  # only what is kept: as good, though not to the bit
    part = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=part))


def _header(data: bytes | Image.Image | np.ndarray) -> Image.Image:
    """A picture whose pixels are not decoded yet, if they are few enough to be."""
    if isinstance(data, np.ndarray):
        return _from_array(data)
    image = _identified(data) if isinstance(data, bytes) else data
    if 0 in image.size:
        raise Unreadable("has no pixels")
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise Unreadable(f"has {image.width:,} x {image.height:,} pixels, more than the {most:,} that are safe to open")
    return image


def _identified(data: bytes) -> Image.Image:
    """`Image.open` for FORMATS. Its own warning of large pictures depends on filters that all threads share."""
    if not data:
        raise Unreadable("is empty")
    Image.init()
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        with _blaming_the_file(name):
            if factory and accepts and accepts(data[:16]) is True:  # text, where Pillow was built without the format
                return factory(BytesIO(data), "")
    begin = data[:32].decode("latin-1").strip().partition("\n")[0]
    text = begin and begin.isascii() and begin.isprintable()
    found = f"it begins with {begin!r}" if text else "its format is unknown"
    raise Unreadable(f"is not a picture ({found})")


@contextmanager
def _blaming_the_file(picture: Image.Image | str) -> Iterator[None]:
    """Whatever Pillow raises for a damaged file, which has no common type, becomes Unreadable."""
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable("has more pixels than are safe to open") from error
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        kind = picture if isinstance(picture, str) else picture.format or "picture"
        raise Unreadable("is truncated" if "truncated" in text.lower() else f"is a damaged {kind} ({text})") from error


def _orientation(image: Image.Image) -> int:
    """1 to 8; a damaged Exif counts as none, as it does in browsers."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (ValueError, TypeError, LookupError, SyntaxError, EOFError, struct.error, UserWarning):
        return 1
    return value if value in _TURNS else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Unreadable("holds floating-point values of unknown range (mode F); save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow's `convert` would clip at 255."""
    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    if image.mode == "I" and (low < 0 or high > 65535 or 0 < high < 256):
        raise Unreadable(f"holds 32-bit integers from {low} to {high}, not 16-bit grey; save it with 8 or 16 bits")
    grey = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[pixels == clear] = 255
    return Image.fromarray(grey)


def _from_array(pixels: np.ndarray) -> Image.Image:
    shape = pixels.shape[:2] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels.shape
    colours = len(shape) == 3 and shape[2] in (3, 4) and pixels.dtype == np.uint8
    grey = len(shape) == 2 and pixels.dtype in (np.uint8, np.uint16)
    if not (colours or grey) or 0 in shape:
        raise Unreadable(
            f"is an array of {pixels.dtype} {pixels.shape}; wanted is uint8 (H, W, C), C of 1, 3 or 4, or grey uint16"
        )
    return Image.fromarray(np.ascontiguousarray(pixels.reshape(shape)))
