"""Image-text-to-text models by ``model_type``: where their parts are, and how each differs from the others.

Everything here is known from config.json alone. Most models are an image tower, a connector and a language model under
``model``, with ``lm_head`` beside it; a record says what is otherwise.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmtune.backbones._chat_refused import REFUSED
from mmtune.ground.errors import BackboneError


@dataclass(frozen=True)
class ChatModel:
    """What is true of one model type.

    Attributes:
        processor: transformers' processor class, where the repository's files name none.
        vision, connector, text: paths of the parts; ``connector`` "" where there is none of its own.
        vision_layers, text_layers: paths of the lists of layers, from their parts on; "" where there is no single list.
        kinds: part -> ``model_type`` of the part's config where config.json leaves it out.
        absent: part -> layers where config.json has no section for the part at all.
        image_words: words of ``backbone.image`` -> where the image processor has them (``size.longest_edge``).
        connector_made_of: what the connector is made of, where that is no linear layers.
        tested: whether the tests hold a twin of it.
        kept: paths that are never quantized, beside the connector and the head: what connects too.
        unquantizable: value of ``quantize`` -> why it does not work.
        shifted_labels: as in ``Family``.
        caption_prompt: as in ``Family``.
        reads: key of config.json that says which of the image tower's layers is read; "" where all run.
        bare_mlp: pattern of the language model's mlp layers, where they stand in its layers without a module of theirs.
    """

    processor: str
    vision: str = "model.vision_tower"
    connector: str = "model.multi_modal_projector"
    text: str = "model.language_model"
    vision_layers: str = "encoder.layers"
    text_layers: str = "layers"
    kinds: Mapping[str, str] = field(default_factory=lambda: {"vision": "clip_vision_model", "text": "llama"})
    absent: Mapping[str, int] = field(default_factory=dict)
    image_words: Mapping[str, str] = field(default_factory=dict)
    connector_made_of: str = ""
    idle: tuple[str, ...] = ()
    tested: bool = True
    kept: tuple[str, ...] = ()
    unquantizable: Mapping[str, str] = field(default_factory=dict)
    shifted_labels: bool = True
    caption_prompt: str = "Describe the image."
    reads: str = ""
    bare_mlp: str = ""


def _like_llava(processor: str, text: str = "llama", **own: Any) -> ChatModel:
    kinds = {"vision": "clip_vision_model", "text": text}
    return ChatModel(processor, **{"kinds": kinds, "absent": {"vision": 24, "text": 32}, **own})


def _like_qwen(processor: str, kind: str, **own: Any) -> ChatModel:
    """One tower with its merger inside; sizes are areas in pixels, whatever the image processor calls them."""
    words = {"min_pixels": "size.shortest_edge", "max_pixels": "size.longest_edge"}
    places = {"vision": "model.visual", "connector": "model.visual.merger", "vision_layers": "blocks"}
    kinds = {"vision": kind, "text": f"{kind}_text"}
    return ChatModel(processor, **{**places, "kinds": kinds, "image_words": words, **own})


def _like_idefics(processor: str, kind: str, **own: Any) -> ChatModel:
    places = {"vision": "model.vision_model", "connector": "model.connector", "text": "model.text_model"}
    words = {"longest_edge": "size.longest_edge"}
    kinds = {"vision": f"{kind}_vision", "text": "llama"}
    return ChatModel(processor, **{**places, "kinds": kinds, "image_words": words, **own})


def _like_paligemma(processor: str, text: str, absent: Mapping[str, int], **own: Any) -> ChatModel:
    kinds = {"vision": "siglip_vision_model", "text": text}
    return ChatModel(processor, **{"kinds": kinds, "absent": absent, **own})


def _like_cohere(processor: str, **own: Any) -> ChatModel:
    kinds, absent = {"vision": "siglip_vision_model", "text": "cohere2"}, {"vision": 27, "text": 40}
    return ChatModel(
        processor, kinds=kinds, absent=absent, image_words=_PATCHES, tested=False, idle=_SIGLIP_HEAD, **own
    )


_SHRUNK = {"longest_edge": "shrunk_to"}
"""Models that choose their tiles by an image's size: a smaller image has fewer. See ``shrink``."""

_PATCHES = {"min_patches": "min_patches", "max_patches": "max_patches"}
_SIGLIP_HEAD = (r"model\.vision_tower\.head",)

MODELS: dict[str, ChatModel] = {
    "llava": _like_llava("LlavaProcessor", reads="vision_feature_layer"),
    "llava_next": _like_llava("LlavaNextProcessor", reads="vision_feature_layer", image_words=_SHRUNK),
    "llava_onevision": _like_llava(
        "LlavaOnevisionProcessor",
        "qwen2",
        kinds={"vision": "siglip_vision_model", "text": "qwen2"},
        absent={"vision": 26, "text": 32},
        image_words=_SHRUNK,
        reads="vision_feature_layer",
        idle=_SIGLIP_HEAD,
    ),
    "qwen2_vl": _like_qwen("Qwen2VLProcessor", "qwen2_vl"),
    "qwen2_5_vl": _like_qwen("Qwen2_5_VLProcessor", "qwen2_5_vl"),
    "qwen3_vl": _like_qwen("Qwen3VLProcessor", "qwen3_vl", kept=("model.visual.deepstack_merger_list",)),
    "idefics3": _like_idefics("Idefics3Processor", "idefics3"),
    "smolvlm": _like_idefics("SmolVLMProcessor", "smolvlm"),
    "paligemma": _like_paligemma(
        "PaliGemmaProcessor", "gemma", {"vision": 27, "text": 18}, caption_prompt="caption en", idle=_SIGLIP_HEAD
    ),
    "gemma3": _like_paligemma(
        "Gemma3Processor", "gemma3_text", {}, connector_made_of="one bare weight", idle=_SIGLIP_HEAD
    ),
    "internvl": ChatModel(
        "InternVLProcessor",
        vision_layers="encoder.layer",
        kinds={"vision": "internvl_vision", "text": "qwen2"},
        image_words=_PATCHES,
    ),
    "florence2": ChatModel(
        "Florence2Processor",
        vision_layers="",
        text_layers="",
        shifted_labels=False,
        caption_prompt="<CAPTION>",
        bare_mlp=r"model\.language_model\.(en|de)coder\.layers\.\d+\.fc[12]",
    ),
    "vipllava": _like_llava("LlavaProcessor", tested=False, reads="vision_feature_layers"),
    "mistral3": _like_llava(
        "PixtralProcessor",
        kinds={"vision": "pixtral", "text": "mistral"},
        absent={"text": 40},
        image_words={"longest_edge": "size.longest_edge"},
        tested=False,
    ),
    "aya_vision": _like_cohere("AyaVisionProcessor", reads="vision_feature_layer"),
    "cohere2_vision": _like_cohere("Cohere2VisionProcessor"),
    "glm4v": _like_qwen("Glm4vProcessor", "glm4v", tested=False),
    "glm46v": _like_qwen("Glm46VProcessor", "glm4v", tested=False),
    "exaone4_5": _like_qwen("Exaone4_5_Processor", "exaone4_5", tested=False),
}
"""Model type -> its record. Those with a tiny twin in the tests come first; the others have the same structure."""

VISION_LAYERS = {"pixtral": "transformer.layers"}
"""Kind of image tower -> its list of layers, for towers that any model may be put together with."""

DEPTHS = {
    "clip_vision_model": 12,
    "siglip_vision_model": 12,
    "pixtral": 24,
    "qwen2_vl": 32,
    "qwen2_5_vl": 32,
    "qwen3_vl": 27,
    "idefics3_vision": 12,
    "smolvlm_vision": 12,
    "internvl_vision": 24,
    "llama": 32,
    "mistral": 32,
    "qwen2": 32,
    "qwen3": 32,
    "cohere2": 40,
    "gemma": 28,
    "gemma2": 26,
    "gemma3_text": 26,
    "qwen2_vl_text": 80,
    "qwen2_5_vl_text": 80,
    "qwen3_vl_text": 32,
}
"""Kind of part -> its number of layers where config.json gives none.

Source: the defaults of transformers' configuration classes, compared with them in the tests.
"""


def find_model(config: Mapping[str, Any]) -> ChatModel:
    """The record for config.json.

    Raises:
        BackboneError: the model type holds no conversation.
    """
    model_type = config["model_type"]
    if model_type not in MODELS:
        raise BackboneError(f"model_type {model_type!r} is not supported: {REFUSED[model_type]}; there are {_tested()}")
    return MODELS[model_type]


def _tested() -> str:
    return ", ".join(name for name, model in MODELS.items() if model.tested)


def layer_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """Part -> path of its list of layers, for the parts that have one list."""
    model = find_model(config)
    vision = VISION_LAYERS.get(_section(config, model, "vision").get("model_type", ""), model.vision_layers)
    below = {"vision": (model.vision, vision), "text": (model.text, model.text_layers)}
    return {part: f"{tower}.{layers}" for part, (tower, layers) in below.items() if layers}


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Layers of the image tower and of the language model, for those that have one list of them.

    Raises:
        BackboneError: config.json does not say it, and the part is of a kind whose default is not known here.
    """
    model = find_model(config)
    return {part: _depth(config, model, part) for part in layer_paths(config)}


def _depth(config: Mapping[str, Any], model: ChatModel, part: str) -> int:
    section = _section(config, model, part)
    for key in ("num_hidden_layers", "depth"):
        if key in section:
            return int(section[key])
    if f"{part}_config" not in config and part in model.absent:
        return model.absent[part]
    kind = section.get("model_type") if f"{part}_config" in config else None
    kind = kind if kind is not None and kind != config["model_type"] else model.kinds[part]
    if kind not in DEPTHS:
        raise BackboneError(
            f"{part}_config of config.json has no num_hidden_layers, and what {kind!r} has by default is not "
            "known; write the number there, in a copy of the folder"
        )
    return DEPTHS[kind]


def _section(config: Mapping[str, Any], model: ChatModel, part: str) -> Mapping[str, Any]:
    """The part's own section; old Qwen2-VL files hold the language model's values at the top."""
    section = config.get(f"{part}_config")
    if section is None and part == "text" and "num_hidden_layers" in config:
        return config
    return section or {}


def idle_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns of what never runs: layers of the image tower above the one that is read, and what follows them all."""
    model = find_model(config)
    if not model.reads:
        return model.idle
    read, depth = config.get(model.reads), num_layers(config)["vision"]
    default = -1 if "siglip" in model.kinds["vision"] else -2
    chosen = [read if read is not None else default] if not isinstance(read, list) else read
    top = max(one if one >= 0 else depth + 1 + one for one in chosen)
    path = re.escape(layer_paths(config)["vision"])
    unread = tuple(rf"{path}\.{layer}" for layer in range(top, depth))
    after = (re.escape(model.vision) + r"\.post_layernorm",)
    return (*unread, *after, *model.idle)
