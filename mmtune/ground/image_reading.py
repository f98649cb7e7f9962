"""The one place where image files become pixels: header first, by allow-list, always RGB, never guessed.

Colour profiles are not applied, as the official processors of CLIP and SigLIP do not apply them either.
"""

import io
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.ground.records import FileReference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are opened. Pillow knows sixty; most of their parsers have no business with training data."""

PIXEL_LIMIT = 2**28 // 3
"""Largest width x height, 89 million: 256 MiB as RGB, and a worker may hold two copies. Pillow warns from the same size
on; a photo of a phone has up to 50 million (larger modes exist and are worth shrinking before training)."""

SIDE_RATIO_LIMIT = 200
"""Longest side / shortest side. Processors scale the short side to a few hundred pixels, so that a line of 1 x 60,000
would grow to gigabytes."""

_OTHER_CONTENT = (
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop file"),
    (b"<svg", "an SVG drawing"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x00\x0cjP", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"PK\x03\x04", "a zip archive"),
)
_BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image", b"jxl ": "a JPEG XL image"}

# What Pillow's parsers raise on damaged files, found by flipping and cutting bytes of every format.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,
    struct.error,
)

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageFile(FileReference):
    """A reference to an image file."""

    modality: ClassVar[str] = "image"
    noun: ClassVar[str] = "image"

    def read(self) -> "Image":
        """The decoded RGB image.

        Raises:
            DataError: as `read_image`.
        """
        return read_image(Path(self.key), self.where)

    def check(self) -> str | None:
        """Why it cannot be read, as far as the header tells, or None; safe in threads."""
        return check_header(self.key)


def read_image(source: Path | bytes | BinaryIO, where: str, *, max_pixels: int = PIXEL_LIMIT) -> "Image":
    """Decode one image to RGB: EXIF turned, transparency on white, 16 bits scaled to 8, the first frame of a film.

    Args:
        source: a path, the file's bytes, or an open binary file.
        where: what the error calls it.
        max_pixels: refuse more than this many before decoding.

    Raises:
        DataError: ``where: reason`` for what is missing, empty, cut short, damaged, too large or of another format.
    """
    try:
        with _opened(source) as file, _header(file, max_pixels) as image:
            _decode(image)
            return _rgb(_turned(image))
    except _Unreadable as problem:
        raise DataError(f"{where}: {problem}") from None


def check_header(source: Path | str | bytes | BinaryIO, *, max_pixels: int = PIXEL_LIMIT) -> str | None:
    """Why the image (a path, or as `read_image`) cannot be read, as far as its header tells, or None. Decodes nothing;
    safe in threads."""
    try:
        with _opened(Path(source) if isinstance(source, str) else source) as file, _header(file, max_pixels):
            return None
    except _Unreadable as problem:
        return str(problem)


class _Unreadable(Exception):
    """A reason of the form ``kind: detail``; reports count by the kind."""


@contextmanager
def _opened(source: Path | bytes | BinaryIO) -> "Iterator[BinaryIO]":
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, Path):
        try:
            file = source.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise _Unreadable("no such file") from None
        except IsADirectoryError:
            raise _Unreadable("a folder, not an image") from None
        except (OSError, ValueError) as problem:
            raise _Unreadable(f"cannot be opened: {getattr(problem, 'strerror', None) or problem}") from None
        with file:
            yield file
    else:
        yield source


@contextmanager
def _header(file: BinaryIO, max_pixels: int) -> "Iterator[Image]":
    """Open, and check all that the header says. Leaves the pixels alone."""
    from PIL import Image, UnidentifiedImageError

    try:
        start = file.read(64)
        file.seek(0)
        if not start:
            raise _Unreadable("the file is empty")
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise _Unreadable(_what_it_is(start)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _Unreadable(f"too many pixels: more than {max_pixels:,}") from None
    except _DAMAGE as problem:
        raise _Unreadable(f"damaged header: {problem}") from None
    with image:
        _check_size(*image.size, max_pixels)
        _check_mode(image)
        yield image


def _what_it_is(start: bytes) -> str:
    """The reason for a file that is none of FORMATS."""
    allowed = ", ".join(FORMATS)
    if start[4:8] == b"ftyp":
        return f"not an allowed format: {_BRANDS.get(start[8:12], 'a HEIC image or a film')}, allowed are {allowed}"
    for magic, name in _OTHER_CONTENT:
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(magic) or start.startswith(magic):
            return f"not an allowed format: {name}, allowed are {allowed}"
    return f"not an allowed format: begins with {start[:8]!r}, allowed are {allowed}"


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise _Unreadable(f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise _Unreadable(f"too many pixels: {width:,} x {height:,}, allowed are {max_pixels:,}")
    if max(width, height) > SIDE_RATIO_LIMIT * min(width, height):
        raise _Unreadable(f"too long and thin: {width:,} x {height:,}, allowed is 1 : {SIDE_RATIO_LIMIT}")


def _check_mode(image: "Image") -> None:
    """Refuse pixels without a defined white: floats, and integers of 32 bits (a PPM's ``I`` is 16 bits wide)."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise _Unreadable(f"pixels without a defined white: mode {image.mode}; save it with 8 or 16 bits")


def _decode(image: "Image") -> None:
    from PIL import Image

    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        raise _Unreadable(f"too many pixels: {problem}") from None
    except _DAMAGE as problem:
        raise _Unreadable(f"damaged or cut short: {problem}") from None


def _turned(image: "Image") -> "Image":
    """Turn as the EXIF orientation says (TIFFs are turned already). Damaged EXIF turns nothing, as in viewers."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        orientation = 1
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: "Image") -> "Image":
    """Any decoded mode to RGB, transparency on white. The result owns its pixels."""
    from PIL import Image

    try:
        if image.mode == "I" or image.mode.startswith("I;16"):
            return _rgb_of_16_bits(image)
        if image.has_transparency_data:
            image = image.convert("LA") if image.mode == "La" else image
            image = image.convert("RGBA")
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image.getchannel("A"))
            return white
        return image.copy() if image.mode == "RGB" else image.convert("RGB")
    except _DAMAGE as problem:
        raise _Unreadable(f"mode {image.mode} cannot become RGB: {problem}") from None


def _rgb_of_16_bits(image: "Image") -> "Image":
    """Grey of 10 to 16 bits, scaled: Pillow's own conversion clips everything above 255 to white."""
    from PIL import Image

    tags: Any = getattr(image, "tag_v2", {})
    bits = int(np.ravel(tags.get(258, 16))[0])
    pixels = np.asarray(image).astype(np.int64)
    grey = np.clip((pixels * 255 + (1 << bits >> 1)) // ((1 << bits) - 1), 0, 255).astype(np.uint8)
    if tags.get(262) == 0:  # WhiteIsZero
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[pixels == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
