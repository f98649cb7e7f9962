"""Models that hold a conversation about images: one family for all that transformers calls image-text-to-text.

An image tower, a connector that turns what it sees into tokens, a language model. The processor of each writes the
conversation (its chat template) and leaves room for the images; nothing of that is repeated here. Where a model differs
from the others, its record in ``_chat_table`` says so.

Two take a prompt instead of a conversation (``_chat_prompts``): PaliGemma, and Florence-2, which is the one encoder-
decoder among them.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485 (visual instruction tuning); transformers
``AutoModelForImageTextToText``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _chat_prompts as prompts
from mmtune.backbones import _chat_spans as spans
from mmtune.backbones import _chat_tokens as tokens
from mmtune.backbones._chat_batches import generate, pad, token_states
from mmtune.backbones._chat_processor import load_processor, notes
from mmtune.backbones._chat_refused import REFUSED
from mmtune.backbones._chat_table import MODELS, find_model, idle_modules, layer_paths, num_layers
from mmtune.backbones._family import Family
from mmtune.backbones._image_side import IMAGE_PARTS, SIDES
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from mmtune.ground.records import Turn

__all__ = [
    "FAMILY",
    "check",
    "encode_prompt",
    "encode_turns",
    "family_for",
    "generate",
    "image_tokens",
    "load_processor",
    "notes",
    "num_layers",
    "pad",
    "text_limit",
    "tiny",
    "token_states",
]

FAMILY = Family(
    name="chat",
    model_types=tuple(name for name, model in MODELS.items() if model.tested),
    other_types=(*(name for name, model in MODELS.items() if not model.tested), *REFUSED),
    abilities=frozenset({"generate"}),
    parts={"vision": "model.vision_tower", "connector": "model.multi_modal_projector", "text": "model.language_model"},
    layers={"vision": "model.vision_tower.encoder.layers", "text": "model.language_model.layers"},
    heads={"vision": (), "connector": (), "text": ("lm_head",)},
    full_precision=("lm_head", "model.multi_modal_projector"),
    temperature=(),
    processor_classes={name: model.processor for name, model in MODELS.items()},
    auto_class="AutoModelForImageTextToText",
    ignored_weights=(r".*\.position_ids", r".*\.rotary_emb\.inv_freq"),
    head="lm_head",
    whole_processor=True,
    caption_prompt="Describe the image.",
)
"""As it is for LLaVA; ``family_for`` gives it for each of the others. ``other_types`` are built alike, but no test
holds a twin of them; or they are refused, and it is said why."""


def family_for(config: Mapping[str, Any]) -> Family:
    """The record for the model type that config.json names.

    Raises:
        BackboneError: it holds no conversation.
    """
    model = find_model(config)
    made_of = {"connector": model.connector_made_of} if model.connector_made_of else {}
    linear = {} if made_of else {"connector": re.escape(model.connector) + r"\..*"}
    linear |= {"text": model.bare_mlp} if model.bare_mlp else {}
    return replace(
        FAMILY,
        parts={"vision": model.vision, "connector": model.connector, "text": model.text},
        layers=layer_paths(config),
        full_precision=("lm_head", model.connector, *model.kept),
        targets={"mlp": linear} if linear else {},
        made_of=made_of,
        idle=idle_modules(config),
        unquantizable=model.unquantizable,
        image_words=model.image_words,
        shifted_labels=model.shifted_labels,
        caption_prompt=model.caption_prompt,
        image_side=IMAGE_PARTS if config["model_type"] in SIDES else (),
    )


def text_limit(config: Any) -> int:
    """Longest conversation in tokens, images included: positions of the language model."""
    return int(config.get_text_config().max_position_embeddings)


def encode_turns(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """A whole conversation, the last turn the assistant's, with labels at all that the assistant says.

    Args:
        turns: pieces of text, and references where the images stand.
        images: the images themselves, in that order.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` int64[L] (-100: not learned) and what else the model takes.

    Raises:
        DataError: more or fewer places for images in the text than images, an empty answer, too many tokens, or a
            conversation that the model has no form for. Nothing is ever cut.
    """
    _check_words(processor, turns, images)
    if prompts.takes_prompts(processor):
        return prompts.encode_prompted(processor, turns, images, answered=True)
    return tokens.encode_pieces(processor, spans.conversation_pieces(processor, turns), images)


def encode_prompt(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """As ``encode_turns`` for turns that end with the user's, without labels: what generation starts from."""
    _check_words(processor, turns, images)
    if prompts.takes_prompts(processor):
        return prompts.encode_prompted(processor, turns, images, answered=False)
    encoded = tokens.encode_pieces(processor, spans.prompt_pieces(processor, turns), images)
    return {key: value for key, value in encoded.items() if key != "labels"}


def _check_words(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> None:
    """No words stand for an image (those were taken out where the data was read), and none for the end of a turn."""
    from mmtune.ground.errors import DataError

    places = sum(len(turn.media) for turn in turns)
    for word in dict.fromkeys(("<image>", processor.image_token)):
        if written := sum(turn.text.count(word) for turn in turns):
            raise DataError(tokens.places_problem(word, places + written, len(images)))
    if places != len(images):
        raise DataError(f"the turns name {places} images, and there are {len(images)}")
    tokenizer = processor.tokenizer
    marks = {tokenizer.bos_token, tokenizer.eos_token}
    marks |= set() if prompts.takes_prompts(processor) else {spans.end_of_turn(processor)}
    for mark in sorted(mark for mark in marks if mark):
        if said := [str(place) for place, turn in enumerate(turns, start=1) if mark in turn.text]:
            raise DataError(
                f"turn {', '.join(said)} has {mark} in its words, which the model reads as where a turn begins or "
                "ends; is the text rendered by a chat template already?"
            )


def image_tokens(processor: Any, encoded: "Mapping[str, Tensor]") -> "Tensor":
    """bool[L]: which of ``input_ids`` stand for pictures."""
    return encoded["input_ids"] == tokens.image_token_id(processor)


def check(model: "nn.Module", processor: Any) -> None:
    """See that processor and model belong together, and that conversations can be written.

    Raises:
        BackboneError: there is no chat template, a tokenizer without character offsets, ids that the model has no
            embedding for, or another id for images.
    """
    tokenizer = processor.tokenizer
    problems = []
    if not prompts.takes_prompts(processor) and spans.chat_template(processor) is None:
        problems.append(
            "it has no chat template, so how it was taught to read conversations is not known: it may be a base "
            "model; take its instruct or chat version, or put the right chat_template.jinja into a copy of its folder"
        )
    elif not prompts.takes_prompts(processor) and (problem := _template_problem(processor)):
        problems.append(f"its chat template cannot write a question about an image and its answer: {problem}")
    embeddings = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if (largest := max(tokenizer.get_vocab().values())) >= embeddings:
        problems.append(f"the tokenizer has ids up to {largest}, the model embeddings for {embeddings} alone")
    problems += _id_problems(model.config, tokens.image_token_id(processor), tokenizer.eos_token_id)
    if problems:
        raise BackboneError("; ".join(problems))


def _template_problem(processor: Any) -> str | None:
    """Why the template does not do for the plainest conversation; many tokenizers bring one for text alone."""
    from mmtune.ground.errors import DataError
    from mmtune.ground.records import NoMedia, Turn

    asked = Turn("user", (NoMedia("image", "nowhere"), "What is it?"))
    try:
        pieces = spans.conversation_pieces(processor, (asked, Turn("assistant", ("a dog",))))
    except DataError as error:
        return str(error)
    places = sum(piece.text.count(processor.image_token) for piece in pieces)
    return None if places == 1 else tokens.places_problem(processor.image_token, places, 1)


def _id_problems(config: Any, image: int, end: int | None) -> list[str]:
    """Ids that model and processor must agree on; an encoder-decoder begins an answer with the end of the last text."""
    wanted = getattr(config, "image_token_id", None)
    wanted = getattr(config, "image_token_index", None) if wanted is None else wanted
    problems = []
    if wanted not in (None, image):
        problems.append(f"the processor marks images with id {image}, the model looks for {wanted}")
    start = config.get_text_config().decoder_start_token_id if config.is_encoder_decoder else end
    if start != end:
        problems.append(f"the decoder begins with id {start}, and the tokenizer's end of text is {end}")
    return [f"{one}: they do not belong together" for one in problems]


def tiny(model_type: str = "llava") -> "tuple[nn.Module, Any]":
    """A model of width 32 with two layers per part, its own processor class and a tokenizer of a few hundred words.

    Raises:
        BackboneError: there is no twin of that model type.
    """
    from mmtune.backbones._chat_twins import TWINS, tiny_chat

    if model_type not in TWINS:
        raise BackboneError(f"there is no tiny twin of model type {model_type!r}; there are {', '.join(TWINS)}")
    return tiny_chat(model_type)
