"""InstructBLIP: BLIP-2 whose Q-Former reads the question too, and so looks for what is asked.

The question is given twice: to the Q-Former in tokens of its own (``qformer_input_ids``, from the processor's
``qformer_tokenizer``), and to the language model (LLaMA or T5) after the image tokens. The answer is for the language
model alone.

What the question's tokens become in the Q-Former's last layer is not used, so the layers that make it there are neither
adapted nor trained.

Source: Dai et al. 2023, https://arxiv.org/abs/2305.06500 (appendix: the prompt for captions); transformers
``InstructBlipForConditionalGeneration``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from mmtune.backbones import _bert_text, _qformer
from mmtune.backbones._bert_text import tiny_tokenizer
from mmtune.backbones._family import Description, Family
from mmtune.backbones._qformer import generate, image_tokens, text_limit
from mmtune.backbones._qformer_records import language_of, num_layers, speaking_record, targets
from mmtune.backbones._qformer_twins import NUM_QUERIES, TOWER, random_model, tiny_language, tiny_pictures
from mmtune.backbones._single_exchange import read_exchange, refuse_longer
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
    "num_layers",
    "pad",
    "text_limit",
    "tiny",
    "tiny_for",
    "tiny_speaking",
]

FAMILY = Family(
    name="instructblip",
    model_types=("instructblip",),
    abilities=frozenset({"generate"}),
    parts={
        "vision": "vision_model",
        "qformer": "qformer",
        "connector": "language_projection",
        "text": "language_model",
    },
    layers={"vision": "vision_model.encoder.layers", "qformer": "qformer.encoder.layer"},
    heads={"vision": (), "qformer": (), "connector": (), "text": ()},
    full_precision=("qformer", "language_projection", "language_model.lm_head"),
    temperature=(),
    processor_classes={"instructblip": "InstructBlipProcessor"},
    auto_class="InstructBlipForConditionalGeneration",
    targets=targets(r"qformer\.encoder\.layer\.\d+\.(intermediate|output)(_query)?\.dense"),
    ignored_weights=(r".*\.position_ids",),
    stems={"vision": ("vision_model.embeddings",)},
    head="language_model.lm_head",
    caption_prompt="A short image description:",
)

POSITIONS = 512
"""``qformer_config.max_position_embeddings`` where config.json does not say it: the class's default."""


def family_for(config: Mapping[str, Any]) -> Family:
    """The record for the language model that config.json names.

    Raises:
        BackboneError: config.json names a class that does not speak, or a language model that is not known.
    """
    named = (config.get("architectures") or ["none"])[0]
    if named != FAMILY.auto_class:
        raise BackboneError(
            f"config.json names the architecture {named}, and of the InstructBLIP models {FAMILY.auto_class} alone "
            f"makes words (such as Salesforce/instructblip-vicuna-7b)"
        )
    last = num_layers(config)["qformer"] - 1
    unused = rf"qformer\.encoder\.layer\.{last}\.(intermediate|output)"
    return replace(speaking_record(FAMILY, config), idle=(unused,))


def load_processor(description: Description) -> Any:
    """The InstructBlipProcessor around both tokenizers of the repository and its Pillow image processor."""
    import transformers

    folder, trust = str(description.folder), description.section.trust_remote_code
    options = {"trust_remote_code": trust, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    reader = transformers.AutoTokenizer.from_pretrained(folder, subfolder="qformer_tokenizer", **options)
    pictures = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
    qformer = description.config.get("qformer_config") or {}
    limit = int(qformer.get("max_position_embeddings", POSITIONS))
    reader.model_max_length = min(limit, reader.model_max_length)
    processor = transformers.InstructBlipProcessor(
        image_processor=pictures, tokenizer=tokenizer, qformer_tokenizer=reader
    )
    return _qformer.prepare_processor(processor, description.config)


def encode_turns(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """As BLIP-2's, with ``qformer_input_ids`` and ``qformer_attention_mask`` int64[K]: the question for the Q-Former.

    Raises:
        DataError: not one question, one image and one answer, or longer than the model or its Q-Former reads.
    """
    question = read_exchange(turns, images, answered=True).prompt
    return {**_qformer.encode_turns(processor, turns, images), **_instruct(processor, question)}


def encode_prompt(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """As ``encode_turns``, up to where the answer begins and without labels.

    Raises:
        DataError: not one question about one image, or longer than the model or its Q-Former reads.
    """
    question = read_exchange(turns, images, answered=False).prompt
    return {**_qformer.encode_prompt(processor, turns, images), **_instruct(processor, question)}


def _instruct(processor: Any, question: str) -> "dict[str, Tensor]":
    import torch

    reader = processor.qformer_tokenizer
    ids = torch.tensor(reader(question, truncation=False, verbose=False)["input_ids"])
    refuse_longer(len(ids), reader.model_max_length, "the question, for the Q-Former,")
    return {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}


def pad(
    processor: Any, encoded: "Sequence[Mapping[str, Tensor]]", *, side: Literal["right", "left"] = "right"
) -> "dict[str, Tensor]":
    """Encoded samples as one batch; what the Q-Former reads is padded on the right always."""
    from torch.nn.utils.rnn import pad_sequence

    batch = _bert_text.pad(processor, encoded, side=side)
    fill = {"qformer_input_ids": processor.qformer_tokenizer.pad_token_id, "qformer_attention_mask": 0}
    for key in (key for key in fill if encoded and key in encoded[0]):
        batch[key] = pad_sequence([one[key] for one in encoded], batch_first=True, padding_value=fill[key])
    return batch


def check(model: "nn.Module", processor: Any) -> None:
    """See that both tokenizers belong to the model.

    Raises:
        BackboneError: config.json, tokenizers and weights do not belong together.
    """
    _qformer.check(model, processor)
    words: Any = model.qformer.get_input_embeddings()  # type: ignore[operator, union-attr]
    reader = processor.qformer_tokenizer
    if reader.pad_token_id is None or len(reader) > words.num_embeddings:
        raise BackboneError(
            f"qformer_tokenizer has {len(reader)} tokens and the padding token {reader.pad_token!r}, the Q-Former "
            f"embeds {words.num_embeddings}: they do not belong together"
        )


def tiny(model_type: str = "instructblip") -> "tuple[nn.Module, Any]":
    """The twin that speaks by LLaMA."""
    return tiny_speaking("llama")


def tiny_for(config: Mapping[str, Any]) -> "tuple[nn.Module, Any]":
    """The twin of what config.json describes: of its class, with a language model of its kind."""
    return tiny_speaking(language_of(config))


def tiny_speaking(language: str = "llama") -> "tuple[nn.Module, Any]":
    """An InstructBlipForConditionalGeneration of width 32 with two layers per part and 4 queries, with dropout.

    Args:
        language: the kind of language model: ``llama`` or ``t5``.
    """
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor

    tokenizer, text = tiny_language(language)
    reader = tiny_tokenizer(200)
    processor = InstructBlipProcessor(
        image_processor=tiny_pictures(),
        tokenizer=tokenizer,
        qformer_tokenizer=reader,
        num_query_tokens=NUM_QUERIES,
    )
    config = InstructBlipConfig(
        vision_config={**TOWER, "image_size": 32, "patch_size": 8, "attention_dropout": 0.1},
        qformer_config={**TOWER, "vocab_size": len(reader), "max_position_embeddings": 200},
        text_config=text,
        num_query_tokens=NUM_QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return random_model(InstructBlipForConditionalGeneration, config), processor
