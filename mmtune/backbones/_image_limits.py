"""How large the image processor makes images, where a recipe says it: fewer pixels are fewer image tokens."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones._family import Family

if TYPE_CHECKING:
    from PIL.Image import Image


def limit_problem(limits: Mapping[str, int] | None, family: Family) -> str | None:
    """What is wrong with ``backbone.image`` for a family, None where nothing is."""
    unknown = [word for word in limits or {} if word not in family.image_words]
    if unknown and not family.image_words:
        return f"image: {', '.join(unknown)}: this model takes images of one size alone; write null"
    if unknown:
        return f"image: this model has no {', '.join(unknown)}; it has {', '.join(family.image_words)}"
    return None


def limit_images(processor: Any, limits: Mapping[str, int] | None, family: Family) -> None:
    """Give the image processor the recipe's limits, in place.

    Raises:
        ValueError: a smallest size that is larger than the largest.
    """
    for word, value in (limits or {}).items():
        owner, _, inner = family.image_words[word].partition(".")
        if inner:
            setattr(processor.image_processor, owner, {**dict(getattr(processor.image_processor, owner)), inner: value})
        else:
            setattr(processor.image_processor, owner, value)
    if limits:
        _check_order(processor.image_processor, family)


def _check_order(image_processor: Any, family: Family) -> None:
    for low, path in family.image_words.items():
        high = low.replace("min_", "max_")
        if high == low or high not in family.image_words:
            continue
        least, most = (_read(image_processor, one) for one in (path, family.image_words[high]))
        if least is not None and most is not None and least > most:
            raise ValueError(f"{low} is {least}, and {high} is {most}: write backbone.image so that they fit")


def _read(image_processor: Any, path: str) -> int | None:
    owner, _, inner = path.partition(".")
    value = getattr(image_processor, owner, None)
    value = dict(value or {}).get(inner) if inner else value
    return None if value is None else int(value)


def shrink(processor: Any, images: "Sequence[Image]") -> "list[Image]":
    """Images no longer than the ``shrunk_to`` pixels that a limit gave the image processor, else as they are."""
    edge = getattr(processor.image_processor, "shrunk_to", None)
    if edge is None:
        return list(images)
    return [one if max(one.size) <= edge else _smaller(one, edge) for one in images]


def _smaller(image: "Image", edge: int) -> "Image":
    from PIL.Image import Resampling

    width, height = (max(1, round(side * edge / max(image.size))) for side in image.size)
    return image.resize((width, height), Resampling.BICUBIC)
