"""What was trained, as files: peft's plain format for what peft added, plain safetensors for the rest.

``adapter/adapter_model.safetensors`` + ``adapter/adapter_config.json`` (lora and its like), ``trained.safetensors``
(plain tensors under the model's names: heads, parts, norms, a dual encoder's new projections),
``temperature.safetensors`` (whenever it is trained).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmtune.adapters._adapted import TEMPERATURE, Adapted, plain_names
from mmtune.adapters._lora_start import INITIAL, JOINED_AT, as_plain_lora, has_initial
from mmtune.ground.errors import CheckpointError
from mmtune.ground.safe_files import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED_FILE = "trained.safetensors"
TEMPERATURE_FILE = "temperature.safetensors"
MOST_SHAPES = 3
"""Unequal shapes that a message lists."""


class Stored(NamedTuple):
    """A tensor of a file: live tensors of the model, joined in one dimension where there are several."""

    pieces: "list[Tensor]"
    dim: int = 0

    def whole(self) -> "Tensor":
        """As it stands in the file; a single piece shares memory with the model."""
        import torch

        return self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces, self.dim)

    def take(self, whole: "Tensor") -> None:
        """The inverse: copy it into the live tensors."""
        sizes = [piece.shape[self.dim] for piece in self.pieces] if len(self.pieces) > 1 else []
        parts = whole.split(sizes, self.dim) if sizes else [whole]
        for piece, part in zip(self.pieces, parts, strict=True):
            piece.copy_(part)


def save(adapted: Adapted, folder: Path) -> None:
    """Write everything that is trained into ``folder``; float32, names and values as ``restore`` reads them."""
    for path, stored in stored_files(adapted).items():
        save_tensors(folder / path, {name: one.whole() for name, one in stored.items()})
    if adapted.peft_model is not None:
        _write_config(adapted, folder / ADAPTER_FOLDER)


def restore(adapted: Adapted, folder: Path) -> None:
    """Read back what ``save`` wrote, bit for bit, into a model with the same adapter attached.

    Raises:
        CheckpointError: a file is missing, or names or shapes differ from what this adapter trains.
    """
    import torch

    wanted = stored_files(adapted)
    problems = []
    read: dict[str, dict[str, Tensor]] = {}
    for path, stored in wanted.items():
        if not (folder / path).is_file():
            problems.append(f"{folder / path} is missing")
            continue
        read[path] = load_tensors(folder / path)
        whole = {name: one.whole() for name, one in stored.items()}
        problems += [f"{folder / path}: {line}" for line in differences(read[path], whole)]
    if problems:
        raise CheckpointError("the checkpoint does not fit this adapter:\n" + "\n".join(problems))
    with torch.no_grad():
        for path, stored in wanted.items():
            for name, one in stored.items():
                one.take(read[path][name])


def differences(read: "Mapping[str, Tensor]", wanted: "Mapping[str, Tensor]") -> list[str]:
    """Missing names, unexpected names and unequal shapes, one line each."""
    lines = []
    for title, names in [("missing", set(wanted) - set(read)), ("unexpected", set(read) - set(wanted))]:
        if names:
            shown = sorted(names)
            lines.append(f"{len(names)} {title}: {', '.join(shown[:4])}{', ...' if len(shown) > 4 else ''}")
    unlike = [name for name in sorted(set(wanted) & set(read)) if read[name].shape != wanted[name].shape]
    for name in unlike[:MOST_SHAPES]:
        lines.append(f"{name} has shape {tuple(read[name].shape)}, not {tuple(wanted[name].shape)}")
    if len(unlike) > MOST_SHAPES:
        lines.append(f"and {len(unlike) - MOST_SHAPES} more of another shape")
    return lines


def stored_files(adapted: Adapted) -> dict[str, dict[str, Stored]]:
    """File -> name in the file -> what of the model it holds."""
    trained = adapted.trainable()
    files: dict[str, dict[str, Stored]] = {}
    if adapted.peft_model is not None:
        files[f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}"] = _peft_stored(adapted)
    for name in plain_names(adapted):
        file = TEMPERATURE_FILE if adapted.part_of[name] == TEMPERATURE else TRAINED_FILE
        files.setdefault(file, {})[name] = Stored([trained[name].data])
    return files


def _peft_stored(adapted: Adapted) -> dict[str, Stored]:
    of_adapters = [peft_tensors(adapted)]
    if has_initial(adapted.peft_model):
        of_adapters.append(peft_tensors(adapted, INITIAL))
    return {
        name: Stored([each[name] for each in of_adapters], JOINED_AT.get(name.split(".")[-2], 0))
        for name in of_adapters[0]
    }


def peft_tensors(adapted: Adapted, adapter: str = "default") -> "dict[str, Tensor]":
    """An adapter's live tensors under the names that peft gives them in its files."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        adapted.peft_model, adapter_name=adapter, save_embedding_layers=False
    )
    return tensors


def stored_config(adapted: Adapted) -> Any:
    """peft's config of what the adapter's file holds."""
    import copy

    config = copy.copy(adapted.peft_model.peft_config["default"])
    config.inference_mode = True
    return as_plain_lora(config) if has_initial(adapted.peft_model) else config


def _write_config(adapted: Adapted, folder: Path) -> None:
    """adapter_config.json as ``PeftModel.save_pretrained`` writes it, without its empty model card."""
    config = stored_config(adapted)
    model_class = type(adapted.model)
    library = {"base_model_class": model_class.__name__, "parent_library": model_class.__module__}
    config.save_pretrained(str(folder), auto_mapping_dict=library)
