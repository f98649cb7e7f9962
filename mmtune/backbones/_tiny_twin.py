"""A family's tiny twin as an ordinary model folder: same architecture, random weights, real processor classes."""

from pathlib import Path

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
