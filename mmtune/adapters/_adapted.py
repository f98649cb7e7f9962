"""A backbone with an adapter: what is trained, part by part."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import RecipeError
from mmtune.ground.kind_folder import kind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection

TEMPERATURE = "temperature"
"""The part that temperature parameters are counted under."""

FRESH = "projection"
"""The part that parameters are counted under which no checkpoint holds (a dual encoder's new projections)."""


@dataclass(frozen=True)
class PartReport:
    """One part of an adapter.

    Attributes:
        part: its name, ``projection`` or ``temperature``.
        num_modules: modules that were wrapped, or that own a trained tensor.
        num_trainable: trained parameters.
        share: of all parameters of the backbone with its adapter, 0 to 1.
    """

    part: str
    num_modules: int
    num_trainable: int
    share: float


@dataclass(frozen=True)
class Inserted:
    """What a kind changed in the model.

    Attributes:
        modules: part -> full names (of the plain model) of the modules that are trained or wrapped.
        parameters: part -> names of the parameters to train, relative to the changed model.
        peft_model: the peft wrapper, for kinds that use one.
    """

    modules: dict[str, list[str]]
    parameters: dict[str, list[str]]
    peft_model: Any = None


@dataclass
class Adapted:
    """A backbone whose model was changed in place.

    Attributes:
        backbone: ``backbone.model`` stays the plain class (a ``CLIPModel``) with layers swapped inside.
        section: the recipe's adapter section; None for an adapter made elsewhere.
        kind: the adapter kind's module; None for an adapter made elsewhere.
        peft_model: the peft wrapper around the same model, where there is one.
        modules: part -> names of the modules that were wrapped or are trained.
        part_of: name of a trained parameter -> its part.
        start: values on the CPU, of the untouched backbone, of what is trained as plain tensors (heads, parts, new
            projections, temperature).
        parts: one report per part.
        started_from: what a manifest keeps of the earlier adapter that the values were taken from, if any.
    """

    backbone: "Backbone"
    section: Any = None
    kind: ModuleType | None = None
    peft_model: Any = None
    modules: dict[str, list[str]] = field(default_factory=dict)
    part_of: dict[str, str] = field(default_factory=dict)
    start: "dict[str, Tensor]" = field(default_factory=dict)
    parts: list[PartReport] = field(default_factory=list)
    started_from: dict[str, Any] | None = None

    @property
    def model(self) -> "nn.Module":
        """The adapted model."""
        return self.backbone.model

    def trainable(self) -> "dict[str, nn.Parameter]":
        """Exactly the trained parameters, name relative to the model -> parameter, in the model's order."""
        return {name: value for name, value in self.model.named_parameters() if name in self.part_of}


def problems(section: Any, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What is wrong with an adapter section for this backbone, from config.json alone (no weights, no torch).

    Messages begin with the key they are about (``adapter.layers: ...``); an empty list means nothing was found.
    """
    found: list[str] = kind("adapters", section).problems(section, backbone, description)
    return found


def attach(backbone: "Backbone", section: Any, *, seed: int = 0, to_restore: bool = False) -> Adapted:
    """Put the adapter of a recipe into a backbone, in place; everything is checked before the first change.

    The model is in eval mode afterwards, its new modules too; ``set_modes`` readies it for training.

    Args:
        backbone: freshly loaded.
        section: a section of the adapter union.
        seed: new weights are a function of it and the section alone.
        to_restore: ``restore`` follows, so a start that is costly to compute need not be.

    Raises:
        RecipeError: a part, target or layer that is not there, or an adapter that this backbone cannot carry.
    """
    fresh = fresh_names(backbone)
    found = problems(section, backbone.section, backbone.description) + _fresh_problems(backbone, section, fresh)
    if found:
        raise RecipeError("\n".join(found))
    module = kind("adapters", section)
    insert_empty = getattr(module, "insert_empty", None) if to_restore else None
    inserted: Inserted = insert_empty(backbone, section) if insert_empty else module.insert(backbone, section, seed)
    adapted = Adapted(backbone, section, module, inserted.peft_model, dict(inserted.modules))
    adapted.part_of = {name: part for part, names in inserted.parameters.items() for name in names}
    _free_fresh(adapted, fresh)
    if section.temperature and backbone.traits.temperature:
        _free_temperature(adapted)
    _mark_trainable(adapted)
    adapted.model.eval()
    adapted.parts = _report(adapted)
    return adapted


def fresh_names(backbone: "Backbone") -> list[str]:
    """Parameters that no checkpoint holds, the temperature excepted: every adapter trains them, whole."""
    return [name for name in backbone.fresh if name not in backbone.traits.temperature]


def _fresh_problems(backbone: "Backbone", section: Any, fresh: list[str]) -> list[str]:
    parameters = dict(backbone.model.named_parameters())
    found = []
    coarse = [name for name in fresh if str(parameters[name].dtype) != "torch.float32"]
    if coarse:
        found.append(
            f"backbone.dtype: {', '.join(coarse)} are new in this backbone and trained whole, which "
            f"{backbone.section.dtype} is too coarse for; write float32 (train.precision: bf16 still computes in "
            "bfloat16)"
        )
    owners = [name.rpartition(".")[0] for name in fresh]
    named = [word for word in getattr(section, "targets", ()) if any(f".{one}".endswith(f".{word}") for one in owners)]
    if named:
        found.append(
            f"adapter.targets: {', '.join(named)} is new in this backbone and trained whole already; delete it"
        )
    return found


def _free_fresh(adapted: Adapted, fresh: list[str]) -> None:
    """Count what no checkpoint holds among what is trained: what was drawn at random must be learned."""
    names = [name for name in fresh if name not in adapted.part_of]
    if names:
        adapted.part_of |= dict.fromkeys(names, FRESH)
        adapted.modules[FRESH] = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _free_temperature(adapted: Adapted) -> None:
    """Count the temperature among what is trained, in float32: half precision cannot take its small steps."""
    parameters = dict(adapted.model.named_parameters())
    names = [name for name in adapted.backbone.traits.temperature if name in parameters]
    for name in names:
        parameters[name].data = parameters[name].data.float()
        adapted.part_of[name] = TEMPERATURE
    adapted.modules[TEMPERATURE] = names


def _mark_trainable(adapted: Adapted) -> None:
    for name, parameter in adapted.model.named_parameters():
        parameter.requires_grad_(name in adapted.part_of)
    trained = adapted.trainable()
    assert len(trained) == len(adapted.part_of), sorted(set(adapted.part_of) - set(trained))
    adapted.start = {name: trained[name].detach().cpu().clone() for name in plain_names(adapted)}


def plain_names(adapted: Adapted) -> list[str]:
    """Names of what is trained as plain tensors: everything without peft, with it what is not peft's own."""
    if adapted.peft_model is None:
        return list(adapted.part_of)
    prefix = adapted.peft_model.base_model.prefix  # of the names of everything that the method adds
    return [name for name in adapted.part_of if prefix not in name]


def count_weights(parameter: "Tensor") -> int:
    """Number of weights; 4-bit weights are stored two to a byte and are counted before packing."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def _report(adapted: Adapted) -> list[PartReport]:
    total = sum(count_weights(parameter) for parameter in adapted.model.parameters())
    trained = adapted.trainable()
    rows = []
    for part, modules in adapted.modules.items():
        count = sum(value.numel() for name, value in trained.items() if adapted.part_of[name] == part)
        rows.append(PartReport(part, len(modules), count, count / total))
    return rows
