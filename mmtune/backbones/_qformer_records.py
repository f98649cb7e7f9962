"""Language models behind a Q-Former, and what a family's record says where it has one: from config.json alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmtune.backbones._family import Family
from mmtune.ground.errors import BackboneError


@dataclass(frozen=True)
class LanguageModel:
    """One kind of language model behind a Q-Former.

    Attributes:
        layers: path of the list of layers that ``adapter.layers`` counts; of an encoder-decoder the decoder's.
        depth: key of text_config -> number of layers; the first key that is there counts.
        default_depth: where none is there: the class's default.
        end: where answers end at ``text_config.eos_token_id``: its value if it is not there, the class's default; None
            where they end at the tokenizer's own end token.
        mlp: pattern of the layers that ``mlp`` means, where no class is called so.
        is_decoder: whether it is a decoder alone.
    """

    layers: str
    depth: tuple[str, ...]
    default_depth: int
    end: int | None
    mlp: str | None
    is_decoder: bool = True


LANGUAGE_MODELS = {
    "opt": LanguageModel(
        "language_model.model.decoder.layers",
        ("num_hidden_layers",),
        12,
        2,
        r"language_model\.model\.decoder\.layers\.\d+\.fc[12]",
    ),
    "llama": LanguageModel("language_model.model.layers", ("num_hidden_layers",), 32, None, None),
    "t5": LanguageModel(
        "language_model.decoder.block",
        ("num_decoder_layers", "num_layers"),
        6,
        None,
        r"language_model\.(encoder|decoder)\.block\.\d+\.layer\.\d+\.DenseReluDense\.(wi|wi_0|wi_1|wo)",
        is_decoder=False,
    ),
}
"""``model_type`` of text_config -> what is known of it."""

T5_POSITIONS = 512
"""Longest text that T5 was trained with; its positions are relative, so nothing but this limits it."""


def language_of(config: Mapping[str, Any]) -> str:
    """The kind of language model that config.json names; OPT where it names none, as in the classes.

    Raises:
        BackboneError: it is none of those that are known.
    """
    name = str(text_config_of(config).get("model_type", "opt"))
    if name not in LANGUAGE_MODELS:
        raise BackboneError(
            f"text_config.model_type is {name!r}; behind a Q-Former the language models {', '.join(LANGUAGE_MODELS)} "
            f"are known"
        )
    return name


def language_model(config: Mapping[str, Any]) -> LanguageModel:
    """What is known of ``language_of(config)``."""
    return LANGUAGE_MODELS[language_of(config)]


def targets(qformer: str) -> dict[str, dict[str, str]]:
    """What ``attention`` and ``mlp`` mean where structure does not say it; ``qformer`` is a pattern of dense layers.

    The connector is one linear layer: either word means it.
    """
    projection = {"connector": "language_projection"}
    return {"attention": projection, "mlp": {"qformer": qformer, **projection}}


def speaking_record(record: Family, config: Mapping[str, Any]) -> Family:
    """A family's record with what depends on the language model.

    Raises:
        BackboneError: the language model is not known, or the config is of a time before image tokens.
    """
    language = language_model(config)
    if config.get("image_token_index", config.get("image_token_id")) is None:
        raise BackboneError(
            "config.json has no image_token_index: the files are older than transformers 4.46, which put image tokens "
            "among the words; take a newer revision of the repository"
        )
    of_text = {} if language.mlp is None else {"text": language.mlp}
    return replace(
        record,
        layers={**record.layers, "text": language.layers},
        targets={**record.targets, "mlp": {**record.targets["mlp"], **of_text}},
        full_precision=(*record.full_precision, *_kept_by_t5(config)),
        shifted_labels=language.is_decoder,
    )


def _kept_by_t5(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The layers of T5 that transformers never quantizes: their activations leave the range of half precision."""
    text = text_config_of(config)
    if text.get("model_type") != "t5":
        return ()
    encoders = int(text.get("num_layers", LANGUAGE_MODELS["t5"].default_depth))
    decoders = _depth(config)
    blocks = [f"encoder.block.{n}.layer.1" for n in range(encoders)]
    blocks += [f"decoder.block.{n}.layer.2" for n in range(decoders)]
    return tuple(f"language_model.{block}.DenseReluDense.wo" for block in blocks)


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Layers of the ViT, the Q-Former and the language model (T5: its decoder); absent values are the classes'."""
    vision, qformer = (config.get(f"{name}_config") or {} for name in ("vision", "qformer"))
    return {
        "vision": int(vision.get("num_hidden_layers", 39)),
        "qformer": int(qformer.get("num_hidden_layers", 12)),
        "text": _depth(config),
    }


def _depth(config: Mapping[str, Any]) -> int:
    language, text = language_model(config), text_config_of(config)
    said = (text.get(key) for key in language.depth)
    return int(next((value for value in said if value is not None), language.default_depth))


def text_config_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's config."""
    return config.get("text_config") or {}


def positions(text: Mapping[str, Any]) -> int:
    """Longest text in tokens that a text_config (a mapping) says."""
    if text.get("model_type") == "t5":
        return int(text.get("n_positions", T5_POSITIONS))
    return int(text.get("max_position_embeddings", 2048))
