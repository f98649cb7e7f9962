"""What the kinds that go through peft share: which layers, a start drawn from the seed, a check of what is trained."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_limits import quantized_problem
from mmtune.adapters._peft_warnings import old_names_allowed
from mmtune.adapters._section import LayeredSection, no_repeats
from mmtune.adapters._targets import find_targets, layer_problems, part_problems
from mmtune.ground.errors import RecipeError
from mmtune.ground.seeding import seed_for

if TYPE_CHECKING:
    from torch import nn

    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]

Shapes = dict[str, tuple[int, int]]
"""Full name of a chosen layer -> its inputs and outputs."""


class MethodSection(LayeredSection):
    """What every kind has that goes through peft: linear layers chosen by ``parts``, ``targets`` and ``layers``."""

    targets: list[str] = Field(
        ["attention"], min_length=1, description="attention, mlp, or names of linear layers such as q_proj"
    )

    @field_validator("targets")
    @classmethod
    def _no_target_twice(cls, targets: list[str]) -> list[str]:
        return no_repeats(targets)

    @model_validator(mode="after")
    def _layers_per_part_name_every_part(self) -> "MethodSection":
        if isinstance(self.layers, dict) and set(self.layers) != set(self.parts):
            raise ValueError(f"layers per part must name exactly {self.parts}, not {sorted(self.layers)}")
        return self


def method_problems(
    peft_type: str, section: MethodSection, backbone: "BackboneSection", description: "Description"
) -> list[str]:
    """What config.json alone shows to be wrong: parts, layers, and quantized layers that the method cannot adapt."""
    family = description.traits
    found = part_problems(section.parts, family) + layer_problems(section, family, description.num_layers)
    refused = quantized_problem(peft_type, backbone.quantize)
    return [*found, f"adapter.kind: {refused}"] if refused else found


def insert_method(
    backbone: "Backbone",
    section: MethodSection,
    seed: int,
    make_config: Callable[[list[str], Shapes], Any],
    misfit: Callable[[int, int], str | None] = lambda inputs, outputs: None,
) -> Inserted:
    """Wrap the chosen layers with a peft method.

    Args:
        backbone: its model is changed in place.
        section: parts, targets and layers.
        seed: new weights are a function of it and the section alone.
        make_config: peft's config for the full names of the chosen layers and their shapes.
        misfit: why a layer with so many inputs and outputs cannot carry the method, None where it can.

    Raises:
        RecipeError: a part or word that hits no layer, or layers that do not fit; nothing has been changed then.
    """
    targets = find_targets(backbone.model, backbone.traits, section)
    shapes = layer_shapes(backbone.model, targets)
    reasons = {name: misfit(*shape) for name, shape in shapes.items()}
    found = list(dict.fromkeys(reason for reason in reasons.values() if reason))
    if found:
        first = {reason: next(name for name, why in reasons.items() if why == reason) for reason in found}
        raise RecipeError("\n".join(f"{reason} (layer {first[reason]})" for reason in found))
    return wrap(backbone, targets, make_config(list(shapes), shapes), seed)


def layer_shapes(model: "nn.Module", targets: dict[str, list[str]]) -> Shapes:
    """Inputs and outputs of the chosen linear layers."""
    layers: dict[str, Any] = {name: model.get_submodule(name) for names in targets.values() for name in names}
    return {name: (int(layer.in_features), int(layer.out_features)) for name, layer in layers.items()}


def wrap(backbone: "Backbone", targets: dict[str, list[str]], config: Any, seed: int) -> Inserted:
    """Let peft wrap exactly the layers of ``targets`` (part -> full names), with a start drawn from ``seed``.

    The config keeps the full names in the model's order, the backbone as the recipe names it, and its commit.
    """
    import peft
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(seed, "adapter"))
        with old_names_allowed():
            peft_model = peft.get_peft_model(backbone.model, config, autocast_adapter_dtype=True)
    config = peft_model.peft_config["default"]
    config.target_modules = [name for names in targets.values() for name in names]
    config.base_model_name_or_path = backbone.section.id
    config.revision = backbone.description.commit
    return Inserted(targets, check_wrapped(backbone.model, targets), peft_model)


def check_wrapped(model: "nn.Module", targets: dict[str, list[str]]) -> dict[str, list[str]]:
    """Parameters to train per part, after asserting that peft wrapped what was chosen and trains nothing else.

    Raises:
        RecipeError: a chosen layer shares its weight with one that peft does not know to be the same.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    chosen = {name for names in targets.values() for name in names}
    held = [layers[name].get_base_layer().weight for name in chosen if name in layers]
    # peft wraps what shares a chosen layer's weight too (a head with tied embeddings), so that they stay one.
    tied = {n for n, layer in layers.items() if any(layer.get_base_layer().weight is weight for weight in held)}
    wrapped = set(layers) - (tied - chosen)
    _refuse_shared(model, layers, held)
    assert wrapped == chosen, f"peft wrapped {sorted(wrapped - chosen)} and left out {sorted(chosen - wrapped)}"
    free = [name for name, value in model.named_parameters() if value.requires_grad]
    parameters = {}
    for part, names in targets.items():
        own = tuple(f"{name}." for name in names)
        parameters[part] = [name for name in free if name.startswith(own) and ".base_layer." not in name]
    others = set(free) - {name for names in parameters.values() for name in names}
    assert not others, f"peft would train {sorted(others)} beside the chosen layers"
    return parameters


def _refuse_shared(model: "nn.Module", layers: dict[str, Any], held: "list[nn.Parameter]") -> None:
    """peft finds tied layers by the config of the whole model; those of a language model inside it, it may not."""
    plain = [(name, getattr(module, "weight", None)) for name, module in model.named_modules()]
    apart = [name for name, weight in plain if name not in layers and not name.endswith("base_layer")
             and any(weight is one for one in held)]  # fmt: skip
    if apart:
        raise RecipeError(
            f"adapter.kind: a chosen layer has one weight with {', '.join(sorted(apart))}, which peft would leave as "
            "it is in training, and merging would change: choose other layers, or train the part whole (kind: full)"
        )
