"""The values of an earlier adapter in a freshly attached one: what ``start_from`` loads before step 0."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.adapters._adapted import Adapted, fresh_names
from mmtune.adapters._foreign import HARMLESS_STARTS, read_adapter_config, read_tensors
from mmtune.adapters._storage import (
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    TEMPERATURE_FILE,
    TRAINED_FILE,
    Stored,
    differences,
    stored_config,
    stored_files,
)
from mmtune.ground.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

NO_MATTER = re.compile(
    r"base_model_name_or_path|revision|inference_mode|task_type|auto_mapping|peft_version|.*_modules|layers_.*|"
    r"modules_to_save|.*dropout.*|init.*|.*_config|r|rank_pattern|(lora_)?alpha|alpha_pattern|save_.*|.*_dtype"
)
"""Keys of adapter_config.json that do not change what the saved tensors mean, or are compared layer by layer."""

PER_LAYER = (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"), ("alpha", "alpha_pattern"))
"""Keys that a pattern may set for single layers."""

MOST_SHOWN = 8
"""Differences that a message lists."""


def load_earlier(adapted: Adapted, folder: Path, *, from_peft: bool) -> list[str]:
    """Load an earlier adapter's values; the model is then the one that the earlier adapter made of this backbone.

    Args:
        adapted: freshly attached.
        folder: a checkpoint folder, or with ``from_peft`` a folder that peft wrote.
        from_peft: which of the two.

    Returns:
        Lines that say what is trained and was not loaded.

    Raises:
        CheckpointError: names, shapes or the adapter's config differ; nothing has been changed then.
    """
    import torch

    wanted = stored_files(adapted)
    inside: Callable[[str], Path] = lambda path: folder / (Path(path).name if from_peft else path)  # noqa: E731
    problems = _file_problems(adapted, wanted, inside, folder)
    read: dict[str, dict[str, Tensor]] = {}
    for path, stored in wanted.items():
        if inside(path).is_file():
            read[path] = read_tensors(inside(path))
            whole = {name: one.whole() for name, one in stored.items()}
            problems += [f"{Path(path).name}: {line}" for line in differences(read[path], whole)]
    if adapted.peft_model is not None and f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}" in read:
        theirs = read_adapter_config(inside(f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}").parent)
        problems = [f"adapter_config.json: {line}" for line in config_differences(adapted, theirs)] + problems
    if problems:
        more = [f"and {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
        raise CheckpointError("\n".join([*problems[:MOST_SHOWN], *more]))
    with torch.no_grad():
        for path, values in read.items():
            for name, one in wanted[path].items():
                one.take(values[name])
    unread = [name for path, stored in wanted.items() if path not in read for name in stored]
    return [f"{', '.join(unread)}: not in it, begins at the backbone's value"] if unread else []


def _file_problems(
    adapted: Adapted, wanted: Mapping[str, dict[str, Stored]], inside: Callable[[str], Path], folder: Path
) -> list[str]:
    """Files that are missing, the temperature's excepted, or that hold what this recipe does not train."""
    found = []
    for path in (f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}", TRAINED_FILE, TEMPERATURE_FILE):
        there = inside(path).is_file()
        if path in wanted and not there and path != TEMPERATURE_FILE:
            fresh = [name for name in wanted[path] if name in fresh_names(adapted.backbone)]
            why = f" (it would hold {', '.join(fresh)}, which no checkpoint of this backbone has)" if fresh else ""
            found.append(f"{folder} has no {Path(path).name}{why}")
        elif there and path not in wanted:
            what = "write adapter.temperature: true" if path == TEMPERATURE_FILE else "this recipe trains none of it"
            found.append(f"{Path(path).name} was trained there; {what}")
    return found


def config_differences(adapted: Adapted, theirs: Mapping[str, Any]) -> list[str]:
    """What makes the same tensors another adapter: the method, scales and switches, one line each."""
    config = stored_config(adapted)
    ours = _plain(config.to_dict())
    if theirs.get("peft_type") != ours["peft_type"]:
        return [f"peft_type is {theirs.get('peft_type')} there, {ours['peft_type']} here"]
    start = theirs.get("init_lora_weights", True)
    if start not in HARMLESS_STARTS:
        return [f"init_lora_weights {start!r} changed the base weights there, which are not in the folder; convert it"]
    defaults = _plain(type(config)().to_dict())
    found = []
    for key, value in ours.items():
        other = theirs.get(key, defaults.get(key))
        if other != value and not NO_MATTER.fullmatch(key) and not _is_saved(key, ours, theirs):
            found.append(f"{key} is {other} there, {value} here")
    return found + _layer_differences(adapted, ours, theirs)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would hold them."""
    lists = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    return {key: getattr(value, "value", value) for key, value in lists.items()}


def _is_saved(key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """A seed matters only where what was drawn with it is not in the file."""
    drawn = key.endswith("prng_key") or key.endswith("seed")
    return drawn and bool(ours.get("save_projection") and theirs.get("save_projection"))


def _layer_differences(adapted: Adapted, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    found = []
    names = [name for names in adapted.modules.values() for name in names]
    for key, pattern in PER_LAYER:
        if key not in ours:
            continue
        for name in names:
            mine, other = (_of_layer(config, key, pattern, name) for config in (ours, theirs))
            if mine != other:
                found.append(f"{key} is {other} there, {mine} here (as saved, for {name})")
                break
    return found


def _of_layer(config: Mapping[str, Any], key: str, pattern: str, name: str) -> Any:
    from peft.utils.other import get_pattern_key

    patterns = config.get(pattern) or {}
    return patterns.get(get_pattern_key(patterns.keys(), name), config.get(key))
