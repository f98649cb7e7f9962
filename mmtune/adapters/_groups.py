"""Parameter groups for the optimizer."""

from typing import TYPE_CHECKING, Any

from mmtune.adapters._adapted import Adapted

if TYPE_CHECKING:
    from torch import nn


def optimizer_groups(adapted: Adapted, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups with ``params``, ``names``, ``lr`` and ``weight_decay``, in a stable order, none empty.

    No decay on temperature, biases and norms (tensors of at most one dimension). LoRA+ gives B its own learning rate.
    Source: LoRA+ arXiv:2402.12354, section 4.
    """
    ratio = getattr(adapted.section, "lora_plus_ratio", None) or 1.0
    members: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in adapted.trainable().items():
        faster = ratio if ".lora_B." in name else 1.0
        decay = weight_decay if parameter.dim() > 1 else 0.0
        members.setdefault((learning_rate * faster, decay), []).append((name, parameter))
    return [
        {"params": [p for _, p in group], "names": [n for n, _ in group], "lr": rate, "weight_decay": decay}
        for (rate, decay), group in members.items()
    ]
