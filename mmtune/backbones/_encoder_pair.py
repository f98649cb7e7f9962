"""Two encoders as one two-tower model: its config from theirs, their weights, and what is drawn for the rest.

What no checkpoint holds (both projections, and a pooler that was not kept) is drawn from a fixed seed: a function of
the tensors' shapes alone, so the model is the same wherever and whenever it is loaded.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _hub_files as hub
from mmtune.backbones._attention import attention_options
from mmtune.backbones._encoder_table import INSIDE, find_encoder
from mmtune.backbones._family import Description, Place
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "vision-text-dual-encoder"
PROJECTION_DIM = 512
SEED = 0

PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
FRESH_POOLER = r"pooler\.dense\.(weight|bias)"
"""What a checkpoint of an encoder may lack: fine-tuned and masked-language checkpoints come without their pooler."""

FOREIGN = r"(cls|lm_head|lm_loss|classifier|qa_outputs|.*_classifier|decoder|mask_token|.*position_ids)(\..*)?"
OTHER_TOWER = {
    "vision": r"text_model\..*|(visual|text)_projection\.weight|logit_(scale|bias)",
    "text": r"vision_model\..*|(visual|text)_projection\.weight|logit_(scale|bias)",
}
"""What a checkpoint of an encoder may hold beside it: what it was trained with, or the other tower."""

CONVNEXT_WIDTHS = (96, 192, 384, 768)
"""What transformers takes where config.json says nothing."""

NOT_CONFIG = ("quantization_config", "dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path")


def config_of(encoders: Mapping[str, Place], projection_dim: int | None) -> dict[str, Any]:
    """config.json of the model that two encoders become.

    Raises:
        BackboneError: one of them is no encoder of its part.
    """
    config: dict[str, Any] = {"model_type": MODEL_TYPE, "projection_dim": projection_dim or PROJECTION_DIM}
    problems = []
    for part, place in encoders.items():
        config[f"{part}_config"] = tower_config(place.config, part)
        try:
            find_encoder(config[f"{part}_config"], part)
        except BackboneError as error:
            problems.append(f"{place.id!r} cannot be its {error}")
    if problems:
        raise BackboneError("\n".join(problems))
    return config


def tower_config(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The config of one encoder; of a model with two towers, that of the tower that is taken."""
    inside = INSIDE[part].get(str(config.get("model_type")))
    if inside is not None:
        older = config.get(f"{part}_config_dict")
        config = {**(older if older is not None else config.get(f"{part}_config") or {}), "model_type": inside}
    kept = {key: value for key, value in config.items() if key not in NOT_CONFIG}
    if "hidden_size" not in kept and str(kept.get("model_type")).startswith("convnext"):
        widths = kept.get("hidden_sizes") or CONVNEXT_WIDTHS
        kept["hidden_size"] = widths[-1]  # of its pooled state, under the name that is read
    return kept


def load_pair(description: Description, device: str, dtype: "torch.dtype") -> tuple[Any, tuple[str, ...]]:
    """The model on its device, and the names of what was drawn.

    Args:
        description: of a pair.
        device: where it goes.
        dtype: of everything that is not quantized.

    Raises:
        BackboneError: an encoder does not load, or lacks more than its pooler.
    """
    import torch
    import transformers

    from mmtune.backbones._quiet_loading import quiet

    towers, missing = {}, []
    for part, place in description.encoders.items():
        towers[part], lacks = _load_encoder(description, part, place, device, dtype)
        missing += [f"{part}_model.{name}" for name in lacks]
    config = transformers.VisionTextDualEncoderConfig.from_dict(description.config)
    with quiet(), torch.random.fork_rng(devices=[]):
        model = transformers.VisionTextDualEncoderModel(
            config, vision_model=towers["vision"], text_model=towers["text"]
        )
    for name in ("visual_projection", "text_projection"):
        model.get_submodule(name).to(device=device, dtype=dtype)
    model.logit_scale.data = model.logit_scale.data.to(device=device, dtype=dtype)
    fresh = (*PROJECTIONS, *missing)
    draw(model, fresh)
    if description.section.quantize is not None:
        _note_quantization(model, towers["vision"])
    return model, fresh


def draw(model: Any, names: tuple[str, ...]) -> None:
    """Set the named parameters in place to what ``drawn`` gives for their shapes."""
    for name, values in zip(names, drawn([model.get_parameter(name).shape for name in names]), strict=True):
        model.get_parameter(name).data.copy_(values)


def drawn(shapes: "Iterable[torch.Size]") -> "list[torch.Tensor]":
    """New tensors, float32: matrices normal with variance 1 / inputs, vectors zero.

    The values depend on the shapes and their order alone, and of two tensors of one shape each has its own.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    return [
        torch.randn(shape, generator=generator) / shape[-1] ** 0.5 if len(shape) > 1 else torch.zeros(shape)
        for shape in shapes
    ]


def weight_names(description: Description) -> set[str]:
    """The names that the model's weights have in a checkpoint, from its config alone."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    from mmtune.backbones._quiet_loading import quiet

    config = transformers.VisionTextDualEncoderConfig.from_dict(description.config)
    with quiet(), torch.device("meta"):
        model = transformers.VisionTextDualEncoderModel(config)
        return set(revert_weight_conversion(model, model.state_dict()))


def load_processor(description: Description) -> Any:
    """The image processor of one repository and the tokenizer of the other, as one processor."""
    import transformers

    vision, text = (str(description.encoders[part].folder) for part in ("vision", "text"))
    options = {"trust_remote_code": False, "local_files_only": True}
    return transformers.VisionTextDualEncoderProcessor(
        image_processor=transformers.AutoImageProcessor.from_pretrained(vision, backend="pil", **options),
        tokenizer=transformers.AutoTokenizer.from_pretrained(text, **options),
    )


def _load_encoder(
    description: Description, part: str, place: Place, device: str, dtype: "torch.dtype"
) -> tuple[Any, list[str]]:
    """One encoder, and the names of its pooler's weights where the checkpoint lacks them."""
    import pickle

    import transformers
    from safetensors import SafetensorError

    from mmtune.backbones._quiet_loading import quiet

    taken = description.config[f"{part}_config"]["model_type"]
    classes = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}
    loader = getattr(transformers, {**classes, "clip_text_model": "CLIPTextModel"}.get(taken, "AutoModel"))
    options: dict[str, Any] = {"dtype": dtype, **attention_options(place.section, device)}
    if place.section.quantize is not None:
        from mmtune.backbones import _quantization

        kept = ("pooler", *find_encoder(description.config[f"{part}_config"], part).kept)
        alone = dataclasses.replace(description.traits, full_precision=kept)
        options |= _quantization.load_options(place.section, alone, dtype, device)
    files = hub.weight_files_at(place)
    with quiet():
        try:
            tower, report = loader.from_pretrained(
                str(place.folder),
                use_safetensors=files[0].suffix == ".safetensors",
                weights_only=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report names them; _check_encoder refuses them
                **options,
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, pickle.UnpicklingError) as error:
            raise BackboneError(f"backbone {description.id!r}: {part} {place.id!r} does not load: {error}") from error
    two_towers = place.config.get("model_type") in INSIDE[part]
    beside = f"{FOREIGN}|{OTHER_TOWER[part]}" if two_towers else FOREIGN
    lacks = _check_encoder(f"backbone {description.id!r}: {part} {place.id!r}", beside, report)
    return (tower if place.section.quantize is not None else tower.to(device)), lacks


def _check_encoder(name: str, beside: str, report: Mapping[str, Any]) -> list[str]:
    """The pooler's weights that are missing, sorted; ``beside`` is a pattern of what the files may hold beside it.

    Raises:
        BackboneError: anything else is missing, has another shape or is not known.
    """
    lacks = sorted(key for key in report["missing_keys"] if re.fullmatch(FRESH_POOLER, key))
    missing = sorted(set(report["missing_keys"]) - set(lacks))
    unexpected = sorted(key for key in report["unexpected_keys"] if not re.fullmatch(beside, key))
    shapes = sorted(str(each[0]) for each in report.get("mismatched_keys") or [])
    lines = [
        f"{what}: {', '.join(keys[:12])}{', ...' if len(keys) > 12 else ''}"
        for what, keys in [
            ("the files lack weights that it needs", missing),
            ("the files hold weights that it does not have", unexpected),
            ("weights have other shapes than config.json says", shapes),
        ]
        if keys
    ]
    if lines:
        raise BackboneError(f"{name}: " + "; ".join(lines))
    return lacks


def _note_quantization(model: Any, tower: Any) -> None:
    """Say of the whole what transformers notes on a quantized model: peft and accelerate look there."""
    names = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "hf_device_map")
    for name in (*names, "is_quantized"):
        if hasattr(tower, name):
            setattr(model, name, getattr(tower, name))
