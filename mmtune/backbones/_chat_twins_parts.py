"""What tiny chat models have in common: the sizes of their parts, and processors saved as a repository holds them."""

import json
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any

from mmtune.backbones._chat_processor import without_video
from mmtune.backbones._chat_twins_tokenizers import LIMIT

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DROPOUT = {"attention_dropout": 0.1}
PIXELS = 32
SQUARE = {"height": PIXELS, "width": PIXELS}


@dataclass(frozen=True)
class Twin:
    """What a tiny chat model is made from.

    Attributes:
        config: transformers' configuration of the model.
        processor: its processor.
        ends: the tokens that end generation, the end of a turn first.
        generation: more settings of generation_config.json, as the published model has them.
        seed: of the weights; one with which generation says something.
    """

    config: Any
    processor: Any
    ends: tuple[str, ...]
    generation: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


def text_of(tokenizer: Any, **own: Any) -> dict[str, Any]:
    """Settings of a small text model for a tokenizer."""
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": LIMIT}
    return {**LAYERS, **DROPOUT, **sizes, **ids, **own}


def clip_vision(patch_size: int) -> dict[str, Any]:
    """A CLIP image encoder of three layers; LLaVA does not read the last one."""
    own = {"model_type": "clip_vision_model", "num_hidden_layers": 3, "projection_dim": 32}
    return {**LAYERS, **DROPOUT, "image_size": PIXELS, "patch_size": patch_size, **own}


def siglip_vision(patch_size: int) -> dict[str, Any]:
    """A SigLIP image encoder of two layers without the head that pools."""
    own = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return {**LAYERS, **DROPOUT, "image_size": PIXELS, "patch_size": patch_size, **own}


def ids_of(tokenizer: Any, **names: str) -> dict[str, int]:
    """Setting of the configuration -> number of the token that it names."""
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def published(processor_class: type, video_processor: str) -> type:
    """The class without its video half; what it saves is what a repository of the whole class holds."""
    made: type = without_video(processor_class)
    made.save_pretrained = partialmethod(_save_published, video_processor)  # type: ignore[attr-defined]
    return made


def _save_published(processor: Any, video_processor: str, folder: str | Path) -> None:
    """Tokenizer, chat template and three files: of the pictures, of the videos, and the processor's own values."""
    folder, name = Path(folder), type(processor).__name__
    processor.tokenizer._set_processor_class(name)
    processor.tokenizer.save_pretrained(folder)
    pictures = {**processor.image_processor.to_dict(), "processor_class": name}
    own = {key: value for key, value in processor.to_dict().items() if key != "image_processor"}
    _write_json(folder / "preprocessor_config.json", pictures)
    del pictures["image_processor_type"]
    _write_json(folder / "video_preprocessor_config.json", {**pictures, "video_processor_type": video_processor})
    _write_json(folder / "processor_config.json", own)
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
