"""A family's tiny twin as an ordinary model folder: same architecture, random weights, real processor classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.backbones._describing import describe
from mmtune.backbones._family import Description, Section
from mmtune.backbones._hub_files import UnreachableError
from mmtune.ground.errors import BackboneError
from mmtune.ground.kind_folder import kinds


def tiny_folder(
    family: str, folder: str | Path, *, model_type: str | None = None, architecture: str | None = None
) -> Path:
    """Write the tiny twin of a family as transformers would save it (fp32 safetensors, processor, tokenizer).

    Args:
        family: the family's name, such as ``"clip"``.
        folder: created where it does not exist.
        model_type: which of the family's model types; the first by default.
        architecture: which class of transformers, where one model type stands for several; the family's own default.

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
        wanted = (
            {"architecture": architecture} if architecture and hasattr(families[family], "architecture_for") else {}
        )
        model, processor = families[family].tiny(model_type or model_types[0], **wanted)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return Path(folder)


def tiny_section(section: Section, folder: str | Path, *, task: str = "") -> Section:
    """Write the tiny twin of what a recipe names, and give the section that loads it instead (precision is kept).

    The family is ``section.family``, else that of its config.json, which must then be within reach. Where a family has
    several classes and no config.json says which, it is the one that is made for the task (its name in recipes).

    Raises:
        BackboneError: config.json is out of reach, or no family answers for it.
    """
    if section.id is None:
        return _tiny_pair(section, Path(folder))
    if section.family is not None:
        _tiny_of_family(section, folder, task)
    else:
        _tiny_like(describe(section), Path(folder))
    unset = {"family": None, "revision": None, "allow_pickle": False, "trust_remote_code": False, "image": None}
    return section.model_copy(update={"id": str(folder), **unset})


def _tiny_of_family(section: Section, folder: str | Path, task: str) -> None:
    """The twin of a family that the recipe names: nothing is fetched to see which class the real config.json names."""
    family, model_type = _named(str(section.family))
    architecture_for = getattr(kinds("backbones").get(family), "architecture_for", None)
    if architecture_for is not None and Path(str(section.id)).is_dir():
        _tiny_like(describe(section), Path(folder))
        return
    architecture = architecture_for(task) if architecture_for is not None and task else None
    tiny_folder(family, folder, model_type=model_type, architecture=architecture)


def _named(name: str) -> tuple[str, str | None]:
    """The family that a recipe names, by its own name or by one of its model types; what is neither stays a family."""
    families = kinds("backbones")
    of_type = next((family for family, module in families.items() if name in module.FAMILY.model_types), None)
    return (name, None) if name in families or of_type is None else (of_type, name)


def _tiny_like(description: Description, folder: Path) -> None:
    """The twin of a described backbone; of a dual encoder with the kinds of encoders that it has."""
    from mmtune.backbones._quiet_loading import quiet
    from mmtune.backbones._tiny_encoders import tiny_dual_encoder

    name, like = description.traits.name, getattr(description.family, "tiny_for", None)
    if like is not None:
        with quiet():
            for each in like(description.config):
                each.save_pretrained(folder)
        return
    if name != "dual_encoder":
        named = description.config.get("architectures") or [None]
        tiny_folder(name, folder, model_type=description.config["model_type"], architecture=named[0])
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
