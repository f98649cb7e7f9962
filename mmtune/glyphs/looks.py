"""The same print in another look: what a model pretrained on clean print has never seen and a person still reads.

Every look is a function of (seed, picture): no epoch enters, so a picture is the same file on every visit, on every
machine and in every worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mmtune.glyphs.characters import Glyph
from mmtune.glyphs.drawing import SIDE, draw_clean
from mmtune.ground.seeding import generator_for

if TYPE_CHECKING:
    from PIL import Image

PAPER = 255


def draw_look(glyph: Glyph, look: str, seed: int) -> Image.Image:
    """The picture of `glyph` in `look` (a key of `LOOKS`): `SIDE` x `SIDE`, mode RGB (uint8)."""
    clean = draw_clean(glyph.character, glyph.font)
    return LOOKS[look](clean, generator_for(seed, "look", look, glyph.key))


def keep_clean(clean: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Black print on white, unchanged; `generator` is not drawn from."""
    return clean.convert("RGB")


def photograph(clean: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Ink on paper, seen by a hand-held camera: tilted page, soft focus, uneven light, sensor noise."""
    from PIL import Image, ImageFilter

    tilted = _tilt(clean, generator)
    soft = tilted.filter(ImageFilter.GaussianBlur(generator.uniform(0.8, 1.6)))
    cover = 1.0 - np.asarray(soft, dtype=np.float32)[..., None] / PAPER  # [H, W, 1]: 1 where there is ink
    paper = generator.uniform(150, 240) + generator.normal(0.0, 8.0, 3)
    ink = generator.uniform(15, 90) + generator.normal(0.0, 12.0, 3)
    page = paper * (1.0 - cover) + ink * cover
    lit = page * _cast_light(generator)[..., None]
    grain = generator.normal(0.0, generator.uniform(8.0, 20.0), (SIDE, SIDE, 1)) + generator.normal(0.0, 4.0, lit.shape)
    return Image.fromarray(np.clip(lit + grain, 0, 255).astype(np.uint8), "RGB")


def draw_hollow(clean: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The outline of the print, drawn by an unsteady hand with a thin pen."""
    from PIL import Image, ImageChops, ImageFilter

    large = clean.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
    # Paper is the larger value: a MinFilter thickens the ink, and the rim is what it added.
    thick = large.filter(ImageFilter.MinFilter(5))
    rim = ImageChops.add(thick, ImageChops.invert(large))
    shaken = _shake(np.asarray(rim), generator)
    pen = generator.uniform(20, 90)
    small = Image.fromarray(shaken).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    faded = pen + (PAPER - pen) * np.asarray(small, dtype=np.float32) / PAPER
    return Image.fromarray(faded.astype(np.uint8)).convert("RGB")


LOOKS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "clean": keep_clean,
    "camera": photograph,
    "hollow": draw_hollow,
}


def _tilt(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The page seen from the side: every corner of the view moves on its own, then the page is turned and moved."""
    from PIL import Image

    corners = np.array([[0, 0], [0, SIDE], [SIDE, SIDE], [SIDE, 0]], dtype=np.float64)  # order of Pillow's QUAD
    corners += generator.uniform(-0.12, 0.12, (4, 2)) * SIDE
    angle = np.deg2rad(generator.uniform(-15.0, 15.0))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = generator.uniform(0.92, 1.15)
    shift = generator.uniform(-0.04, 0.04, 2) * SIDE
    seen = (corners - SIDE / 2) @ turn * scale + SIDE / 2 + shift
    return picture.transform(
        picture.size, Image.Transform.QUAD, tuple(seen.ravel()), Image.Resampling.BICUBIC, fillcolor=PAPER
    )


def _cast_light(generator: np.random.Generator) -> np.ndarray:
    """float32[H, W], about 0.35 to 1.15: light that falls from one side, and a soft shadow across the page."""
    axis = np.linspace(-1.0, 1.0, SIDE, dtype=np.float32)
    angle, edge = generator.uniform(0.0, 2 * np.pi, 2)
    side = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    light = 0.9 + generator.uniform(0.05, 0.25) * side
    across = np.cos(edge) * axis[None, :] + np.sin(edge) * axis[:, None] - generator.uniform(-0.3, 0.6)
    shadow = generator.uniform(0.1, 0.42) / (1.0 + np.exp(-across * generator.uniform(4.0, 14.0)))
    return light * (1.0 - shadow)


def _shake(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """uint8[H, W] -> the same shape, every point moved by a smooth random wave of a few pixels."""
    height, width = pixels.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    move = np.zeros((2, height, width), dtype=np.float32)
    for waves in (1.5, 3.5):
        amplitude = 0.016 * width / waves**0.5
        for axis in range(2):
            phase, angle = generator.uniform(0.0, 2 * np.pi, 2)
            along = np.cos(angle) * x + np.sin(angle) * y
            move[axis] += amplitude * np.sin(2 * np.pi * waves * along / width + phase)
    rows = np.clip(np.rint(y + move[0]), 0, height - 1).astype(np.intp)
    columns = np.clip(np.rint(x + move[1]), 0, width - 1).astype(np.intp)
    return pixels[rows, columns]
