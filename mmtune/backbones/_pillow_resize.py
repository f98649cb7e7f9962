"""Pillow's resize of RGB bytes, number for number, in about half its time.

Pillow multiplies bytes with whole numbers (weights times 2^22), adds, rounds, and cuts off at 0 and 255: first along
the rows, then along the columns. Here torch's weighted bags do the adding. They compute in floats, so every weight goes
in as two halves of 11 bits: sums of bytes times such a half are whole numbers below 2^24, which float32 holds exactly
in whatever order they are added. The weights are read off Pillow itself.

Letters: H/W height, width of the image, h/w of what it becomes, T weights per pixel.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image
    from torch import Tensor

WEIGHT_BITS = 22
HALF = 1 << (WEIGHT_BITS // 2)
SUPPORT = {1: 3.0, 2: 1.0, 3: 2.0}
"""Pillow's number of a filter (lanczos, bilinear, bicubic) -> how many pixels it reaches to each side."""

FEWEST_PIXELS, MOST_PIXELS, MOST_SHRINKING = 20_000, 2_000_000, 4.0
"""Where it pays: below, Pillow needs no longer than a handful of calls; above, the floats fill the caches."""

ROWS_AT_ONCE = 240


@dataclass(frozen=True)
class _Weights:
    """How one side is resized. The first weight stands for a pixel that is always 1, and rounds.

    Attributes:
        places: int64[n, 1 + T], the pixels that each new one is made of.
        high: float32[n, 1 + T], their weights' upper half, of 11 bits.
        low: float32[n, 1 + T], the lower half, over 2^11.
    """

    places: "Tensor"
    high: "Tensor"
    low: "Tensor"


def resize(image: "Image", height: int, width: int, resample: int, rows: slice, columns: slice) -> "ndarray[Any, Any]":
    """uint8[h, w, 3] of an RGB image: ``numpy.asarray(image.resize((width, height), resample))[rows, columns]``."""
    import numpy as np

    if not _pays(image, height, width, resample):
        return np.asarray(image.resize((width, height), resample))[rows, columns]
    return _resize(image, height, width, resample, rows, columns)


def _pays(image: "Image", height: int, width: int, resample: int) -> bool:
    """Whether the way of this file is quicker, and surely Pillow's: rows first (Pillow may begin with the columns of
    images that lose far more rows than columns)."""
    lost = image.width - width, image.height - height
    return (
        FEWEST_PIXELS <= image.width * image.height <= MOST_PIXELS
        and image.width <= MOST_SHRINKING * width
        and 0 not in lost
        and lost[1] <= max(0, 2 * lost[0])
        and resample in SUPPORT
        and _equals_pillow(resample)
    )


@cache
def _equals_pillow(resample: int) -> bool:
    """Whether the installed Pillow computes as this file says: tried once, on noise."""
    import numpy as np
    from PIL import Image

    dots = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    dots[:, :40] = dots[:, :40] // 128 * 255  # overshoots at both ends
    image, whole = Image.fromarray(dots), slice(None)
    for height, width in ((41, 37), (101, 67), (111, 150)):
        wanted = np.asarray(image.resize((width, height), resample))
        if not np.array_equal(_resize(image, height, width, resample, whole, whole), wanted):
            return False
    return True


def _resize(image: "Image", height: int, width: int, resample: int, rows: slice, columns: slice) -> "ndarray[Any, Any]":
    """As ``resize``; both sides change."""
    import numpy as np
    import torch
    from PIL.Image import Transpose

    turned = torch.from_numpy(np.array(image.transpose(Transpose.TRANSPOSE)))  # [W, H, 3]: a column is a row to weigh
    across = _weights(image.width, width, resample, columns.start, columns.stop)
    down = _weights(image.height, height, resample, rows.start, rows.stop)
    narrow = _table(image.height, len(across.places))
    for start in range(0, image.height, ROWS_AT_ONCE):
        part = turned[:, start : start + ROWS_AT_ONCE]
        table = _table(*part.shape[:2])
        table[1:] = part
        made = _weigh(table, across).floor_()
        narrow[1 + start : 1 + start + part.shape[1]] = made.transpose(0, 1)
    return _weigh(narrow, down).to(torch.uint8).numpy()


def _table(num_rows: int, num_pixels: int) -> "Tensor":
    """float32[1 + rows, pixels, 3] for ``_weigh``, its first row 1."""
    import torch

    table = torch.empty(1 + num_rows, num_pixels, 3)
    table[0] = 1
    return table


def _weigh(table: "Tensor", weights: _Weights) -> "Tensor":
    """float32[n, pixels, 3], Pillow's sums of the table's rows, rounded up to what ``floor`` takes off, cut off."""
    import torch

    flat = table.view(len(table), -1)
    bag = torch.nn.functional.embedding_bag
    with torch.no_grad():
        sums = bag(weights.places, flat, per_sample_weights=weights.low, mode="sum").floor_()
        sums += bag(weights.places, flat, per_sample_weights=weights.high, mode="sum")
    return sums.mul_(1 / HALF).clamp_(0, 255).view(-1, *table.shape[1:])


@lru_cache(maxsize=256)
def _weights(have: int, want: int, resample: int, first: int | None, last: int | None) -> _Weights:
    """The weights that make pixels ``first`` to ``last`` of ``want`` out of ``have``."""
    import numpy as np
    import torch

    starts, weights = _read_weights(have, want, resample)
    starts, weights = starts[first:last], weights[first:last]
    places = (starts[:, None] + np.arange(weights.shape[1])).clip(0, have - 1)
    places = np.pad(places + 1, ((0, 0), (1, 0)))  # place 0 holds the 1
    high = np.pad(weights // HALF, ((0, 0), (1, 0)), constant_values=1 << (WEIGHT_BITS // 2 - 1))
    low = np.pad(weights % HALF, ((0, 0), (1, 0))) / HALF
    return _Weights(torch.from_numpy(places), torch.from_numpy(high).float(), torch.from_numpy(low).float())


def _read_weights(have: int, want: int, resample: int) -> "tuple[ndarray[Any, Any], ndarray[Any, Any]]":
    """Where each new pixel begins, int64[want], and its weights times 2^22, int64[want, T].

    Pillow's 32-bit images are resized with the same weights, unrounded. A row of them with 2^22 at every so-manieth
    place, and 0 between, comes out as rounded weights, at most one to a pixel.
    """
    import numpy as np
    from PIL import Image

    reach = SUPPORT[resample] * max(have / want, 1.0)
    spacing = 2 * int(np.ceil(reach)) + 3
    marks = np.zeros((spacing, have), np.int32)
    marks[np.arange(have) % spacing, np.arange(have)] = 1 << WEIGHT_BITS
    seen = np.asarray(Image.fromarray(marks).resize((want, spacing), resample)).astype(np.int64)
    starts = np.floor((np.arange(want) + 0.5) * (have / want) - reach).astype(np.int64)
    places = starts[:, None] + np.arange(spacing)
    weights = seen[places % spacing, np.arange(want)[:, None]] * ((places >= 0) & (places < have))
    used = weights != 0
    shift = used.argmax(axis=1)
    num_taps = int((spacing - used[:, ::-1].argmax(axis=1) - shift).max())
    picked = np.minimum(shift[:, None] + np.arange(num_taps), spacing - 1)
    inside = shift[:, None] + np.arange(num_taps) < spacing
    return starts + shift, np.take_along_axis(weights, picked, axis=1) * inside
