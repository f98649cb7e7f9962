"""Clean print: one character of one font as a picture, the same bytes for the same versions of Pillow and font."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

SIDE = 64  # pixels: width and height of every picture
EM = 44  # pixels of the font size: tall enough to tell accents apart, small enough for stacked ones to fit
BASELINE = 46  # pixels from the top: letters keep their place on the line, so a comma is not an apostrophe
MARGIN = 3  # pixels that stay white on every side


@functools.lru_cache(maxsize=1)
def find_font_folder() -> Path:
    """Folder of matplotlib's TrueType fonts, found without importing matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib, whose fonts are the data, is not installed.
    """
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the glyphs source draws with the fonts of matplotlib: pip install matplotlib")
    return Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")


@functools.lru_cache(maxsize=1)
def drawing_version() -> str:
    """What tells whether pictures are still drawn as they were: the code here, and the packages that it draws with."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("pillow", "numpy", "matplotlib")]
    return " ".join([digest.hexdigest(), *versions])


@functools.lru_cache(maxsize=256)
def load_font(font: str, em: int) -> ImageFont.FreeTypeFont:
    """The font file `font` (name without ending) at `em` pixels."""
    from PIL import ImageFont

    # The basic layout draws one code point as one glyph and needs no optional library, so every machine draws the same.
    return ImageFont.truetype(find_font_folder() / f"{font}.ttf", em, layout_engine=ImageFont.Layout.BASIC)


def draw_clean(character: str, font: str) -> Image.Image:
    """Black print on white: a `SIDE` x `SIDE` picture in mode L (uint8, 255 is paper).

    The ink is centred across and keeps its height above the baseline; what does not fit is drawn smaller.
    """
    from PIL import Image, ImageDraw

    face = load_font(font, EM)
    left, top, right, bottom = face.getbbox(character, anchor="ls")
    room = SIDE - 2 * MARGIN
    largest = max(right - left, bottom - top)
    if largest > room:
        face = load_font(font, max(1, int(EM * room / largest)))
        left, top, right, bottom = face.getbbox(character, anchor="ls")
    x = (SIDE - (right - left)) // 2 - left
    y = min(max(BASELINE, MARGIN - top), SIDE - MARGIN - bottom)
    picture = Image.new("L", (SIDE, SIDE), 255)
    ImageDraw.Draw(picture).text((x, y), character, fill=0, font=face, anchor="ls")
    return picture
