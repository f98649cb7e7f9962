"""A family's tiny twin as an ordinary model folder: same architecture, random weights, real processor classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.backbones._describing import describe
from mmtune.backbones._family import Description, Section
from mmtune.backbones._hub_files import UnreachableError
from mmtune.ground.errors import BackboneError
from mmtune.ground.kind_folder import kinds


def tiny_folder(family: str, folder: str | Path, *, model_type: str | None = None) -> Path:
    """Write the tiny twin of a family as transformers would save it (fp32 safetensors, processor, tokenizer).

    Args:
        family: the family's name, such as ``"clip"``.
        folder: created where it does not exist.
        model_type: which of the family's architectures; the first by default.

    Raises:
        BackboneError: there is no such family or model type.
    """
    from mmtune.backbones._quiet_loading import quiet

    families = kinds("backbones")
    if family not in families:
        raise BackboneError(f"there is no backbone family {family!r}; there are {', '.join(families)}")
    model_types = families[family].FAMILY.model_types
    if model_type is not None and model_type not in model_types:
        raise BackboneError(f"family {family!r} has no model type {model_type!r}; it has {', '.join(model_types)}")
    with quiet():
        model, processor = families[family].tiny(model_type or model_types[0])
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return Path(folder)


def tiny_section(section: Section, folder: str | Path) -> Section:
    """Write the tiny twin of what a recipe names, and give the section that loads it instead (precision is kept).

    The family is ``section.family``, else that of its config.json, which must then be within reach.

    Raises:
        BackboneError: config.json is out of reach, or no family answers for it.
    """
    if section.id is None:
        return _tiny_pair(section, Path(folder))
    if section.family is not None:
        tiny_folder(section.family, folder)
    else:
        _tiny_like(describe(section), Path(folder))
    unset = {"family": None, "revision": None, "allow_pickle": False, "trust_remote_code": False}
    return section.model_copy(update={"id": str(folder), **unset})


def _tiny_like(description: Description, folder: Path) -> None:
    """The twin of a described backbone; of a dual encoder with the kinds of encoders that it has."""
    from mmtune.backbones._quiet_loading import quiet
    from mmtune.backbones._tiny_encoders import tiny_dual_encoder

    name = description.traits.name
    if name != "dual_encoder":
        tiny_folder(name, folder, model_type=description.config["model_type"])
        return
    with quiet():
        made: tuple[Any, Any] = tiny_dual_encoder(*_kinds_of_encoders(description.config))
        for each in made:
            each.save_pretrained(folder)


def _kinds_of_encoders(config: Mapping[str, Any]) -> tuple[str, str]:
    return config["vision_config"]["model_type"], config["text_config"]["model_type"]


def _tiny_pair(section: Section, folder: Path) -> Section:
    """Two tiny encoders of the kinds that the recipe pairs; of ViT and BERT where their config.json is out of reach."""
    from mmtune.backbones._tiny_encoders import tiny_pair

    try:
        vision, text = _kinds_of_encoders(describe(section).config)
    except UnreachableError:
        vision, text = "vit", "bert"
    unset = {"vision_revision": None, "text_revision": None, "family": None, "allow_pickle": False}
    return section.model_copy(update={**tiny_pair(vision, text, folder), **unset})
