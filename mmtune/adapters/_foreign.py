"""Adapters that peft made elsewhere: to be evaluated and merged, not trained on.

Plain tensors that lie beside one (``trained.safetensors``, ``temperature.safetensors``, as ``push`` lays them) belong
to it, and those beside a folder ``adapter``, as a checkpoint lays them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.adapters._adapted import Adapted, fresh_names
from mmtune.adapters._peft_limits import NO_PROMPTS
from mmtune.adapters._peft_warnings import old_names_allowed
from mmtune.adapters._storage import (
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    TEMPERATURE_FILE,
    TRAINED_FILE,
    differences,
    peft_tensors,
)
from mmtune.ground.errors import CheckpointError
from mmtune.ground.safe_files import load_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.backbones import Backbone

HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base weights alone."""

REPEATABLE_STARTS = (*HARMLESS_STARTS, "olora", "pissa")
"""Those whose effect on the base weights is none or the same each time."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a peft folder.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no peft adapter: it has no adapter_config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return config


def attach_foreign(backbone: "Backbone", folder: Path) -> Adapted:
    """Put a peft adapter folder into its backbone, frozen.

    Raises:
        CheckpointError: no adapter there, no safetensors, a method that peft cannot reload, or weights that do not
            fit this backbone (peft alone would only warn).
    """
    from peft import PeftModel

    config = read_adapter_config(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_WEIGHTS}; save it with PeftModel.save_pretrained")
    _refuse_method(config.get("peft_type"), folder)
    start = config.get("init_lora_weights", True)
    if start not in REPEATABLE_STARTS:
        raise CheckpointError(
            f"{folder}: init_lora_weights {start!r} changes the base weights in a way that loading does not repeat; "
            "convert the adapter with save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    read = read_tensors(folder / ADAPTER_WEIGHTS)
    plain = _read_plain(backbone, folder)
    _refuse_without_fresh(backbone, folder, {**read, **{f".{name}": value for name, value in plain.items()}})
    leaves_all = start in HARMLESS_STARTS and config.get("bias", "none") == "none"
    untouched = {} if leaves_all else _copy_weights(backbone)
    try:
        with old_names_allowed():
            peft_model = PeftModel.from_pretrained(backbone.model, str(folder), is_trainable=False)
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{folder} does not fit {backbone.section.name}: {error}") from error
    adapted = Adapted(backbone, peft_model=peft_model)
    lines = differences(read, peft_tensors(adapted))
    if lines:
        raise CheckpointError(f"{folder} does not fit {backbone.section.name}:\n" + "\n".join(lines))
    _take_plain(adapted, plain)
    adapted.start |= {name: value for name, value in untouched.items() if _was_changed(adapted, name, value)}
    backbone.model.eval().requires_grad_(False)
    return adapted


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """A safetensors file that nobody has checked.

    Raises:
        CheckpointError: it is damaged, or none.
    """
    from safetensors import SafetensorError

    try:
        return load_tensors(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _refuse_method(name: object, folder: Path) -> None:
    """See that peft knows the method, and that it lies in the layers.

    Raises:
        CheckpointError: it does not.
    """
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as THERE

    made = {str(one.value): config for one, config in THERE.items()}.get(str(name))
    path = folder / "adapter_config.json"
    if made is None:
        raise CheckpointError(f"{path} names the method {name!r}, which the installed peft does not have")
    if issubclass(made, PromptLearningConfig):
        raise CheckpointError(f"{path}: {name} is refused: {NO_PROMPTS}")


def _copy_weights(backbone: "Backbone") -> "dict[str, Tensor]":
    """Copies on the CPU, where loading changes the base's own tensors (a start in the weights, biases trained in
    place): the line of ``merge --scale`` begins at these.
    """
    return {name: value.detach().cpu().clone() for name, value in backbone.model.named_parameters()}


def _was_changed(adapted: Adapted, name: str, before: "Tensor") -> bool:
    import torch

    owner, _, own = name.rpartition(".")
    module: Any = adapted.model.get_submodule(owner)
    now = getattr(getattr(module, "base_layer", module), own, None)
    return now is not None and not torch.equal(now.detach().cpu(), before)


def _read_plain(backbone: "Backbone", folder: Path) -> "dict[str, Tensor]":
    """What lies beside the adapter, or beside its folder in a checkpoint, under names of the model.

    Raises:
        CheckpointError: names or shapes that the model does not have.
    """
    parameters = dict(backbone.model.named_parameters())
    found: dict[str, Tensor] = {}
    places = [folder, folder.absolute().parent] if folder.absolute().name == ADAPTER_FOLDER else [folder]
    for path in (place / name for name in (TRAINED_FILE, TEMPERATURE_FILE) for place in reversed(places)):
        tensors = read_tensors(path) if path.is_file() else {}
        lines = differences(tensors, {name: parameters[name] for name in tensors if name in parameters})
        if lines:
            raise CheckpointError(f"{path} does not fit {backbone.section.name}:\n" + "\n".join(lines))
        found |= tensors
    return found


def _take_plain(adapted: Adapted, plain: "Mapping[str, Tensor]") -> None:
    """Put the plain tensors into the model; the temperature is float32 whatever the backbone is held in."""
    parameters = dict(adapted.model.named_parameters())
    for name, value in plain.items():
        adapted.start[name] = parameters[name].detach().cpu().clone()
        if name in adapted.backbone.traits.temperature:
            parameters[name].data = parameters[name].data.float()
        parameters[name].data.copy_(value)


def _refuse_without_fresh(backbone: "Backbone", folder: Path, read: "Mapping[str, Tensor]") -> None:
    """See that the adapter brings what no checkpoint of its backbone holds.

    Raises:
        CheckpointError: it does not, so that the model would keep weights drawn at random.
    """
    missing = [name for name in fresh_names(backbone) if not any(key.endswith(f".{name}") for key in read)]
    if missing:
        raise CheckpointError(
            f"{folder} holds no {', '.join(missing)}: no checkpoint of {backbone.section.name} has them, they are "
            "drawn at random and trained with the adapter. Name the run or its checkpoint instead of the adapter "
            "folder, or save the adapter with these modules in peft's modules_to_save"
        )
