"""Frozen means frozen: what is not trained runs in eval mode, no buffer moves."""

from typing import TYPE_CHECKING

from mmtune.adapters._adapted import TEMPERATURE, Adapted

if TYPE_CHECKING:
    from torch import nn


def set_modes(adapted: Adapted) -> None:
    """Put the model into the modes it trains in; call it before every stretch of training.

    The whole model goes to eval mode. Per tower, only what lies at or above the lowest layer with something trained
    goes to train mode (so that its dropout works), frozen normalisation layers excepted, and batch norms always: with
    their weights trained or not they run on the checkpoint's running statistics, which never move. Towers are read in
    the order in which their modules are registered.
    """
    adapted.model.eval()
    modules = dict(adapted.model.named_modules())
    family = adapted.backbone.traits
    trained = [name for name, part in adapted.part_of.items() if part != TEMPERATURE]
    for part, tower in family.parts.items():
        roots = [tower, *family.heads.get(part, ())]
        names = [name for name in modules if any(name == root or name.startswith(root + ".") for root in roots)]
        units = {_unit(name, family.layers.get(part), modules) for name in trained}
        start = next((position for position, name in enumerate(names) if name in units), len(names))
        for name in names[start:]:
            if not _stays_in_eval(modules[name]):
                modules[name].training = True


def _unit(parameter: str, layer_list: str | None, modules: "dict[str, nn.Module]") -> str:
    """The layer that a parameter is in; outside the list of layers, the module that owns it."""
    if layer_list and parameter.startswith(layer_list + "."):
        return ".".join(parameter.split(".")[: layer_list.count(".") + 2])
    owner = parameter.rpartition(".")[0]
    while owner and owner not in modules:
        owner = owner.rpartition(".")[0]
    return owner


def _stays_in_eval(module: "nn.Module") -> bool:
    """Frozen norms, and batch norms even where their weights are trained.

    On batch statistics an embedding would depend on its micro-batch, and the running ones would move outside of what
    is trained and saved.
    """
    if hasattr(module, "running_mean"):
        return True
    return is_norm(module) and not any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def is_norm(module: "nn.Module") -> bool:
    """Whether a module normalises: layer norm, RMS norm, batch norm and their like, by the name of its class."""
    return "norm" in type(module).__name__.lower() or hasattr(module, "running_mean")
