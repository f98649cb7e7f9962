"""Random changes of a training image, each a function of the generator that is passed and of nothing else.

The caller makes the generator from (seed, epoch, sample id), so workers, ranks and resuming change no pixel.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from mmtune.ground.sections import StrictSection

if TYPE_CHECKING:
    from PIL.Image import Image

CROP_RATIOS = (3 / 4, 4 / 3)
"""Range of a crop's width / height. Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6."""


class AugmentSection(StrictSection):
    """Random changes of training images; the default changes nothing, and images that are scored are never changed."""

    crop: float | None = Field(
        None,
        gt=0,
        le=1,
        description="smallest share of the image's area that a random crop keeps; 0.9 is mild, null: no crop",
    )
    flip: bool = Field(False, description="mirror every second image left to right (wrong where images show writing)")
    colour: float = Field(
        0,
        ge=0,
        le=1,
        description="strength of random changes of brightness, contrast and saturation: "
        "each is multiplied by a number between 1 - colour and 1 + colour; 0: no change",
    )
    views: int | None = Field(
        None,
        ge=1,
        description="so many fixed changed views of each image, shown in turn, instead of a new one every time: what "
        "frozen layers make of them is then computed once; null: a new one every time",
    )

    @property
    def is_idle(self) -> bool:
        """Whether images stay as they are."""
        return self.crop is None and not self.flip and self.colour == 0


def augment(image: "Image", section: AugmentSection, generator: np.random.Generator) -> "Image":
    """Change an RGB image as the section asks; the size may become smaller (the processor resizes later).

    Always takes the same eight numbers from the generator, so that switching one change on leaves the others as
    they were.

    Args:
        image: RGB, not modified.
        section: what to do; the default returns the image itself.
        generator: made for this sample and epoch.
    """
    area, ratio, left, top, flip, brightness, contrast, saturation = generator.random(8)
    if section.crop is not None:
        image = image.crop(_crop_box(image.size, section.crop, (area, ratio, left, top)))
    if section.flip and flip < 0.5:
        image = _mirrored(image)
    if section.colour > 0:
        factors = [1 + section.colour * (2 * draw - 1) for draw in (brightness, contrast, saturation)]
        image = _recoloured(image, *factors)
    return image


def _crop_box(
    size: tuple[int, int], smallest: float, draws: tuple[float, float, float, float]
) -> tuple[int, int, int, int]:
    """left, top, right, bottom in pixels of a crop whose area share is uniform in [smallest, 1].

    A crop that would stick out is made flatter, not smaller, so there is nothing to reject and draw again.
    """
    width, height = size
    area_draw, ratio_draw, left_draw, top_draw = draws
    area = width * height * (smallest + (1 - smallest) * area_draw)
    low, high = map(math.log, CROP_RATIOS)
    ratio = math.exp(low + (high - low) * ratio_draw)
    wide = min(max(math.sqrt(area * ratio), area / height), width)
    crop_width = min(width, max(1, round(wide)))
    crop_height = min(height, max(1, round(area / wide)))
    left = math.floor(left_draw * (width - crop_width + 1))
    top = math.floor(top_draw * (height - crop_height + 1))
    return left, top, left + crop_width, top + crop_height


def _mirrored(image: "Image") -> "Image":
    from PIL import ImageOps

    return ImageOps.mirror(image)


def _recoloured(image: "Image", brightness: float, contrast: float, saturation: float) -> "Image":
    from PIL import ImageEnhance

    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    return ImageEnhance.Color(image).enhance(saturation)
