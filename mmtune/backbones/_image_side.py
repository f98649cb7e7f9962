"""The image side of a generating model: all that its images become before its language model reads them.

Image tower and connector (of BLIP-2 the Q-Former too) give one state per image token. Where all of them are frozen, an
image has the same states each time, and a model can be given those instead of the pixels. transformers takes them as
``mm_encoder_outputs``, in the forward pass and when it generates; where a class does not, they are put among the
embeddings of the words, as the class itself would do it.

What belongs to a sample is told by its image tokens: there are as many as it has states, whatever an image was cut
into, in the order of the text.

Letters: B samples, L tokens, N states of one sample, D width of the language model, K layers that Qwen3-VL's image
tower hands on beside its output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGE_PARTS = ("vision", "connector")
"""The parts of most image sides."""


@dataclass(frozen=True)
class ImageSide:
    """How one model type reads its images.

    Attributes:
        inputs: the inputs that its image side takes.
        kept: those of them that the rest of the model needs as well.
        stacked: whether it has the states as float[n, N, D] and not as a list of float[N, D].
        deep: whether its image tower hands on the states of some of its layers too.
        placed: when the states go in among the embeddings of the words: ``in forward``, ``in generate``, "" never.
    """

    inputs: tuple[str, ...] = ("pixel_values",)
    kept: tuple[str, ...] = ()
    stacked: bool = False
    deep: bool = False
    placed: str = ""


_GRID = ("pixel_values", "image_grid_thw")
_STACKED = ImageSide(stacked=True)

SIDES: dict[str, ImageSide] = {
    "llava": ImageSide(("pixel_values", "image_sizes")),
    "llava_next": ImageSide(("pixel_values", "image_sizes")),
    "llava_onevision": ImageSide(("pixel_values", "image_sizes", "batch_num_images")),
    "qwen2_vl": ImageSide(_GRID, kept=("image_grid_thw",)),
    "qwen2_5_vl": ImageSide(_GRID, kept=("image_grid_thw",)),
    "qwen3_vl": ImageSide(_GRID, kept=("image_grid_thw",), deep=True),
    "idefics3": ImageSide(("pixel_values", "pixel_attention_mask")),
    "smolvlm": ImageSide(("pixel_values", "pixel_attention_mask")),
    "paligemma": _STACKED,
    "gemma3": _STACKED,
    "internvl": _STACKED,
    "florence2": ImageSide(stacked=True, placed="in forward"),
    "blip-2": ImageSide(stacked=True, placed="in generate"),
}
"""Model type -> how it reads images; those that a test holds a twin of.

Qwen's models place their tokens by ``image_grid_thw``. Florence-2's forward pass and BLIP-2's ``generate`` are the two
that take no ``mm_encoder_outputs``. InstructBLIP is not here: its Q-Former reads the question with the image.
"""


def dropped_inputs(model_type: str) -> tuple[str, ...]:
    """The inputs that a model does not need where it is given states."""
    side = SIDES[model_type]
    return tuple(name for name in side.inputs if name not in side.kept)


def num_states(model: "nn.Module", input_ids: "Tensor") -> list[int]:
    """How many states the images of each sample have: its image tokens in ``input_ids`` int64[B, L]."""
    counts: list[int] = (input_ids == model.config.image_token_id).sum(1).tolist()  # type: ignore[union-attr]
    return counts


def image_side_states(model: "nn.Module", inputs: "Mapping[str, Tensor]", counts: Sequence[int]) -> "list[Tensor]":
    """What the image side makes of images, without gradients.

    Args:
        model: whose ``model_type`` is one of ``SIDES``.
        inputs: a padded batch with at least one image, of which its image side's inputs are read.
        counts: states of each of the batch's samples (``num_states``), 0 for one without images.

    Returns:
        float[N, D] of each sample, all its images one after the other; of Qwen3-VL float[N, D * (1 + K)], the layers
        that its tower hands on behind its output. Each has its own memory: kept, it keeps no batch alive.
    """
    import torch

    side = SIDES[_model_type(model)]
    given = {name: inputs[name] for name in side.inputs if name in inputs}
    encoder: Any = getattr(model, "model", model)
    with torch.no_grad():
        made = encoder.get_image_features(**given, return_dict=True)
        joined = [_joined(made.pooler_output)]
        joined += [_joined(one) for one in made.deepstack_features] if side.deep else []
        states = joined[0] if len(joined) == 1 else torch.cat(joined, dim=-1)
    return [one.clone() for one in states.split(list(counts))]


def given_image_side(
    model: "nn.Module", inputs: "Mapping[str, Any]", states: "Sequence[Tensor]", *, generating: bool = False
) -> dict[str, Any]:
    """The inputs of a model that is given states instead of images.

    Args:
        inputs: a padded batch; what stands for images in it is left out.
        states: of each sample in order, as ``image_side_states`` gives them; those without images may be left out.
        generating: whether they are for the family's ``generate``, not for a forward pass.

    Returns:
        For one call alone: transformers changes what it is given. Without any state, the words alone.
    """
    import torch

    side = SIDES[_model_type(model)]
    words = {name: value for name, value in inputs.items() if name not in dropped_inputs(_model_type(model))}
    shown = [one for one in states if len(one)]
    if not shown:
        return words
    if side.placed == ("in generate" if generating else "in forward"):
        return _placed(model, words, torch.cat(shown))
    pixels = {} if side.placed != "in generate" else {"pixel_values": None}  # BLIP-2's forward pass wants the word
    return {**words, **pixels, "mm_encoder_outputs": {"image": _output(side, model, shown)}}


def _model_type(model: Any) -> str:
    return str(model.config.model_type)


def _joined(states: "Tensor | Sequence[Tensor]") -> "Tensor":
    """float[n, D] of states that stand in a list or in a tensor of three dimensions."""
    import torch

    return states.flatten(0, 1) if isinstance(states, torch.Tensor) else torch.cat(list(states))


def _placed(model: Any, words: dict[str, Any], states: "Tensor") -> dict[str, Any]:
    """The words' embeddings with the states at the places of the image; a decoder alone goes on from ``input_ids``."""
    ids = words["input_ids"]
    embedded = model.get_input_embeddings()(ids)
    places = (ids == model.config.image_token_id).unsqueeze(-1)
    embedded = embedded.masked_scatter(places, states.to(embedded.device, embedded.dtype))
    encodes = getattr(model, "language_model", model).config.is_encoder_decoder
    kept = {name: value for name, value in words.items() if name != "input_ids" or not encodes}
    return {**kept, "inputs_embeds": embedded}


def _output(side: ImageSide, model: Any, states: "list[Tensor]") -> Any:
    """The output object that the encoder would have given; beam search counts the entries of its states."""
    from math import gcd

    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if side.stacked:  # in pieces of one length, none of which lies in two samples
        length = gcd(*(len(one) for one in states))
        stacked = torch.cat(states).unflatten(0, (-1, length))
        output = BaseModelOutputWithPooling(pooler_output=stacked)
        output.vision_outputs = output.qformer_outputs = None  # BLIP-2 hands them on
        return output
    if not side.deep:
        return BaseModelOutputWithPooling(pooler_output=states)
    return _deep_output(model, states)


def _deep_output(model: Any, states: "list[Tensor]") -> Any:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    width = model.get_input_embeddings().embedding_dim
    layers = [one.split(width, dim=-1) for one in states]
    deep = [[one[layer] for one in layers] for layer in range(1, len(layers[0]))]
    return BaseModelOutputWithDeepstackFeatures(pooler_output=[one[0] for one in layers], deepstack_features=deep)
