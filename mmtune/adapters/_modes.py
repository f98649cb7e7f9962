"""Frozen means frozen: what is not trained runs in eval mode, no buffer moves."""

from typing import TYPE_CHECKING

from mmtune.adapters._adapted import TEMPERATURE, Adapted

if TYPE_CHECKING:
    from torch import nn


def set_modes(adapted: Adapted) -> None:
    """Put the model into the modes it trains in; call it before every stretch of training.

    The whole model goes to eval mode. Per tower, only what lies at or above the lowest layer with something trained
    goes to train mode (so that its dropout works), frozen normalisation layers excepted. Towers are read in the order
    in which their modules are registered.
    """
    adapted.model.eval()
    modules = dict(adapted.model.named_modules())
    family = adapted.backbone.family.FAMILY
    trained = [name for name, part in adapted.part_of.items() if part != TEMPERATURE]
    for part, tower in family.parts.items():
        roots = [tower, *family.heads.get(part, ())]
        names = [name for name in modules if any(name == root or name.startswith(root + ".") for root in roots)]
        units = {_unit(name, family.layers.get(part), modules) for name in trained}
        start = next((position for position, name in enumerate(names) if name in units), len(names))
        for name in names[start:]:
            if not _is_frozen_norm(modules[name]):
                modules[name].training = True


def _unit(parameter: str, layer_list: str | None, modules: "dict[str, nn.Module]") -> str:
    """The layer that a parameter is in; outside the list of layers, the module that owns it."""
    if layer_list and parameter.startswith(layer_list + "."):
        return ".".join(parameter.split(".")[: layer_list.count(".") + 2])
    owner = parameter.rpartition(".")[0]
    while owner and owner not in modules:
        owner = owner.rpartition(".")[0]
    return owner


def _is_frozen_norm(module: "nn.Module") -> bool:
    is_norm = "norm" in type(module).__name__.lower() or hasattr(module, "running_mean")
    return is_norm and not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
