"""Train the chosen parts whole, heads included: the expensive comparison to lora."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._plain_tensors import insert_plain, precision_problems
from mmtune.adapters._section import AdapterSection
from mmtune.adapters._targets import part_problems

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(AdapterSection):
    """Every weight of ``parts`` is trained as a plain tensor."""

    kind: Literal["full"] = Field(description="every weight of the parts")


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts that are not there, quantized or half-precision weights."""
    found = part_problems(section.parts, description.traits) + precision_problems("full", backbone)
    if backbone.quantize is not None:
        found.append(
            f"adapter.kind: full trains the weights themselves, and {backbone.quantize} weights cannot be trained; "
            "write backbone.quantize: null, or adapter.kind: lora"
        )
    return found


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Free the parts; nothing is drawn, so ``seed`` changes nothing here.

    Raises:
        RecipeError: the loaded model lacks a part that its family declares.
    """
    family = backbone.traits
    return insert_plain(backbone, {part: [family.parts[part], *family.heads.get(part, ())] for part in section.parts})
