"""From an image to the pixels that a model takes, faster than the image processor and equal to it.

Most image processors resize, cut out the middle, rescale and normalise. Up to the cut a pixel is three bytes, so what
rescaling and normalising make of it is a function of channel and byte: a table of 3 x 256 floats, which the image
processor itself fills in. Looking bytes up gives its very floats, and bytes take a quarter of the room until then.

Letters: C = 3 channels, H/W height, width, B images.
"""

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmtune.backbones._fast_resize import FILTERS, is_within_a_level, resize_fast
from mmtune.backbones._pillow_resize import resize
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from mmtune.backbones._family import Description

OWN_METHODS = {"EfficientNetImageProcessorPil": {"rescale", "_preprocess"}}
"""Classes with methods of their own that leave the order of the steps and the geometry as they are."""

GEOMETRY = ("do_resize", "size", "resample", "reducing_gap", "do_center_crop", "crop_size", "do_pad", "do_convert_rgb")
VALUES = ("do_rescale", "rescale_factor", "rescale_offset", "do_normalize", "image_mean", "image_std", "include_top")


@dataclass(frozen=True)
class PixelTable:
    """What a plain image processor does, with a table in the place of its arithmetic.

    Attributes:
        values: float32[C, 256], what becomes of each byte.
        size: height and width to resize to, or of the short side alone; None: images keep their size.
        crop: height and width of the middle that is cut out; None: nothing is cut.
        resample: Pillow's number of the filter.
        converts: whether it turns images of any mode into RGB.
        arithmetic: divisor, mean and deviation, float32[C, 1, 1] each, of which float32 arithmetic makes the very
            ``values``: on a core it is twice as quick as looking up. None: it does not.
    """

    values: "Tensor"
    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: int
    converts: bool
    arithmetic: "tuple[Tensor, Tensor, Tensor] | None" = None

    def __call__(self, image: "Image") -> "Tensor":
        """float32[C, H, W], bit for bit what the image processor gives."""
        return self.expand(self.resized(image))

    def takes(self, image: "Image") -> bool:
        """Whether the image is RGB, or is made so."""
        return self.converts or image.mode == "RGB"

    def resized(self, image: "Image") -> "Tensor":
        """uint8[C, H, W]: resized and cut as the image processor does it."""
        import numpy as np

        image = _in_rgb(image)
        height, width = self._target(image)
        if (width, height) == image.size:
            return self._framed(np.asarray(image)[self._cuts(height, width)])
        return self._framed(resize(image, height, width, self.resample, *self._cuts(height, width)))

    def resized_fast(self, image: "Image") -> "Tensor":
        """uint8[C, H, W] as ``resized``, off by one grey level in some of the values: resized by torch, where both
        sides shrink enough; else exactly ``resized``."""
        height, width = self._target(image)
        if not is_within_a_level(image, height, width, self.resample):
            return self.resized(image)
        return self._framed(resize_fast(_in_rgb(image), height, width, self.resample)[self._cuts(height, width)])

    def expand(self, pixels: "Tensor") -> "Tensor":
        """float32[..., C, H, W] of uint8[..., C, H, W], on their device."""
        import torch

        made = torch.empty(pixels.shape, device=pixels.device)
        images, places = (one.view(-1, *pixels.shape[-3:]) for one in (pixels.contiguous(), made))
        if pixels.device.type != "cpu":
            self._look_up(images, places)
            return made
        for one, place in zip(images, places, strict=True):  # one by one they stay in a core's cache
            if self.arithmetic is None:
                self._look_up(one, place)
            else:
                divisor, mean, deviation = self.arithmetic
                place.copy_(one).div_(divisor).sub_(mean).div_(deviation)
        return made

    def _look_up(self, pixels: "Tensor", made: "Tensor") -> None:
        """Fill ``made`` float32[..., C, H, W] with what the table says of ``pixels``."""
        import torch

        offsets = torch.arange(len(self.values), dtype=torch.int32, device=pixels.device).view(-1, 1, 1) * 256
        values = self.values.to(pixels.device).view(-1)
        torch.index_select(values, 0, (pixels + offsets).view(-1), out=made.view(-1))

    def _target(self, image: "Image") -> tuple[int, int]:
        """Height and width after resizing, rounded as transformers does."""
        if self.size is None:
            return image.height, image.width
        if isinstance(self.size, tuple):
            return self.size
        short, long = sorted(image.size)
        longer = int(self.size * long / short)
        return (longer, self.size) if image.width <= image.height else (self.size, longer)

    def _cuts(self, height: int, width: int) -> tuple[slice, slice]:
        """Which rows and columns of what was resized are taken: the middle, all where there are no more."""
        if self.crop is None:
            return slice(None), slice(None)
        return _middle(height, self.crop[0]), _middle(width, self.crop[1])

    def _framed(self, pixels: Any) -> "Tensor":
        """uint8[C, H, W] of uint8[H, W, C], zeros around what is too small: an odd one above, or on the left."""
        import numpy as np
        import torch

        height, width = self.crop or pixels.shape[:2]
        missing = (height - pixels.shape[0], width - pixels.shape[1])
        if any(missing):
            before = [(one + 1) // 2 for one in missing]
            frame = [(start, one - start) for start, one in zip(before, missing, strict=True)]
            pixels = np.pad(pixels, (*frame, (0, 0)))
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _middle(have: int, want: int) -> slice:
    start = max(0, (have - want) // 2)
    return slice(start, start + min(have, want))


def _in_rgb(image: "Image") -> "Image":
    """As transformers turns it into RGB, transparency on white."""
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    from PIL import Image as images
    from transformers.image_transforms import convert_to_rgb

    return images.fromarray(convert_to_rgb(image, return_numpy=True))


_TABLES: "weakref.WeakKeyDictionary[Any, tuple[list[Any], PixelTable | None]]" = weakref.WeakKeyDictionary()


def pixel_table(image_processor: Any) -> PixelTable | None:
    """The table of an image processor, made at the first call and again where its settings have changed.

    None where it is not plain: it makes tiles or patches, pads, runs elsewhere than on Pillow, or does what is not
    known here. Plain ones are tried once on made-up pictures, and must give the same.
    """
    if not _is_plain(image_processor):
        return None
    settings = [getattr(image_processor, name, None) for name in (*GEOMETRY, *VALUES)]
    if image_processor in _TABLES and _TABLES[image_processor][0] == settings:
        return _TABLES[image_processor][1]
    table = _make_table(image_processor)
    if table is not None and not _agrees(table, image_processor):
        table = None
    _TABLES[image_processor] = (copy.deepcopy(settings), table)
    return table


def _is_plain(image_processor: Any) -> bool:
    """Whether all it does is transformers' own code for resize, crop, rescale and normalise on Pillow."""
    kinds = type(image_processor).__mro__
    names = [(kind.__module__, kind.__name__) for kind in kinds]
    stock = ("transformers.image_processing_backends", "PilBackend")
    if stock not in names:
        return False
    for kind in kinds[: names.index(stock)]:
        own = {name for name, value in vars(kind).items() if hasattr(type(value), "__get__")}
        own = {name for name in own if not name.startswith("__") or name == "__call__"}
        if own - OWN_METHODS.get(kind.__name__, set()):
            return False
    return True


def _make_table(image_processor: Any) -> PixelTable | None:
    """As the settings say, or None where they ask for what is not known here."""
    size = _size(image_processor.size) if image_processor.do_resize else None
    crop = _size(image_processor.crop_size) if image_processor.do_center_crop else None
    unknown = (image_processor.do_resize and size is None) or (
        image_processor.do_center_crop and not isinstance(crop, tuple)
    )
    if unknown or getattr(image_processor, "do_pad", None):
        return None
    values = _values(image_processor)
    if values is None:
        return None
    resample = image_processor.resample
    return PixelTable(
        values=values,
        size=size,
        crop=crop if isinstance(crop, tuple) else None,
        resample=2 if resample is None else int(resample),
        converts=bool(image_processor.do_convert_rgb),
        arithmetic=_find_arithmetic(image_processor, values),
    )


def _size(size: Any) -> tuple[int, int] | int | None:
    """Height and width, or the short side, of transformers' ``SizeDict``; None where it says anything else."""
    said = {name: value for name, value in dict(size or {}).items() if value is not None}
    if set(said) == {"height", "width"}:
        return int(said["height"]), int(said["width"])
    return int(said["shortest_edge"]) if set(said) == {"shortest_edge"} else None


def _values(image_processor: Any) -> "Tensor | None":
    """float32[C, 256]: the image processor's own answer to a picture of all 256 greys."""
    import numpy as np
    import torch
    from PIL import Image

    greys = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([greys] * 3, axis=-1))
    made = image_processor(images=picture, do_resize=False, do_center_crop=False, return_tensors="pt")
    pixels = made["pixel_values"]
    if set(made) != {"pixel_values"} or pixels.shape != (1, 3, 16, 16) or pixels.dtype != torch.float32:
        return None
    return pixels[0].reshape(3, 256).clone()


def _find_arithmetic(image_processor: Any, values: "Tensor") -> "tuple[Tensor, Tensor, Tensor] | None":
    import torch

    if not (image_processor.do_rescale and image_processor.do_normalize and image_processor.rescale_factor):
        return None
    given = (1 / image_processor.rescale_factor, image_processor.image_mean, image_processor.image_std)
    divisor, mean, deviation = (torch.tensor(one, dtype=torch.float32).expand(3).view(3, 1, 1).clone() for one in given)
    made = torch.arange(256).float().expand(3, 1, 256).div(divisor).sub(mean).div(deviation)
    return (divisor, mean, deviation) if torch.equal(made.view(3, 256), values) else None


def _agrees(table: PixelTable, image_processor: Any) -> bool:
    """Whether both make the very same of two pictures, a wide and a tall one."""
    import numpy as np
    import torch
    from PIL import Image

    draw = np.random.default_rng(0)
    for height, width in ((37, 53), (61, 29)):
        picture = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        stock = image_processor(images=picture, return_tensors="pt")["pixel_values"][0]
        if not torch.equal(stock, table(picture)):
            return False
    return True


# --- what the families use


def encode_pixels(processor: Any, image: "Image") -> "dict[str, Tensor] | None":
    """``{"pixel_values": uint8[C, H, W]}``, which ``expand_pixels`` makes floats of; None: this image needs the image
    processor itself."""
    table = pixel_table(processor.image_processor)
    if table is None or not table.takes(image):
        return None
    fast = getattr(processor.image_processor, "image_processing", "exact") == "fast"
    return {"pixel_values": table.resized_fast(image) if fast else table.resized(image)}


def expand_pixels(processor: Any, batch: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The batch with ``pixel_values`` float32[..., C, H, W] where they were bytes; else as it is."""
    import torch

    pixels = batch.get("pixel_values")
    if pixels is None or pixels.dtype != torch.uint8:
        return dict(batch)
    table = pixel_table(processor.image_processor)
    assert table is not None, "bytes come from encode_pixels, which has a table"
    return {**batch, "pixel_values": table.expand(pixels)}


def set_image_processing(processor: Any, description: "Description") -> None:
    """Tell the image processor what ``backbone.image_processing`` says.

    Raises:
        BackboneError: ``fast`` for a model whose images are made in another way than this file knows.
    """
    how: Literal["exact", "fast"] = description.section.image_processing
    reader: Any = getattr(processor, "image_processor", None)
    if how == "exact":
        if hasattr(reader, "image_processing"):
            del reader.image_processing  # a saved processor may bring it along
        return
    if problem := _why_not_fast(reader, description):
        raise BackboneError(
            f"backbone {description.id!r}: image_processing: fast is for image processors that only resize, crop, "
            f"rescale and normalise, and {problem}; write exact"
        )
    reader.image_processing = how


def _why_not_fast(reader: Any, description: "Description") -> str | None:
    if reader is None:
        return "this model has none"
    if description.traits.whole_processor:
        return "this model's processor makes images and text in one call"
    table = pixel_table(reader)
    if table is None:
        return f"{type(reader).__name__} as it is set here does more"
    if table.size is not None and table.resample not in FILTERS:
        return f"{type(reader).__name__} resizes with a filter that torch does not have (resample: {table.resample})"
    return None
