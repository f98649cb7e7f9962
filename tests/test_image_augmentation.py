"""Augmentation: a function of the generator alone, and each knob does its own thing."""

import numpy as np
import pytest
from PIL import Image, ImageOps
from pydantic import ValidationError

from mmtune.ground.image_augmentation import AugmentSection, augment
from mmtune.ground.seeding import generator_for

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
EVERYTHING = AugmentSection(crop=0.4, flip=True, colour=0.5)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and np.array_equal(pixels(one), pixels(other))


def test_default_changes_nothing() -> None:
    assert augment(IMAGE, AugmentSection(), generator_for(0, 1, "a")) is IMAGE


def test_same_names_same_image_other_names_other_image() -> None:
    np.random.seed(1)
    first = augment(IMAGE, EVERYTHING, generator_for(0, 1, "a"))
    np.random.seed(2)
    assert same(first, augment(IMAGE, EVERYTHING, generator_for(0, 1, "a")))
    for names in [(1, 1, "a"), (0, 2, "a"), (0, 1, "b")]:
        assert not same(first, augment(IMAGE, EVERYTHING, generator_for(*names)))


def test_the_image_passed_in_is_not_changed() -> None:
    before = pixels(IMAGE).copy()
    augment(IMAGE, EVERYTHING, generator_for(0, 3))
    assert np.array_equal(before, pixels(IMAGE))


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (50, 50), (200, 3), (1, 1)])
def test_crop_keeps_the_area_it_says(size: tuple[int, int]) -> None:
    image = IMAGE.resize(size)
    shares = []
    for draw in range(200):
        cropped = augment(image, AugmentSection(crop=0.3), generator_for(0, draw))
        assert cropped.width <= image.width and cropped.height <= image.height
        shares.append(cropped.width * cropped.height / (image.width * image.height))
    # sides are whole pixels: half a pixel of each side may be rounded away
    assert min(shares) >= 0.3 - 0.5 / size[0] - 0.5 / size[1]
    if min(size) >= 40:
        assert min(shares) < 0.4 and max(shares) > 0.9, "the whole range is drawn from"


def test_crop_is_a_part_of_the_image_and_moves() -> None:
    places = set()
    for draw in range(20):
        cropped = pixels(augment(IMAGE, AugmentSection(crop=0.3), generator_for(0, draw)))
        height, width = cropped.shape[:2]
        views = np.lib.stride_tricks.sliding_window_view(pixels(IMAGE), (height, width, 3))[:, :, 0]
        found = np.argwhere((views == cropped).all(axis=(2, 3, 4)))
        assert len(found) == 1
        places.add(tuple(found[0]))
    assert len(places) > 5


def test_crop_of_everything_is_the_image() -> None:
    assert same(augment(IMAGE, AugmentSection(crop=1), generator_for(0, 1)), IMAGE)


def test_flip_mirrors_about_half() -> None:
    flipped = [augment(IMAGE, AugmentSection(flip=True), generator_for(0, draw)) for draw in range(200)]
    assert all(same(image, IMAGE) or same(image, ImageOps.mirror(IMAGE)) for image in flipped)
    mirrored = sum(not same(image, IMAGE) for image in flipped)
    assert 70 <= mirrored <= 130  # 4 standard deviations of a fair coin


def test_colour_stays_within_its_strength() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [pixels(augment(grey, AugmentSection(colour=0.2), generator_for(0, draw))).mean() for draw in range(200)]
    # uniform grey has no contrast and no saturation to change, so only brightness shows: 100 * (1 +- 0.2)
    assert 79 <= min(values) < 85 and 115 < max(values) <= 121
    assert pixels(augment(IMAGE, AugmentSection(colour=0.2), generator_for(0, 1))).shape == pixels(IMAGE).shape


def test_colour_changes_saturation_and_contrast() -> None:
    red = Image.new("RGB", (2, 1), (200, 100, 100))
    spreads = {
        int(np.ptp(pixels(augment(red, AugmentSection(colour=1), generator_for(0, i)))[0, 0])) for i in range(50)
    }
    assert min(spreads) < 50 and max(spreads) > 150
    ramp = Image.linear_gradient("L").convert("RGB")
    contrasts = [pixels(augment(ramp, AugmentSection(colour=0.5), generator_for(0, i))).std() for i in range(50)]
    assert min(contrasts) < 0.6 * pixels(ramp).std() < pixels(ramp).std() < max(contrasts)


def test_knobs_do_not_disturb_each_other() -> None:
    """Flip draws the same coin whether or not a crop and colours are drawn too."""
    for draw in range(20):
        alone = augment(IMAGE, AugmentSection(flip=True), generator_for(0, draw))
        cropped = augment(IMAGE, AugmentSection(crop=0.5), generator_for(0, draw))
        both = augment(IMAGE, AugmentSection(crop=0.5, flip=True), generator_for(0, draw))
        assert same(both, cropped if same(alone, IMAGE) else ImageOps.mirror(cropped))


@pytest.mark.parametrize(
    "values",
    [{"crop": 0}, {"crop": 1.1}, {"crop": float("nan")}, {"colour": -0.1}, {"colour": 1.1}, {"flip": 1}, {"blur": 1}],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AugmentSection(**values)
