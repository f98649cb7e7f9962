"""The encoders that a pair can be made of: what has a pooled state, where its layers are, what its parts are called.

Everything here is about transformers' classes and is looked up by ``model_type``, so it is known from config.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmtune.ground.errors import BackboneError


@dataclass(frozen=True)
class Encoder:
    """One architecture of an encoder; every path is within the encoder.

    Attributes:
        layers: path of its list of layers; None where it has none of a kind (stages of different widths).
        mlp: pattern of its feed-forward layers where no enclosing class is called MLP.
        kept: modules that are never quantized beside the pooler.
        offset: positions that are no place for a token: RoBERTa and its kind count from ``pad_token_id`` + 1.
        four_dimensional: its linear layers are given [B, H, W, C].
        fixed_size: its pictures must have the size that config.json says.
        stems: modules that run before its first layer; empty where layers are told something of the picture besides.
        tiny: settings of its tiny twin beside those that all have.
    """

    layers: str | None = "encoder.layer"
    mlp: str | None = None
    kept: tuple[str, ...] = ()
    offset: bool = False
    four_dimensional: bool = False
    fixed_size: bool = False
    stems: tuple[str, ...] = ("embeddings",)
    tiny: Mapping[str, Any] = field(default_factory=dict)


STAGED = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "patch_size": 2}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 4}
POINTWISE = r".*\.pwconv[12]"
BERT_MLP = r"encoder\.layer\.\d+\.(intermediate|output)\.dense"
SWIN2_MLP = r"encoder\.layers\.\d+\.blocks\.\d+\.(intermediate|output)\.dense"

VISION: dict[str, Encoder] = {
    "vit": Encoder("layers", fixed_size=True),
    "deit": Encoder("layers", fixed_size=True),
    "beit": Encoder("layers", fixed_size=True, stems=()),
    "dinov2": Encoder(),
    "dinov2_with_registers": Encoder(),
    "dinov3_vit": Encoder("model.layer", stems=(), tiny={"num_register_tokens": 4}),
    "clip_vision_model": Encoder("encoder.layers", fixed_size=True, stems=("embeddings", "pre_layrnorm")),
    "siglip_vision_model": Encoder("encoder.layers", kept=("head",), fixed_size=True),
    "swin": Encoder(None, tiny=SWIN),
    "swinv2": Encoder(None, SWIN2_MLP, tiny=SWIN),
    "convnext": Encoder(None, POINTWISE, four_dimensional=True, tiny=STAGED),
    "convnextv2": Encoder(None, POINTWISE, four_dimensional=True, tiny=STAGED),
}
"""Image encoders: model type -> what is known of it."""

TEXT: dict[str, Encoder] = {
    "bert": Encoder(mlp=BERT_MLP),
    "ernie": Encoder(mlp=BERT_MLP),
    "megatron-bert": Encoder(mlp=BERT_MLP),
    "mpnet": Encoder(mlp=BERT_MLP, offset=True, stems=()),
    "roberta": Encoder(mlp=BERT_MLP, offset=True),
    "xlm-roberta": Encoder(mlp=BERT_MLP, offset=True),
    "camembert": Encoder(mlp=BERT_MLP, offset=True),
    "clip_text_model": Encoder("encoder.layers"),
}
"""Text encoders: model type -> what is known of it."""

TABLES = {"vision": VISION, "text": TEXT}

INSIDE: dict[str, dict[str, str]] = {
    "vision": {"clip": "clip_vision_model", "siglip": "siglip_vision_model"},
    "text": {"clip": "clip_text_model"},
}
"""Models with two towers of which one can be taken: part -> model type -> model type of that tower."""

NO_POOLED_STATE = "it gives no pooled state (pooler_output), which VisionTextDualEncoderModel reads"
NOT_FLAT = "its pooled state is a picture of one pixel, [B, C, 1, 1], which VisionTextDualEncoderModel cannot project"
NO_POOLED_TEXT = (
    *("distilbert", "electra", "deberta", "deberta-v2", "modernbert", "eurobert"),
    *("convbert", "roformer", "bert-generation", "xlm", "gpt2"),
)
NO_POOLED_IMAGE = ("vit_mae", "vit_msn", "ijepa", "pvt", "poolformer", "data2vec-vision")
UNUSABLE: dict[str, str] = {
    **dict.fromkeys((*NO_POOLED_TEXT, *NO_POOLED_IMAGE), NO_POOLED_STATE),
    **dict.fromkeys(("resnet", "regnet", "bit"), NOT_FLAT),
}
"""Encoders that are asked for and do not work, and why: what transformers 5.23 does with them, tried on tiny ones."""


def find_encoder(config: Mapping[str, Any], part: str) -> Encoder:
    """What is known of an encoder.

    Args:
        config: its config.json.
        part: ``vision`` or ``text``, what it is to be.

    Raises:
        BackboneError: it cannot be that part, and what can.
    """
    name = config.get("model_type")
    table = TABLES[part]
    if name in table:
        return _usable(table[name], config, part)
    other = "text" if part == "vision" else "vision"
    can = f"{part} can be {', '.join([*table, *INSIDE[part]])}"
    if name in TABLES[other]:
        kind = {"vision": "an image", "text": "a text"}[other]
        raise BackboneError(f"{part}: {name!r} is {kind} encoder, which belongs under {other}; {can}")
    if name in UNUSABLE:
        raise BackboneError(f"{part}: {name!r} cannot be paired: {UNUSABLE[name]}; {can}")
    raise BackboneError(f"{part}: an encoder of model_type {name!r} is not known here; {can}")


def _usable(encoder: Encoder, config: Mapping[str, Any], part: str) -> Encoder:
    """Raises: BackboneError: settings under which the architecture is no encoder any more."""
    if config.get("is_decoder") or config.get("is_encoder_decoder"):
        raise BackboneError(f"{part}: config.json says is_decoder: it reads no text as a whole, take an encoder")
    return encoder
