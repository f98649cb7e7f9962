"""Train the projections (heads) of the chosen parts and nothing else: the cheap comparison to lora."""

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
    """The heads of ``parts`` are trained as plain tensors."""

    kind: Literal["head_only"] = Field(description="the heads alone, as plain tensors")


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts that are not there or have no head, weights in half precision."""
    family = description.traits
    found = part_problems(section.parts, family) + precision_problems("head_only", backbone)
    for part in section.parts:
        if part in family.parts and not family.heads.get(part):
            with_heads = [name for name in family.parts if family.heads.get(name)]
            found.append(
                f"adapter.parts: part {part!r} of {family.name} has no head to train; "
                f"parts with one: {', '.join(with_heads) or 'none'}"
            )
    return found


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Free the heads; nothing is drawn, so ``seed`` changes nothing here.

    Raises:
        RecipeError: the loaded model lacks a head that its family declares.
    """
    family = backbone.traits
    return insert_plain(backbone, {part: list(family.heads[part]) for part in section.parts})
