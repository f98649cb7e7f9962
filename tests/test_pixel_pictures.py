"""Pictures of what the model sees: the processed pixels, turned back, whatever layout the processor has."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from shown_worlds import reader

from mmtune.ground.records import Turn
from mmtune.pixel_pictures import pictures_of

ROUNDING = 1.5
"""Letters of 8 bits: normalising in float32 and back may round to a neighbour."""


def drawn(width: int = 48, height: int = 32) -> Image.Image:
    """A picture whose corners and colours all differ, so that turns, mirrors and mixed channels show."""
    image = Image.new("RGB", (width, height), (240, 200, 40))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 11, 7), fill=(10, 20, 250))
    pen.rectangle((width - 16, height - 12, width, height), fill=(200, 10, 30))
    return image


def seen(name: str, image: Image.Image) -> list[Image.Image]:
    backbone = reader(name)
    prompt = backbone.traits.caption_prompt or "what is it?"
    turns = (Turn("user", (SimpleNamespace(), prompt)), Turn("assistant", ("a line",)))  # type: ignore[arg-type]
    encoded = backbone.family.encode_turns(backbone.processor, turns, [image])
    return pictures_of(encoded, backbone.processor)


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).max())


def test_a_normalised_image_comes_back() -> None:
    image = drawn(32, 32)
    (picture,) = seen("blip_captioning", image)
    assert picture.mode == "RGB" and distance(picture, image) <= ROUNDING
    assert distance(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image) > 100


def test_flat_patches_in_qwen_s_order_come_back() -> None:
    image = drawn(32, 24)  # a size that the twin keeps: a multiple of two patches of four pixels
    (picture,) = seen("qwen2_5_vl", image)
    assert picture.size == (32, 24) and distance(picture, image) <= ROUNDING


def test_tiles_come_one_by_one() -> None:
    image = drawn(64, 64)
    pictures = seen("smolvlm", image)
    assert len(pictures) == 5 and {picture.size for picture in pictures} == {(32, 32)}
    for place, corner in enumerate([(0, 0), (32, 0), (0, 32), (32, 32)]):
        part = image.crop((*corner, corner[0] + 32, corner[1] + 32))
        assert distance(pictures[place], part) <= ROUNDING


def test_rows_of_patches_come_back() -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    image = drawn(48, 32)
    reader = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24)
    encoded = {key: value[0] for key, value in reader(image, return_tensors="pt").items()}
    (picture,) = pictures_of(encoded, SimpleNamespace(image_processor=reader))
    assert picture.size == (48, 32) and distance(picture, image) <= ROUNDING


def test_sounds_are_spectrograms_and_words_alone_have_no_picture() -> None:
    (picture,) = pictures_of({"input_features": torch.randn(1, 30, 8)}, None)
    assert picture.size == (30, 8)
    assert pictures_of({"input_ids": torch.zeros(3)}, None) == []


@pytest.mark.parametrize("shape", [(7, 5), (2, 6, 4)])
def test_an_unknown_layout_gives_no_picture(shape: tuple[int, ...]) -> None:
    assert pictures_of({"pixel_values": torch.zeros(shape)}, SimpleNamespace(image_processor=None)) == []


def test_a_processor_that_does_not_normalise(tmp_path: Path) -> None:
    reader = SimpleNamespace(do_normalize=False, do_rescale=True, rescale_factor=1 / 255)
    pixels = torch.tensor(np.asarray(drawn(8, 8)).transpose(2, 0, 1) / 255)
    (picture,) = pictures_of({"pixel_values": pixels}, SimpleNamespace(image_processor=reader))
    assert distance(picture, drawn(8, 8)) <= ROUNDING
