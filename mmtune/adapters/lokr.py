"""LoKr: a Kronecker product as update, in chosen layers, through peft.

Formula: W' = W + (alpha / rank) (C kron (B A)), with C float[o1, i1], B float[o2, rank], A float[rank, i2], where
o1 o2 = out and i1 i2 = in; C and B A are whole matrices where low rank would save nothing. One factor starts at zero.
Source: KronA arXiv:2212.10650, LyCORIS arXiv:2309.14859.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import Alpha, Dropout, MethodSection, Rank, Shapes, insert_method, method_problems

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Kronecker products as updates of the chosen layers."""

    kind: Literal["lokr"] = Field(description="Kronecker products as updates (LoKr)")
    rank: Rank = Field(8, description="rank of the right factor, and of the left one with decompose_both")
    alpha: Alpha | None = Field(None, description="the update is scaled by alpha / rank; default the rank")
    decompose_factor: int = Field(-1, description="size of the left factor; -1: as square as possible")
    decompose_both: bool = Field(False, description="give the left factor low rank too, where that is smaller")
    rank_dropout: Dropout = Field(0.0, description="dropout on rows of the update")
    rank_dropout_scale: bool = Field(False, description="scale up the rows that rank_dropout leaves")
    module_dropout: Dropout = Field(0.0, description="how often a layer goes without its update in training")

    @field_validator("decompose_factor")
    @classmethod
    def _factor_is_a_size(cls, factor: int) -> int:
        if factor != -1 and factor < 1:
            raise ValueError(f"decompose_factor is a size of at least 1, or -1, not {factor}")
        return factor


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers, 4-bit layers."""
    return method_problems("LOKR", section, backbone, description)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's LoKr.

    Raises:
        RecipeError: a part or word that hits no layer.
    """

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        return peft.LoKrConfig(
            r=section.rank,
            alpha=section.alpha or section.rank,
            decompose_factor=section.decompose_factor,
            decompose_both=section.decompose_both,
            rank_dropout=section.rank_dropout,
            rank_dropout_scale=section.rank_dropout_scale,
            module_dropout=section.module_dropout,
            target_modules=names,
        )

    return insert_method(backbone, section, seed, config)
