"""How many bytes each part of a backbone takes at each precision: from config.json alone, before any weight is there.

Activations and the libraries' own memory come on top; they depend on the batch and are not counted here.
Formulas, for a layer of n weights with o outputs: 8 bit takes n + 4 o bytes (one scale per output); 4 bit takes n / 2
and a scale per 64 weights, 4 bytes each, or with double quantization 1 byte each and 4 per 256 of them.
Source: as ``backbones/_quantization.py``, and what bitsandbytes holds, compared with it in the tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmtune.adapters import Adapted
    from mmtune.backbones import Description, Family

REST = "the rest"
"""What is counted under no part: word embeddings beside the towers, heads of other tasks, the temperature."""

NUM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

BLOCK, OUTER_BLOCK = 64, 256
"""Weights that share a scale in 4 bit, and scales that share one in double quantization."""

TABLE, OUTER_TABLE = 64, 1024 + 4
"""Bytes that every 4-bit layer holds: its 16 values; with double quantization the 256 of its scales, and their mean."""

SMALLEST_8BIT = 4096
"""Tensors of fewer values keep the 8-bit optimizers' averages in 32 bit."""


@dataclass(frozen=True)
class PartSize:
    """One part of a backbone.

    Attributes:
        part: its name, or ``REST``.
        num_weights: all its weights.
        num_quantized: those that 8 bit and 4 bit hold in fewer bits; the others keep the backbone's dtype.
        num_bytes: setting (a dtype, ``8bit``, ``4bit``) -> bytes; what does not work is left out.
    """

    part: str
    num_weights: int
    num_quantized: int
    num_bytes: Mapping[str, int]


@dataclass(frozen=True)
class TrainedSize:
    """What training one part adds, in bytes.

    Attributes:
        weights: new ones of the adapter (0 where the backbone's own are trained).
        gradients: of everything trained.
        states: the optimizer's averages.
    """

    part: str
    weights: int
    gradients: int
    states: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.states


def empty_model(description: "Description") -> "nn.Module":
    """The model as its class makes it from config.json, on torch's meta device: shapes without values.

    Raises:
        BackboneError: transformers' class cannot be made from this config.json.
    """
    import torch
    import transformers

    from mmtune.backbones._quiet_loading import quiet
    from mmtune.ground.errors import BackboneError

    trust = description.section.trust_remote_code
    with quiet(), torch.device("meta"):
        try:
            if trust:
                config = transformers.AutoConfig.from_pretrained(
                    str(description.folder), local_files_only=True, trust_remote_code=True
                )
            else:
                config = transformers.CONFIG_MAPPING[description.config["model_type"]].from_dict(description.config)
            made: Any = getattr(transformers, description.traits.auto_class)
            options = {"trust_remote_code": True} if trust else {}
            model: Any = made.from_config(config, **options) if hasattr(made, "from_config") else made(config)
        except (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, ImportError) as error:
            raise BackboneError(f"backbone {description.id!r}: its class takes no such config: {error}") from error
    if hasattr(description.family, "after_loading"):
        description.family.after_loading(model)
    empty: nn.Module = model.requires_grad_(False).eval()
    return empty


def part_sizes(model: "nn.Module", description: "Description") -> list[PartSize]:
    """The parts in the family's order, then ``REST``, each in every setting.

    8 bit and 4 bit are with the recipe's dtype for what is not quantized; the recipe also says whether 4 bit is with
    double quantization. A tensor that is held twice counts once.
    """
    section, traits = description.section, description.traits
    counted: dict[str, list[tuple[Tensor, bool, int]]] = {}
    for name, value, is_quantized in _weights(model, traits):
        kept_wide = section.dtype == "float16" and _is_kept_in_float32(model, name)
        rest = 4 if kept_wide else NUM_BYTES[section.dtype]
        counted.setdefault(_part_of(name, traits), []).append((value, is_quantized, rest))
    double = section.double_quantization
    sizes = []
    for part in (part for part in (*traits.parts, REST) if part in counted):
        rows = counted[part]
        total = sum(value.numel() for value, _, _ in rows)
        settings = {name: total * width for name, width in NUM_BYTES.items()}
        if section.dtype == "float16":
            settings["float16"] = sum(value.numel() * rest for value, _, rest in rows)
        for quantize, size in (("8bit", _in_8bit), ("4bit", _in_4bit_doubly if double else _in_4bit)):
            if quantize not in traits.unquantizable:
                settings[quantize] = sum(
                    size(v) if is_quantized else v.numel() * rest for v, is_quantized, rest in rows
                )
        num_quantized = sum(value.numel() for value, is_quantized, _ in rows if is_quantized)
        sizes.append(PartSize(part, total, num_quantized, settings))
    return sizes


def chosen_setting(section: Any) -> str:
    """The setting that a recipe's ``backbone`` section holds the model in: its ``quantize``, else its dtype."""
    return str(section.quantize or section.dtype)


def trained_sizes(adapted: "Adapted", optimizer: str) -> list[TrainedSize]:
    """What the adapter of a recipe adds per part, with an optimizer of its name (``adamw``, ``adamw_8bit``, ...)."""
    rows: dict[str, list[int]] = {}
    for name, value in adapted.trainable().items():
        size = value.numel() * value.element_size()
        row = rows.setdefault(adapted.part_of[name], [0, 0, 0])
        row[0] += 0 if name in adapted.start else size
        row[1] += size
        row[2] += state_bytes(value, optimizer)
    return [TrainedSize(part, *row) for part, row in rows.items()]


def state_bytes(value: "Tensor", optimizer: str) -> int:
    """Bytes of AdamW's two averages of one tensor: 4 each per value; in 8 bit 1 each, and 4 each per 256 values."""
    count = value.numel()
    if optimizer == "adamw" or count < SMALLEST_8BIT:
        return 2 * 4 * count
    return 2 * count + 2 * 4 * ceil(count / OUTER_BLOCK)


def in_words(num_bytes: float) -> str:
    """Bytes as people say them, in powers of 1000.

    >>> in_words(14_130_000_000), in_words(950_000), in_words(12)
    ('14.1 GB', '950.0 kB', '12 B')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def _weights(model: "nn.Module", traits: "Family") -> "list[tuple[str, Tensor, bool]]":
    """Every parameter once: its name, itself, and whether it is a weight that quantizing would take."""
    from mmtune.backbones._quantization import to_quantize

    taken = {f"{name}.weight" for name in to_quantize(model, traits)}
    return [(name, value, name in taken) for name, value in model.named_parameters()]


def _part_of(name: str, traits: "Family") -> str:
    from mmtune.adapters._targets import in_part

    return next((part for part in traits.parts if in_part(name, traits, part)), REST)


def _is_kept_in_float32(model: Any, name: str) -> bool:
    """Whether transformers widens a weight that is asked for in float16, whose range it leaves."""
    return bool(set(name.split(".")) & set(getattr(model, "_keep_in_fp32_modules", None) or ()))


def _in_8bit(weight: "Tensor") -> int:
    return weight.numel() + 4 * weight.shape[0]


def _in_4bit(weight: "Tensor") -> int:
    return ceil(weight.numel() / 2) + 4 * ceil(weight.numel() / BLOCK) + TABLE


def _in_4bit_doubly(weight: "Tensor") -> int:
    scales = ceil(weight.numel() / BLOCK)
    return ceil(weight.numel() / 2) + scales + 4 * ceil(scales / OUTER_BLOCK) + TABLE + OUTER_TABLE
