"""Resizing by torch's own kernel for bytes: several times as fast as Pillow, and nearly always the same bytes.

Both round what the first of two passes gives to bytes, but torch's weights have 15 bits and Pillow's 22: now and then
one rounds up where the other rounds down. The passes must therefore come in Pillow's order.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image
    from torch import Tensor

FILTERS = {2: "bilinear", 3: "bicubic"}
"""Pillow's number of a filter -> torch's name of the same one."""

SMALLEST_SHRINKING = 2.0
"""Both sides must shrink by this for the fast resize to be within one grey level: nearer to 1, and in enlarging, one
pixel of the first pass weighs so much that two roundings may add up to two levels."""


def is_within_a_level(image: "Image", height: int, width: int, resample: int) -> bool:
    """Whether ``resize_fast`` is good for these sizes."""
    shrinking = min(image.height / height, image.width / width)
    return resample in FILTERS and shrinking >= SMALLEST_SHRINKING


def resize_fast(image: "Image", height: int, width: int, resample: int) -> "ndarray[Any, Any]":
    """uint8[height, width, 3] of an RGB image."""
    import torch

    pixels = _in_four_channels(image)
    rows_first = _reduces_rows_first(image, height, width)
    for step in ((height, image.width), (height, width)) if rows_first else ((height, width),):
        pixels = torch.nn.functional.interpolate(pixels, size=step, mode=FILTERS[resample], antialias=True)
    made: ndarray[Any, Any] = pixels[0, :3].permute(1, 2, 0).numpy()
    return made


def _in_four_channels(image: "Image") -> "Tensor":
    """uint8[1, 4, H, W], channels last, the fourth unused: as an RGB image lies in memory, so it is copied as it is."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the bytes must not be written to; nobody does
        pixels = torch.frombuffer(image.tobytes("raw", "RGBX"), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, 4).permute(0, 3, 1, 2)


def _reduces_rows_first(image: "Image", height: int, width: int) -> bool:
    """Whether Pillow takes the rows together before the columns; what is rounded in between depends on it."""
    lost = image.height - height
    return lost > max(0, 2 * (image.width - width)) and _pillow_may_start_with_rows()


@cache
def _pillow_may_start_with_rows() -> bool:
    """Since version 13 Pillow starts with the rows where they are reduced by more than twice as many as the columns."""
    import numpy as np
    from PIL import Image

    dots = np.random.default_rng(0).integers(0, 2, (64, 12), dtype=np.uint8) * 255
    picture = Image.fromarray(dots)
    rows_first = picture.resize((12, 16), 3).resize((10, 16), 3)
    return rows_first.tobytes() == picture.resize((10, 16), 3).tobytes()
