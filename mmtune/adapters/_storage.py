"""What was trained, as files: peft's plain format for lora, plain safetensors for the rest.

``adapter/adapter_model.safetensors`` + ``adapter/adapter_config.json`` (lora), ``trained.safetensors`` (head_only,
full; names of the model), ``temperature.safetensors`` (whenever it is trained).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.adapters._adapted import TEMPERATURE, Adapted
from mmtune.ground.errors import CheckpointError
from mmtune.ground.safe_files import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED_FILE = "trained.safetensors"
TEMPERATURE_FILE = "temperature.safetensors"


def save(adapted: Adapted, folder: Path) -> None:
    """Write everything that is trained into ``folder``; float32, names and values as ``restore`` reads them."""
    for path, tensors in _files(adapted).items():
        save_tensors(folder / path, tensors)
    if adapted.peft_model is not None:
        _write_config(adapted, folder / ADAPTER_FOLDER)


def restore(adapted: Adapted, folder: Path) -> None:
    """Read back what ``save`` wrote, bit for bit, into a model with the same adapter attached.

    Raises:
        CheckpointError: a file is missing, or names or shapes differ from what this adapter trains.
    """
    import torch

    wanted = _files(adapted)
    problems = []
    read: dict[str, dict[str, Tensor]] = {}
    for path, tensors in wanted.items():
        if not (folder / path).is_file():
            problems.append(f"{folder / path} is missing")
            continue
        read[path] = load_tensors(folder / path)
        problems += [f"{folder / path}: {line}" for line in differences(read[path], tensors)]
    if problems:
        raise CheckpointError("the checkpoint does not fit this adapter:\n" + "\n".join(problems))
    with torch.no_grad():
        for path, tensors in wanted.items():
            for name, tensor in tensors.items():
                tensor.copy_(read[path][name])


def differences(read: "Mapping[str, Tensor]", wanted: "Mapping[str, Tensor]") -> list[str]:
    """Missing names, unexpected names and unequal shapes, one line each."""
    lines = []
    for title, names in [("missing", set(wanted) - set(read)), ("unexpected", set(read) - set(wanted))]:
        if names:
            shown = sorted(names)
            lines.append(f"{len(names)} {title}: {', '.join(shown[:4])}{', ...' if len(shown) > 4 else ''}")
    for name in sorted(set(wanted) & set(read)):
        if read[name].shape != wanted[name].shape:
            lines.append(f"{name} has shape {tuple(read[name].shape)}, not {tuple(wanted[name].shape)}")
    return lines


def _files(adapted: Adapted) -> "dict[str, dict[str, Tensor]]":
    """File -> name in the file -> the live tensor (sharing memory with the model)."""
    trained = adapted.trainable()
    temperature = {name: value.data for name, value in trained.items() if adapted.part_of[name] == TEMPERATURE}
    files: dict[str, dict[str, Tensor]] = {}
    if adapted.peft_model is not None:
        files[f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}"] = peft_tensors(adapted)
    else:
        files[TRAINED_FILE] = {name: value.data for name, value in trained.items() if name not in temperature}
    if temperature:
        files[TEMPERATURE_FILE] = temperature
    return files


def peft_tensors(adapted: Adapted) -> "dict[str, Tensor]":
    """The adapter's live tensors under the names that peft gives them in its files."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(adapted.peft_model, save_embedding_layers=False)
    return tensors


def _write_config(adapted: Adapted, folder: Path) -> None:
    """adapter_config.json as ``PeftModel.save_pretrained`` writes it, without its empty model card."""
    import copy

    config = copy.copy(adapted.peft_model.peft_config["default"])
    config.inference_mode = True
    model_class = type(adapted.model)
    library = {"base_model_class": model_class.__name__, "parent_library": model_class.__module__}
    config.save_pretrained(str(folder), auto_mapping_dict=library)
