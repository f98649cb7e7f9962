"""Text about images that are not read: what the image processor made of them once is enough.

A processor writes as many image tokens as an image will have states, and knows that from what its image processor
made: the size of its pixels, the number of its tiles, a few small tensors. Where the states of the images are kept
already, these are kept beside them, and the same text is written again without opening an image.

    with noting(processor) as beside:
        encoded = family.encode_turns(processor, turns, images)
    ...
    with remembering(processor, beside):
        again = without_pixels(family.encode_turns(processor, turns, stand_ins(len(images))))

Both put something in the place of the processor's image processor, for the block alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PIXELS = "pixel_"
"""What the large values of an image processor begin with: of these the shape alone is kept."""

SHAPE, LISTED = "shape.", "list."
"""Put before the names of what is kept otherwise than as it was: the shape of it, or a list as a tensor."""


@contextmanager
def noting(processor: Any) -> "Iterator[dict[str, Tensor]]":
    """In this block the image processor's results are noted, in the dict that is given: small int64 tensors.

    The dict stays empty where no image is encoded.
    """
    beside: dict[str, Tensor] = {}

    def note(reader: Any, *args: Any, **options: Any) -> Any:
        made = reader(*args, **options)
        beside.update(_noted(made))
        return made

    with _in_place(processor, note):
        yield beside


@contextmanager
def remembering(processor: Any, beside: "Mapping[str, Tensor]") -> Iterator[None]:
    """In this block every image is taken for the one that was noted; none is looked at.

    Args:
        beside: what ``noting`` gave for the same images, in the same order.
    """
    from transformers.feature_extraction_utils import BatchFeature

    def recall(reader: Any, *args: Any, **options: Any) -> Any:
        return BatchFeature(_recalled(beside))

    with _in_place(processor, recall):
        yield


def stand_ins(count: int) -> "list[Image]":
    """As many images of one pixel, for where images are asked for and not looked at."""
    from PIL import Image

    return [Image.new("RGB", (1, 1)) for _ in range(count)]


def without_pixels(encoded: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """An encoded sample without what was large, of which ``remembering`` gives the shape alone."""
    return {name: value for name, value in encoded.items() if not name.startswith(PIXELS)}


@contextmanager
def _in_place(processor: Any, answer: Any) -> Iterator[None]:
    reader = processor.image_processor
    processor.image_processor = _StandIn(reader, answer)
    try:
        yield
    finally:
        processor.image_processor = reader


class _StandIn:
    """An image processor whose settings are those of another, and whose answers come from a function."""

    def __init__(self, reader: Any, answer: Any) -> None:
        self._reader, self._answer = reader, answer

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._answer(self._reader, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def _noted(made: "Mapping[str, Any]") -> "dict[str, Tensor]":
    import torch

    beside = {}
    for name, value in made.items():
        if name.startswith(PIXELS):
            shape = value.shape if hasattr(value, "shape") else (len(value), *value[0].shape)
            beside[SHAPE + name] = torch.tensor(list(shape))
        elif isinstance(value, torch.Tensor):
            beside[name] = value.clone()
        else:
            beside[LISTED + name] = torch.tensor(value)
    return beside


def _recalled(beside: "Mapping[str, Tensor]") -> dict[str, Any]:
    """What the image processor made, with zeros that take no memory for what was large."""
    import torch

    made: dict[str, Any] = {}
    for name, value in beside.items():
        if name.startswith(SHAPE):
            made[name.removeprefix(SHAPE)] = torch.zeros(()).expand(value.tolist())
        elif name.startswith(LISTED):
            made[name.removeprefix(LISTED)] = value.tolist()
        else:
            made[name] = value.clone()
    return made
