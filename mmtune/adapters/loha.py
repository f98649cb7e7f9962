"""LoHa: a product of two low-rank updates, element by element, in chosen layers, through peft.

Formula: W' = W + (alpha / rank) (B1 A1) * (B2 A2), with A float[rank, in], B float[out, rank], * element by element;
the update's rank is up to rank squared. One factor starts at zero, so that W' starts as W.
Source: FedPara arXiv:2108.06098, LyCORIS arXiv:2309.14859.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import Alpha, Dropout, MethodSection, Rank, Shapes, insert_method, method_problems

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Products of two low-rank updates in the chosen layers."""

    kind: Literal["loha"] = Field(description="element-wise products of two low-rank updates (LoHa)")
    rank: Rank = Field(8, description="rank of each of the two updates")
    alpha: Alpha | None = Field(None, description="the update is scaled by alpha / rank; default the rank")
    rank_dropout: Dropout = Field(0.0, description="dropout on rows of the update")
    module_dropout: Dropout = Field(0.0, description="how often a layer goes without its update in training")


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers, 4-bit layers."""
    return method_problems("LOHA", section, backbone, description)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's LoHa.

    Raises:
        RecipeError: a part or word that hits no layer.
    """

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        return peft.LoHaConfig(
            r=section.rank,
            alpha=section.alpha or section.rank,
            rank_dropout=section.rank_dropout,
            module_dropout=section.module_dropout,
            target_modules=names,
        )

    return insert_method(backbone, section, seed, config)
