"""Parameter groups for the optimizer: which learning rate and weight decay each trained tensor has.

Layer-wise decay: rate = learning_rate * decay^depth, counted from the top of a tower: what lies above its layers (last
norm, pooling head, projection) has depth 0, the last of L layers depth 1, the first L, the embeddings L + 1. A tower's
parts stand in the order in which the model registers them. The temperature is in no tower and keeps its rate.
Source: BEiT arXiv:2106.08254 and ELECTRA arXiv:2003.10555 (layer-wise decay), LoRA+ arXiv:2402.12354, section 4.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmtune.adapters._adapted import Adapted
from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

Rates = float | Mapping[str, float]
"""One learning rate, or one per part, ``default`` for the parts that are not named."""

MULTIPLIERS = ("ia3_l", "lora_magnitude_vector", "boft_s")
"""Modules of peft's whose weights multiply: decay would pull them to 0 and switch their layers off, not back."""


def optimizer_groups(
    adapted: Adapted, learning_rate: Rates, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups with ``params``, ``names``, ``lr`` and ``weight_decay``, in a stable order, none empty.

    No weight decay on temperature, biases and norms (tensors of at most one dimension), nor on what peft multiplies
    activations or weights by (``MULTIPLIERS``). LoRA+ multiplies the rate of B.

    Raises:
        RecipeError: rates per part that leave a trained part out, or name one that is not; layer-wise decay of a tower
            that has no list of layers.
    """
    ratio = getattr(adapted.section, "lora_plus_ratio", None) or 1.0
    rates = _rate_per_part(adapted, learning_rate)
    depths = layer_depths(adapted) if layer_decay is not None else {}
    members: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in adapted.trainable().items():
        rate = rates[adapted.part_of[name]] * (ratio if ".lora_B." in name else 1.0)
        if layer_decay is not None:
            rate *= layer_decay ** depths[name]
        decays = parameter.dim() > 1 and not any(f".{word}." in name for word in MULTIPLIERS)
        decay = weight_decay if decays else 0.0
        members.setdefault((rate, decay), []).append((name, parameter))
    return [
        {"params": [p for _, p in group], "names": [n for n, _ in group], "lr": rate, "weight_decay": decay}
        for (rate, decay), group in members.items()
    ]


def _rate_per_part(adapted: Adapted, learning_rate: Rates) -> dict[str, float]:
    parts = dict.fromkeys(adapted.part_of.values())
    if not isinstance(learning_rate, Mapping):
        return dict.fromkeys(parts, learning_rate)
    default = learning_rate.get("default")
    missing = [part for part in parts if part not in learning_rate]
    if missing and default is None:
        raise RecipeError(f"train.learning_rate: {', '.join(missing)} is trained too; name it, or give a default")
    unused = [name for name in learning_rate if name not in (*parts, "default")]
    if unused:
        raise RecipeError(f"train.learning_rate: {', '.join(unused)} is not trained here; delete it")
    return {part: learning_rate[part] if part in learning_rate else float(default or 0.0) for part in parts}


def layer_depths(adapted: Adapted) -> dict[str, int]:
    """Name of a trained parameter -> its depth below the top of its tower, 0 for what is in no tower.

    Raises:
        RecipeError: something is trained inside a tower that has no list of layers (its stages have several).
    """
    traits = adapted.backbone.traits
    flat = [part for part in dict.fromkeys(adapted.part_of.values()) if part in set(traits.parts) - set(traits.layers)]
    if flat:
        raise RecipeError(
            f"train.layer_decay: {', '.join(flat)} has no list of layers to count (its stages are of several kinds); "
            "write null, and rates per part in train.learning_rate"
        )
    places = {name: place for place, (name, _) in enumerate(adapted.model.named_modules())}
    depths = {}
    for name in adapted.trainable():
        depths[name] = 0
        for part, tower in traits.parts.items():
            path = traits.layers.get(part)
            in_head = any(name.startswith(f"{head}.") for head in traits.heads.get(part, ()))
            if path is None or in_head or not name.startswith(f"{tower}."):
                continue
            num_layers = len(list(adapted.model.get_submodule(path).children()))
            if name.startswith(f"{path}."):
                depths[name] = num_layers - int(name.removeprefix(f"{path}.").split(".")[0])
            elif _place(name, places) < places[path]:
                depths[name] = num_layers + 1
    return depths


def _place(parameter: str, places: dict[str, int]) -> int:
    """Where the module that owns a parameter stands among all modules."""
    owner = parameter.rpartition(".")[0]
    while owner not in places:
        owner = owner.rpartition(".")[0]
    return places[owner]


def describe_rates(adapted: Adapted, groups: list[dict[str, Any]]) -> Iterator[str]:
    """One line per part: its highest learning rate after the warm-up, and its lowest where it has several."""
    for part in dict.fromkeys(adapted.part_of.values()):
        own = [group for group in groups if any(adapted.part_of[name] == part for name in group["names"])]
        rates = {group.get("initial_lr", group["lr"]) for group in own}
        low, high = min(rates), max(rates)
        many = f" down to {low:.3g} ({len(rates)} rates)" if low < high else ""
        yield f"learning rate of {part}: {high:.3g}{many}"
