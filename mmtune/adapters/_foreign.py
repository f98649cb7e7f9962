"""Adapters that peft made elsewhere: to be evaluated and merged, not trained on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.adapters._adapted import Adapted
from mmtune.adapters._peft_warnings import old_names_allowed
from mmtune.adapters._storage import ADAPTER_WEIGHTS, differences, peft_tensors
from mmtune.ground.errors import CheckpointError
from mmtune.ground.safe_files import load_tensors

if TYPE_CHECKING:
    from mmtune.backbones import Backbone

REPEATABLE_STARTS = (True, False, "gaussian", "orthogonal", "eva", "olora", "pissa")
"""Values of ``init_lora_weights`` whose effect on the base weights is none or the same each time."""


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
    start = config.get("init_lora_weights", True)
    if start not in REPEATABLE_STARTS:
        raise CheckpointError(
            f"{folder}: init_lora_weights {start!r} changes the base weights in a way that loading does not repeat; "
            "convert the adapter with save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    read = load_tensors(folder / ADAPTER_WEIGHTS)
    try:
        with old_names_allowed():
            peft_model = PeftModel.from_pretrained(backbone.model, str(folder), is_trainable=False)
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{folder} does not fit {backbone.section.id}: {error}") from error
    adapted = Adapted(backbone, peft_model=peft_model)
    lines = differences(read, peft_tensors(adapted))
    if lines:
        raise CheckpointError(f"{folder} does not fit {backbone.section.id}:\n" + "\n".join(lines))
    backbone.model.eval().requires_grad_(False)
    return adapted
