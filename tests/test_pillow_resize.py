"""Pillow's resize by torch: the same bytes, whatever the sizes; where it is not, Pillow is asked."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from mmtune.backbones import _pillow_resize as by_torch
from mmtune.backbones._pillow_resize import resize

WHOLE = slice(None)
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3


def picture(width: int, height: int) -> Image.Image:
    """Noise, on the left of black and white alone: there cubic weights reach below 0 and above 255."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = pixels[:, : width // 2] // 128 * 255
    return Image.fromarray(pixels)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The sizes that torch resized to."""
    seen: list[tuple[int, int]] = []
    real = by_torch._resize

    def watched(image: Image.Image, height: int, width: int, *rest: object) -> object:
        seen.append((height, width))
        return real(image, height, width, *rest)  # type: ignore[arg-type]

    assert all(by_torch._equals_pillow(filter) for filter in (LANCZOS, BILINEAR, BICUBIC))
    monkeypatch.setattr(by_torch, "_resize", watched)
    yield seen


@pytest.mark.parametrize("filter", [LANCZOS, BILINEAR, BICUBIC])
def test_the_bytes_are_pillow_s(filter: int, counted: list[tuple[int, int]]) -> None:
    draw = np.random.default_rng(filter)
    for _ in range(25):
        width, height = (int(side) for side in draw.integers(150, 500, 2))
        shape = tuple(int(side) for side in draw.integers(130, 330, 2))
        image = picture(width, height)
        wanted = np.asarray(image.resize(shape[::-1], filter))
        assert np.array_equal(resize(image, *shape, filter, WHOLE, WHOLE), wanted), (image.size, shape)
    assert len(counted) > 5, "some of them torch resized"


def test_a_part_is_cut_out_of_the_whole(counted: list[tuple[int, int]]) -> None:
    image, rows, columns = picture(640, 480), slice(3, 200), slice(37, 261)
    wanted = np.asarray(image.resize((298, 224), BICUBIC))[rows, columns]
    assert np.array_equal(resize(image, 224, 298, BICUBIC, rows, columns), wanted)
    assert counted == [(224, 298)]


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((60, 40), (20, 30)),
        ((400, 300), (150, 400)),
        ((400, 300), (300, 200)),
        ((300, 600), (90, 200)),
        ((2000, 300), (100, 200)),
    ],
    ids=["small", "width-stays", "height-stays", "loses-rows", "shrinks-far"],
)
def test_where_it_does_not_pay_pillow_is_asked(
    size: tuple[int, int], shape: tuple[int, int], counted: list[tuple[int, int]]
) -> None:
    image = picture(*size)
    wanted = np.asarray(image.resize(shape[::-1], BICUBIC))
    assert np.array_equal(resize(image, *shape, BICUBIC, WHOLE, WHOLE), wanted)
    assert not counted


def test_a_pillow_that_computes_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    by_torch._equals_pillow.cache_clear()
    by_torch._weights.cache_clear()
    real = by_torch._read_weights

    def read(have: int, want: int, resample: int) -> tuple[np.ndarray, np.ndarray]:
        starts, weights = real(have, want, resample)
        return starts, weights + (weights == weights.max(axis=1, keepdims=True)) * 4096  # a thousandth more

    monkeypatch.setattr(by_torch, "_read_weights", read)
    image = picture(640, 480)
    wanted = np.asarray(image.resize((298, 224), BICUBIC))
    assert not by_torch._equals_pillow(BICUBIC)
    assert not np.array_equal(by_torch._resize(image, 224, 298, BICUBIC, WHOLE, WHOLE), wanted)
    assert np.array_equal(resize(image, 224, 298, BICUBIC, WHOLE, WHOLE), wanted)
    by_torch._equals_pillow.cache_clear()
    by_torch._weights.cache_clear()
