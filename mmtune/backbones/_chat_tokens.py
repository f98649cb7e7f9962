"""Pieces of a conversation as tokens with labels, the places of images written out by the processor.

Tokens are cut where the pieces are: one that would lie across the border between prompt and answer is made two, so
that what is learned begins after exactly the tokens that generation starts from.

Letters: L tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones._chat_spans import Piece
from mmtune.backbones._image_limits import shrink
from mmtune.ground.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MASKED = -100
"""Label of a token that is not learned, as transformers' losses have it."""


def encode_pieces(processor: Any, pieces: list[Piece], images: "Sequence[Image]") -> "dict[str, Tensor]":
    """The pieces as the processor makes them, image tokens expanded.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` int64[L] (and the model's other rows of L), and what the images
        became, with the dimensions that the processor gives for one sample.

    Raises:
        DataError: the text has more or fewer places for images than there are images, or is too long.
    """
    text = "".join(piece.text for piece in pieces)
    _check_places(processor, text, len(images))
    bos = processor.tokenizer.bos_token
    options = {"add_special_tokens": bos is None or not text.startswith(bos), "verbose": False}
    made = _call(processor, text, images, options)
    replaced = made.pop("text_replacement_offsets", None)
    expanded = _expand(pieces, replaced[0] if images and replaced else [])
    ids, said = _split_tokens(processor.tokenizer, expanded, options)
    _check_images(processor, made["input_ids"][0].tolist(), ids)
    encoded = _rows(made, ids)
    check_length(processor, encoded["input_ids"], said)
    learned = encoded["input_ids"].new_tensor(said).bool()
    return {**encoded, "labels": encoded["input_ids"].masked_fill(~learned, MASKED)}


def _check_places(processor: Any, text: str, num_images: int) -> None:
    token = processor.image_token
    if (places := text.count(token)) != num_images:
        raise DataError(places_problem(token, places, num_images))


def places_problem(token: str, places: int, num_images: int) -> str:
    """The message for a text with more or fewer places for images than there are images."""
    if places > num_images:
        return f"there are {places} places for images ({token}) in the text and {num_images} images"
    return f"there are {num_images} images and {places} places for them ({token}): the template left some out"


def _call(processor: Any, text: str, images: "Sequence[Image]", options: dict[str, Any]) -> dict[str, Any]:
    """Raises: DataError: the processor refuses an image, such as one that is too long and thin."""
    try:
        return dict(
            processor(
                text=[text],
                images=shrink(processor, images) or None,
                return_tensors="pt",
                return_text_replacement_offsets=True,
                **options,
            )
        )
    except ValueError as error:
        raise DataError(f"{type(processor).__name__} refuses the sample: {error}") from error


def _check_images(processor: Any, stock: list[int], ids: list[int]) -> None:
    """Raises: DataError: the processor writes images in a way of its own, and the pieces have others than it made."""
    image = image_token_id(processor)
    if stock.count(image) != ids.count(image):
        raise DataError(f"{type(processor).__name__} writes images into the text in a way that is not known here")


def _expand(pieces: list[Piece], replaced: list[dict[str, Any]]) -> list[Piece]:
    """The pieces with every place for an image written out as the processor did."""
    expanded, start = [], 0
    for piece in pieces:
        text, end = piece.text, start + len(piece.text)
        own = [one for one in replaced if start <= one["span"][0] < end]
        for one in reversed(own):
            first, last = (place - start for place in one["span"])
            text = text[:first] + one["replacement"] + text[last:]
        expanded.append(Piece(text, piece.said))
        start = end
    return expanded


def _split_tokens(tokenizer: Any, pieces: list[Piece], options: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Token ids of the whole text, and which of them are said; no token lies across the border of two pieces."""
    ids: list[int] = []
    said: list[bool] = []
    text = ""
    for piece in pieces:
        text += piece.text
        longer = tokenizer(text, **options)["input_ids"]
        if longer[: len(ids)] != ids:
            longer = ids + _tokens_within(tokenizer, piece.text)
        said += [piece.said] * (len(longer) - len(ids))
        ids = longer
    return ids, said


def _tokens_within(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text that stands inside another: behind a special token, where nothing is merged or put before."""
    anchor = tokenizer.eos_token
    return list(tokenizer(anchor + text, add_special_tokens=False, verbose=False)["input_ids"][1:])


def _rows(made: dict[str, Any], ids: list[int]) -> "dict[str, Tensor]":
    """What the processor made, its rows of L tokens without the dimension of samples and for exactly these tokens."""
    import torch

    old, new = made.pop("input_ids")[0], torch.tensor(ids)
    rows = {"input_ids": new, "attention_mask": torch.ones_like(new)}
    made.pop("attention_mask", None)
    for key in [key for key in made if key.endswith("token_type_ids")]:
        kinds = made.pop(key)[0]  # of pictures and text: the same at every place of a token
        marked = old[kinds != 0]
        rows[key] = torch.isin(new, marked).to(kinds.dtype) * (kinds.max() if len(marked) else 1)
    return {**rows, **made}


def check_length(processor: Any, ids: "Tensor", said: list[bool]) -> None:
    """Nothing is ever cut.

    Raises:
        DataError: more tokens than the model reads.
    """
    limit = processor.tokenizer.model_max_length
    if len(ids) <= limit:
        return
    num_images = int((ids == image_token_id(processor)).sum())
    raise DataError(
        f"{len(ids)} tokens ({num_images} of images, {sum(said)} to be learned), and the model reads {limit}: "
        "shorten the text, or show fewer or smaller images (backbone.image)"
    )


def image_token_id(processor: Any) -> int:
    """The id that stands for a piece of an image in ``input_ids``."""
    tokenizer = processor.tokenizer
    if type(processor).__name__ == "Gemma3Processor":  # its own image_token_id is what marks the place, not the image
        return int(tokenizer.image_token_id)
    return int(processor.image_token_id)
