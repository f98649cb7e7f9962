"""BLIP-2: a large ViT and a Q-Former, as two classes of transformers that share ``model_type: blip-2`` and few weights.

``Blip2ForConditionalGeneration`` speaks: the Q-Former turns an image into tokens that stand before the words of a
language model (OPT or T5; see ``_qformer``). ``Blip2ForImageTextRetrieval`` has a contrastive half and a matching half.

In the contrastive half the Q-Former turns an image into one vector per learned query, and reads a text at its first
token. An image is as near to a text as the nearest of its vectors, in losses, scores and rankings alike; nothing is
averaged. ``embed_media`` gives float[B, Q, D] where other families give float[B, D]. In the matching half (ITM) the
queries read image and text together, and their log odds are averaged. A task runs one of the halves; what belongs to
the other alone is then neither adapted nor trained.

For retrieval the Q-Former is one part (``qformer``) that both images and texts pass. The word embeddings and the query
tokens belong to no part and stay as they are.

As for ``blip``, the retrieval class is given a temperature at loading, from ``logit_scale_init_value`` of config.json
(where it is not there: 0.07), and a merged folder has the trained value in its config.json.

Source: Li et al. 2023, https://arxiv.org/abs/2301.12597, sections 3.1 and 3.2, and its released configurations (the
prompt ``a photo of``); transformers ``modeling_blip_2``.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _bert_text, _qformer, _qformer_records
from mmtune.backbones._bert_text import encode_text, pad, tiny_tokenizer
from mmtune.backbones._dual_encoder import encode_media, normalise, num_tokens
from mmtune.backbones._family import Description, Family
from mmtune.backbones._qformer import encode_prompt, encode_turns, generate, image_tokens
from mmtune.backbones._qformer_records import language_of
from mmtune.backbones._qformer_twins import NUM_QUERIES, TOWER, random_model, tiny_language, tiny_pictures
from mmtune.backbones._temperature import give_temperature, note_temperature
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FAMILY",
    "after_loading",
    "architecture_for",
    "before_saving",
    "check",
    "embed_media",
    "embed_text",
    "encode_media",
    "encode_prompt",
    "encode_text",
    "encode_turns",
    "family_for",
    "generate",
    "image_tokens",
    "load_processor",
    "match",
    "num_layers",
    "num_tokens",
    "pad",
    "temperature",
    "text_limit",
    "tiny",
    "tiny_for",
    "tiny_speaking",
]

_QFORMER_MLP = r"qformer\.encoder\.layer\.\d+\.(intermediate|output)(_query)?\.dense"
_OF_TEXTS = r"qformer\.encoder\.layer\.{layer}\.(intermediate|output)"
"""What texts alone pass in the Q-Former's layers."""

FAMILY = Family(
    name="blip2",
    model_types=("blip-2",),
    abilities=frozenset({"embed", "match"}),
    parts={"vision": "vision_model", "qformer": "qformer"},
    layers={"vision": "vision_model.encoder.layers", "qformer": "qformer.encoder.layer"},
    heads={"vision": (), "qformer": ("vision_projection", "text_projection")},
    full_precision=("qformer", "vision_projection", "text_projection", "itm_head"),
    temperature=("logit_scale",),
    processor_classes={"blip-2": "Blip2Processor"},
    auto_class="Blip2ForImageTextRetrieval",
    targets={"mlp": {"qformer": _QFORMER_MLP}},
    ignored_weights=(r".*\.position_ids",),
    stems={"vision": ("vision_model.embeddings",)},
    sides={"media": ("vision", "qformer"), "text": ("qformer",)},
    whole_forward=({"use_image_text_matching_head": False}, "logits_per_image"),
)

SPEAKING = replace(
    FAMILY,
    abilities=frozenset({"generate"}),
    parts={**FAMILY.parts, "connector": "language_projection", "text": "language_model"},
    heads={"vision": (), "qformer": (), "connector": (), "text": ()},
    full_precision=("qformer", "language_projection", "language_model.lm_head"),
    temperature=(),
    auto_class="Blip2ForConditionalGeneration",
    targets=_qformer_records.targets(_QFORMER_MLP),
    idle=(_OF_TEXTS.format(layer=r"\d+"),),
    whole_forward=None,
    head="language_model.lm_head",
    caption_prompt="a photo of",
    image_side=("vision", "qformer", "connector"),
)


RECORDS = {record.auto_class: record for record in (FAMILY, SPEAKING)}
"""Class of transformers -> its record."""


def family_for(config: Mapping[str, Any]) -> Family:
    """The record for the class and the language model that config.json names.

    Raises:
        BackboneError: it is another one of the BLIP-2 classes, which share ``model_type: blip-2`` but not their
            weights; its Q-Former has no layers for texts, or its language model is not known.
    """
    named = (config.get("architectures") or ["none"])[0]
    if named == SPEAKING.auto_class:
        return _qformer_records.speaking_record(SPEAKING, config)
    if named != FAMILY.auto_class:
        raise BackboneError(
            f"config.json names the architecture {named}, and the BLIP-2 models that can be trained are "
            f"{SPEAKING.auto_class} and {FAMILY.auto_class} (such as Salesforce/blip2-opt-2.7b, blip2-flan-t5-xl and "
            f"blip2-itm-vit-g)"
        )
    if not (config.get("qformer_config") or {}).get("use_qformer_text_input", False):
        raise BackboneError("qformer_config.use_qformer_text_input is not true: this Q-Former cannot read texts")
    return replace(FAMILY, by_ability={"match": _matching(config)})


def _matching(config: Mapping[str, Any]) -> dict[str, Any]:
    """Only the queries are judged, so what texts become in the last layer is never used."""
    last = _qformer_records.num_layers(config)["qformer"] - 1
    return {
        "heads": {"vision": (), "qformer": ("itm_head",)},
        "temperature": (),
        "idle": (_OF_TEXTS.format(layer=last),),
        "whole_forward": ({"use_image_text_matching_head": True}, "logits_per_image"),
    }


def architecture_for(task: str) -> str:
    """The class that is made for a task (by name), where no config.json says which."""
    return FAMILY.auto_class if task in ("retrieval", "matching") else SPEAKING.auto_class


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Layers per part; a value that is absent has the class's default."""
    parts = family_for(config).parts
    return {part: depth for part, depth in _qformer_records.num_layers(config).items() if part in parts}


def text_limit(config: Any) -> int:
    """Longest text in tokens: for retrieval the Q-Former's positions (``text_config`` is a language model that is not
    there), else the language model's.
    """
    if SPEAKING.auto_class in (config.architectures or ()):
        return _qformer.text_limit(config)
    return int(config.qformer_config.max_position_embeddings)


def load_processor(description: Description) -> Any:
    """The Blip2Processor; where words are generated, one that knows how."""
    from mmtune.backbones._loading import image_and_text_processor

    processor = image_and_text_processor(description)
    if description.traits.auto_class == SPEAKING.auto_class:
        _qformer.prepare_processor(processor, description.config)
    return processor


def after_loading(model: "nn.Module") -> None:
    """Give the retrieval class its temperature."""
    if type(model).__name__ == FAMILY.auto_class:
        give_temperature(model)


def before_saving(model: "nn.Module") -> None:
    """Write the retrieval class's temperature into the config."""
    if type(model).__name__ == FAMILY.auto_class:
        note_temperature(model)


def check(model: "nn.Module", processor: Any) -> None:
    """See that texts can be padded and are read, begun and ended where model and tokenizer agree.

    Raises:
        BackboneError: config.json, tokenizer and weights do not belong together.
    """
    if type(model).__name__ == FAMILY.auto_class:
        _bert_text.check(model, processor)
    else:
        _qformer.check(model, processor)


def embed_media(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, Q, D] of ``batch["pixel_values"]``: one per query, each L2-normalised, float32 at least."""
    states = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state  # type: ignore[operator]
    queries = model.query_tokens.expand(len(states), -1, -1)  # type: ignore[operator]
    answers = model.qformer(query_embeds=queries, encoder_hidden_states=states)  # type: ignore[operator]
    return _project(model.vision_projection, answers.last_hidden_state)


def embed_text(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["input_ids"]`` int64[B, L], read at the class token, L2-normalised."""
    words = model.embeddings(input_ids=batch["input_ids"])  # type: ignore[operator]
    read = model.qformer(query_embeds=words, query_length=0, attention_mask=batch["attention_mask"])  # type: ignore[operator]
    return _project(model.text_projection, read.last_hidden_state[:, 0])


def _project(head: Any, states: "Tensor") -> "Tensor":
    """transformers keeps the Q-Former in float32 beside a half-precision rest: the head decides."""
    return normalise(head(states.to(head.weight.dtype)))


def match(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Log odds float[B] that each text is true of its image: logit 1 less logit 0, mean over the queries."""
    import torch

    states = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state  # type: ignore[operator]
    queries = model.query_tokens.expand(len(states), -1, -1)  # type: ignore[operator]
    together = model.embeddings(input_ids=batch["input_ids"], query_embeds=queries)  # type: ignore[operator]
    seen = torch.cat([batch["attention_mask"].new_ones(queries.shape[:2]), batch["attention_mask"]], dim=1)
    length = queries.shape[1]
    read = model.qformer(  # type: ignore[operator]
        query_embeds=together, query_length=length, attention_mask=seen, encoder_hidden_states=states
    )
    head: Any = model.itm_head
    logits = head(read.last_hidden_state[:, :length].to(head.weight.dtype)).mean(dim=1)
    logits = logits.float() if logits.element_size() < 4 else logits
    return logits[:, 1] - logits[:, 0]


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """The live log scale float[] (the logits' factor is its exponential) and no bias."""
    return model.logit_scale, None  # type: ignore[return-value]


def tiny(model_type: str = "blip-2", architecture: str = FAMILY.auto_class) -> "tuple[nn.Module, Any]":
    """The twin of one of the classes, of width 32 with two layers per part and 4 queries; OPT speaks."""
    return tiny_speaking("opt") if architecture == SPEAKING.auto_class else _tiny_retrieval()


def tiny_for(config: Mapping[str, Any]) -> "tuple[nn.Module, Any]":
    """The twin of what config.json describes: of its class, with a language model of its kind."""
    if family_for(config).auto_class == FAMILY.auto_class:
        return _tiny_retrieval()
    return tiny_speaking(language_of(config))


def tiny_speaking(language: str = "opt") -> "tuple[nn.Module, Any]":
    """A Blip2ForConditionalGeneration with a language model of a kind (``opt``, ``t5``), with dropout."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

    tokenizer, text = tiny_language(language)
    processor = Blip2Processor(image_processor=tiny_pictures(), tokenizer=tokenizer, num_query_tokens=NUM_QUERIES)
    config = Blip2Config(
        vision_config={**TOWER, "image_size": 32, "patch_size": 8, "attention_dropout": 0.1},
        qformer_config=TOWER,
        text_config=text,
        num_query_tokens=NUM_QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return random_model(Blip2ForConditionalGeneration, config), processor


def _tiny_retrieval() -> "tuple[nn.Module, Any]":
    """A Blip2ForImageTextRetrieval and a small BertTokenizer."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor

    tokenizer = tiny_tokenizer(32)
    num_words = len(tokenizer)
    processor = Blip2Processor(image_processor=tiny_pictures(), tokenizer=tokenizer, num_query_tokens=NUM_QUERIES)
    qformer = {**TOWER, "vocab_size": num_words, "max_position_embeddings": 32, "use_qformer_text_input": True}
    config = Blip2Config(
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        qformer_config=qformer,
        text_config={"model_type": "opt", "num_hidden_layers": 1, "hidden_size": 32, "vocab_size": num_words},
        num_query_tokens=NUM_QUERIES,
        image_text_hidden_size=16,
        image_token_index=num_words,
    )
    return random_model(Blip2ForImageTextRetrieval, config), processor
