"""Train the weights and biases of normalisation layers and nothing else: few parameters, no new ones, nothing to merge.

Layer norms, RMS norms and batch norms alike, by the class's name; the running statistics of batch norms stay as they
are. ``layers: all`` takes those outside a tower's layers too (before the first, after the last, in a pooling head);
fewer layers take those inside them alone. A norm acts between all others of its tower, so few weights reach far.
Source: arXiv:2312.11420, "Tuning LayerNorm in Attention", for vision-language models.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._layer_choice import choose_layers
from mmtune.adapters._modes import is_norm
from mmtune.adapters._plain_tensors import insert_plain, precision_problems
from mmtune.adapters._section import LayeredSection
from mmtune.adapters._targets import in_part, layer_number, layer_problems, layers_of, part_problems
from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(LayeredSection):
    """The norms of ``parts`` and ``layers`` are trained as plain tensors."""

    kind: Literal["layernorm"] = Field(description="weights and biases of the normalisation layers alone")


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts and layers that are not there, weights in half precision."""
    family = description.traits
    found = part_problems(section.parts, family) + layer_problems(section, family, description.num_layers)
    return found + precision_problems("layernorm", backbone)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Free the norms; nothing is drawn, so ``seed`` changes nothing here.

    Raises:
        RecipeError: a part without norms in the chosen layers.
    """
    norms = {part: _find_norms(backbone, section, part) for part in section.parts}
    empty = [part for part, names in norms.items() if not names]
    if empty:
        raise RecipeError(
            f"adapter.layers: {', '.join(empty)} has no normalisation layers with weights in layers "
            f"{section.layers!r}; write layers: all, or other parts"
        )
    return insert_plain(backbone, norms)


def _find_norms(backbone: "Backbone", section: Section, part: str) -> list[str]:
    """Full names of the norms of a part in its chosen layers, in the model's order."""
    family = backbone.traits
    layer_list, choice = family.layers.get(part), layers_of(section, part)
    chosen = set(choose_layers(choice, backbone.description.num_layers[part])) if layer_list else set()
    found = []
    for name, module in backbone.model.named_modules():
        if not is_norm(module) or not any(True for _ in module.parameters(recurse=False)):
            continue
        layer = layer_number(name, layer_list)
        kept = layer in chosen if layer is not None else choice == "all"
        if kept and in_part(name, family, part):
            found.append(name)
    return found
