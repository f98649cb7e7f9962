"""Pictures made from what an image processor gave: what the model sees, after resizing, cropping and tiling.

Letters: T tiles, C/H/W channels, height, width, P patches in a row of a flat list, p a patch's side.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def pictures_of(encoded: "Mapping[str, Tensor]", processor: Any) -> "list[Image]":
    """What the model sees of one sample's images, a picture per image or tile; of sounds, their spectrogram.

    Args:
        encoded: one sample's tensors: ``pixel_values`` float[C, H, W], [T, C, H, W], [N, T, C, H, W] or flat patches
            with their grid, or ``input_features`` float[..., frames, bands].
        processor: whose image processor made them.

    What is no picture (a layout that is not known here) gives none.
    """
    if "input_features" in encoded:
        return [_spectrogram(np.asarray(encoded["input_features"].float()))]
    if "pixel_values" not in encoded:
        return []
    pixels = np.asarray(encoded["pixel_values"].float())
    reader = processor.image_processor
    if "image_grid_thw" in encoded:
        tiles = _from_grid(pixels, encoded["image_grid_thw"].reshape(-1, 3).tolist(), reader)
    elif "spatial_shapes" in encoded:
        tiles = _from_rows(pixels, encoded["spatial_shapes"].reshape(-1, 2).tolist())
    elif 3 <= pixels.ndim <= 5 and pixels.shape[-3] in (1, 3):
        tiles = list(pixels.reshape(-1, *pixels.shape[-3:]))
    else:
        tiles = []
    return [_picture(tile, reader) for tile in tiles]


def _picture(pixels: np.ndarray, reader: Any) -> "Image":
    """float[C, H, W] as the processor normalised it, turned back."""
    from PIL import Image

    if getattr(reader, "do_normalize", True):
        mean, std = (np.reshape(getattr(reader, name), (-1, 1, 1)) for name in ("image_mean", "image_std"))
        pixels = pixels * std + mean
    if getattr(reader, "do_rescale", True):
        pixels = pixels / reader.rescale_factor
    letters = np.clip(pixels.round(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(letters[..., 0] if letters.shape[-1] == 1 else letters)


def _from_grid(patches: np.ndarray, grids: list[list[int]], reader: Any) -> list[np.ndarray]:
    """Qwen's order: patches [sum of t h w, C x frames x p x p], in squares of ``merge_size`` patches."""
    side, merge, frames = reader.patch_size, reader.merge_size, reader.temporal_patch_size
    tiles, start = [], 0
    for times, rows, columns in grids:
        part = patches[start : start + times * rows * columns]
        start += len(part)
        shape = (times, rows // merge, columns // merge, merge, merge, -1, frames, side, side)
        parts = part.reshape(shape)[:, ..., 0, :, :]  # an image is its own second frame
        whole = parts.transpose(0, 5, 1, 3, 6, 2, 4, 7)
        tiles += list(whole.reshape(times, -1, rows * side, columns * side))
    return tiles


def _from_rows(patches: np.ndarray, shapes: list[list[int]]) -> list[np.ndarray]:
    """Patches float[..., P, p x p x C] row after row; what is beyond the shape is padding."""
    tiles = []
    for part, (rows, columns) in zip(patches.reshape(-1, *patches.shape[-2:]), shapes, strict=True):
        side = round((part.shape[-1] / 3) ** 0.5)
        whole = part[: rows * columns].reshape(rows, columns, side, side, 3).transpose(4, 0, 2, 1, 3)
        tiles.append(whole.reshape(3, rows * side, columns * side))
    return tiles


def _spectrogram(features: np.ndarray) -> "Image":
    """float[..., frames, bands] as a grey picture: time to the right, high above low."""
    from PIL import Image

    heard = features.reshape(-1, *features.shape[-2:])[0].T[::-1]
    low, high = float(heard.min()), float(heard.max())
    return Image.fromarray((255 * (heard - low) / max(high - low, 1e-9)).astype(np.uint8))
