"""HiRA: a low-rank update multiplied with the weights themselves, through peft.

Formula: W' = W + W * (B A), with A float[rank, in], B float[out, rank], * element by element: an update of high rank
for the price of a low one. B starts at zero.
Source: ICLR 2025, https://openreview.net/forum?id=TwJrTz9cRS.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import Dropout, MethodSection, Rank, Shapes, insert_method, method_problems

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Low-rank updates multiplied with the weights of the chosen layers."""

    kind: Literal["hira"] = Field(description="low-rank updates multiplied with the weights (HiRA)")
    rank: Rank = Field(32, description="rank of the factor that multiplies the weights")
    dropout: Dropout = Field(0.0, description="dropout on the input of the update")


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers."""
    return method_problems("HIRA", section, backbone, description)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's HiRA.

    Raises:
        RecipeError: a part or word that hits no layer.
    """

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        return peft.HiraConfig(r=section.rank, hira_dropout=section.dropout, target_modules=names)

    return insert_method(backbone, section, seed, config)
