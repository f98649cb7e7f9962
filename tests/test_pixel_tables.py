"""Pixels by table: bit for bit those of the image processor; the fast resize: within one grey level where it acts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmtune.backbones import Section, load, load_processor, tiny_folder
from mmtune.backbones._dual_encoder import encode_media
from mmtune.backbones._pixel_tables import PixelTable, encode_pixels, expand_pixels, pixel_table
from mmtune.ground.errors import BackboneError
from mmtune.model_loading import Target, model_identity

PLAIN = ("CLIP", "Siglip", "Blip", "ChineseCLIP", "ViT", "DeiT", "EfficientNet", "Bit")
OTHERS = ("Vilt", "Siglip2", "Llava", "LlavaNext", "Idefics3", "Flava")
SIZES = ((1, 1), (3, 400), (301, 2), (60, 41), (223, 225), (225, 640), (640, 480), (900, 700))
"""Width and height: one pixel, thin, smaller than the crop, about as large, and larger."""

SHARE_OFF = 0.012
"""Most values that the fast resize may give off by one: measured 0.1 to 0.7 %, by picture and size."""

RARE = 1e-5
"""Share of values off by two, in pictures so smooth that neighbours are rounded alike: measured 1e-6."""


def processor(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}ImageProcessorPil")(**settings)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def photo(width: int, height: int, seed: int = 0, grain: float = 5.0) -> Image.Image:
    """Waves of a few colours with grain."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    lengths = draw.uniform(8, 90, (3, 2))
    waves = np.stack([np.sin(x / long + i) * np.cos(y / high + i) for i, (long, high) in enumerate(lengths)], -1)
    return Image.fromarray((128 + 110 * waves + draw.normal(0, grain, waves.shape)).clip(0, 255).astype(np.uint8))


def stock(reader: Any, image: Image.Image) -> torch.Tensor:
    made: torch.Tensor = reader(images=image, return_tensors="pt")["pixel_values"][0]
    return made


def table_of(reader: Any) -> PixelTable:
    table = pixel_table(reader)
    assert table is not None
    return table


@pytest.mark.parametrize("name", PLAIN)
def test_the_table_gives_the_very_pixels(name: str) -> None:
    reader = processor(name)
    for width, height in SIZES:
        image = noise(width, height)
        assert torch.equal(table_of(reader)(image), stock(reader, image)), (width, height)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_images_of_every_mode_come_out_equal(mode: str) -> None:
    image = noise(60, 80, mode)
    assert torch.equal(table_of(processor("CLIP"))(image), stock(processor("CLIP"), image))
    assert not table_of(processor("ViT")).takes(image), "it does not turn images into RGB"
    assert encode_pixels(SimpleNamespace(image_processor=processor("ViT")), image) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_resize": False},
        {"do_center_crop": False},
        {"crop_size": {"height": 31, "width": 64}, "size": {"shortest_edge": 40}},
        {"crop_size": {"height": 99, "width": 17}, "size": {"shortest_edge": 24}},
        {"size": {"height": 20, "width": 50}, "resample": 1},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [0.3, 0.7, 1.1]},
    ],
    ids=lambda one: ",".join(one),
)
def test_settings_are_followed(settings: dict[str, Any]) -> None:
    reader = processor("CLIP", **settings)
    for size in ((60, 41), (41, 60), (17, 300)):
        assert torch.equal(table_of(reader)(noise(*size)), stock(reader, noise(*size))), size


def test_another_mean_gives_other_pixels_and_a_changed_setting_another_table() -> None:
    reader, image = processor("CLIP"), noise(50, 50)
    before = table_of(reader)
    assert table_of(reader) is before, "it is made once"
    reader.image_mean = [0.5, 0.5, 0.5]
    assert not torch.equal(table_of(reader)(image), before(image))
    assert torch.equal(table_of(reader)(image), stock(reader, image))


class _Darker(transformers.CLIPImageProcessorPil):
    def rescale(self, image: np.ndarray, scale: float, **options: Any) -> np.ndarray:
        return super().rescale(image, scale / 2, **options)


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_more_has_no_table(name: str) -> None:
    assert pixel_table(processor(name)) is None


def test_what_is_not_known_has_no_table() -> None:
    assert pixel_table(_Darker()) is None, "a method of its own"
    assert pixel_table(processor("CLIP", do_pad=True, pad_size={"height": 300, "width": 300})) is None
    assert pixel_table(processor("ViT", size={"shortest_edge": 20, "longest_edge": 30})) is None
    assert pixel_table(SimpleNamespace(size={"height": 3, "width": 3})) is None
    image = noise(40, 30)
    encoded = encode_media(SimpleNamespace(image_processor=_Darker()), image)
    assert torch.equal(encoded["pixel_values"], stock(_Darker(), image)), "then the image processor itself is asked"


def test_bytes_expand_to_the_same_floats_alone_and_in_batches() -> None:
    holder = SimpleNamespace(image_processor=processor("CLIP"))
    images = [noise(60 + side, 70) for side in range(3)]
    encoded = [encode_pixels(holder, image) for image in images]
    pixels = torch.stack([one["pixel_values"] for one in encoded if one is not None])
    assert pixels.dtype == torch.uint8
    batch = expand_pixels(holder, {"pixel_values": pixels, "input_ids": torch.ones(3)})
    wanted = torch.stack([stock(holder.image_processor, image) for image in images])
    assert torch.equal(batch["pixel_values"], wanted) and "input_ids" in batch
    assert torch.equal(expand_pixels(holder, {"pixel_values": pixels[1]})["pixel_values"], wanted[1])
    by_five = pixels.transpose(0, 1).contiguous().transpose(0, 1)[None]
    assert torch.equal(expand_pixels(holder, {"pixel_values": by_five})["pixel_values"], wanted[None])
    assert expand_pixels(holder, batch)["pixel_values"] is batch["pixel_values"], "floats stay"
    assert expand_pixels(holder, {"input_ids": pixels}) == {"input_ids": pixels}
    assert expand_pixels(holder, {"pixel_values": pixels[:0]})["pixel_values"].shape == (0, 3, 224, 224)


@pytest.mark.parametrize("name", PLAIN)
def test_looking_up_and_arithmetic_give_the_same_floats(name: str) -> None:
    table, pixels = table_of(processor(name)), torch.arange(3 * 256).view(3, 16, 16).to(torch.uint8)
    looked_up = replace(table, arithmetic=None)
    assert torch.equal(looked_up.expand(pixels), table.values.view(3, 16, 16))
    assert torch.equal(table.expand(pixels), looked_up.expand(pixels))
    assert (table.arithmetic is None) == (name == "EfficientNet"), "it divides by the deviation twice"


# --- fast


def off(table: PixelTable, image: Image.Image) -> np.ndarray:
    """By how many grey levels the fast pixels differ."""
    fast, exact = table.resized_fast(image), table.resized(image)
    assert fast.dtype == torch.uint8 and fast.shape == exact.shape
    return (fast.int() - exact.int()).abs().numpy()


@pytest.mark.parametrize("name", ["CLIP", "Siglip", "ViT"])
def test_fast_pixels_are_within_one_grey_level(name: str) -> None:
    table = table_of(processor(name))
    dots = Image.fromarray((np.asarray(noise(700, 900)) // 128 * 255).astype(np.uint8))
    tall, wide = noise(460, 1300), noise(1200, 470)  # squashed to a square, Pillow takes the rows of a tall one first
    for image in (photo(640, 480), photo(481, 641), photo(1000, 750), noise(1201, 900), dots, tall, wide):
        levels = off(table, image)
        assert levels.max() == 1, image.size
        assert 0 < (levels > 0).mean() < SHARE_OFF, image.size


def test_of_the_smoothest_pictures_hardly_a_value_is_off_by_two() -> None:
    table = table_of(processor("CLIP", size={"shortest_edge": 150}, crop_size={"height": 150, "width": 150}))
    levels = [off(table, photo(320 + 7 * seed, 410 - 5 * seed, seed, grain=0.0)) for seed in range(20)]
    assert max(one.max() for one in levels) <= 2
    assert np.mean([(one > 1).mean() for one in levels]) < RARE


def test_what_shrinks_by_less_or_grows_is_resized_exactly() -> None:
    table = table_of(processor("CLIP"))
    for size in ((1, 1), (60, 41), (225, 225), (500, 375), (447, 900), (900, 447)):
        assert not off(table, noise(*size)).any(), size
    assert off(table, noise(448, 448)).any()


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin")
    tiny_folder("clip", folder)
    return folder


def test_the_recipe_says_which(twin: Path) -> None:
    image = noise(200, 150)
    exact, fast = (load(Section(id=str(twin), image_processing=how)) for how in ("exact", "fast"))
    seen = [one.family.encode_media(one.processor, image)["pixel_values"] for one in (exact, fast)]
    assert torch.equal(seen[0], stock(exact.processor.image_processor, image))
    grey = float(pixel_table(exact.processor.image_processor).values.diff(dim=1).max())  # type: ignore[union-attr]
    assert 0 < (seen[0] - seen[1]).abs().max() <= grey * 1.001
    target = Target("model", exact.section)
    assert model_identity(exact, target) != model_identity(fast, target)


def test_a_saved_processor_brings_no_choice_along(twin: Path, tmp_path: Path) -> None:
    fast = load(Section(id=str(twin), image_processing="fast"))
    fast.model.save_pretrained(tmp_path)  # type: ignore[operator]
    fast.processor.save_pretrained(tmp_path)
    again, image = load(Section(id=str(tmp_path))), noise(200, 150)
    seen = again.family.encode_media(again.processor, image)["pixel_values"]
    assert torch.equal(seen, stock(again.processor.image_processor, image))


def test_fast_is_refused_where_images_are_made_otherwise(tmp_path: Path) -> None:
    tiny_folder("chat", tmp_path / "chat", model_type="llava")
    tiny_folder("vilt", tmp_path / "vilt")
    tiny_folder("clip", tmp_path / "lanczos")
    file = tmp_path / "lanczos" / "preprocessor_config.json"
    file = file if file.is_file() else file.with_name("processor_config.json")
    assert '"resample": 3' in (text := file.read_text())
    file.write_text(text.replace('"resample": 3', '"resample": 1'))
    for name, reason in (("chat", "in one call"), ("vilt", "does more"), ("lanczos", "a filter that torch")):
        load_processor(Section(id=str(tmp_path / name)))
        with pytest.raises(BackboneError, match=reason):
            load_processor(Section(id=str(tmp_path / name), image_processing="fast"))
