"""MiSS: one small trained matrix, repeated over the shards of a layer's inputs, through peft.

Formula: W' = W + [D | D | ...], with D float[out, rank] repeated over the inputs; ``mini`` repeats it over the outputs
too, float[mini_r, rank]; ``bat`` makes it depend on the weights: per block of rank x rank, W' = W + W D + D. All start
at zero.
Source: arXiv:2409.15371.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import Dropout, MethodSection, Rank, Shapes, insert_method, method_problems

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Small matrices repeated over the shards of the chosen layers."""

    kind: Literal["miss"] = Field(description="small matrices repeated over shards of the weights (MiSS)")
    rank: Rank = Field(64, description="inputs in a shard; at most a layer's inputs")
    init_weights: Literal["default", "bat", "mini"] = Field(
        "default", description="the form of the update: default (fastest), bat or mini (fewest weights)"
    )
    mini_r: Rank = Field(1, description="outputs in a shard of mini; must divide every layer's outputs")
    dropout: Dropout = Field(0.0, description="dropout on the input of the update")

    @model_validator(mode="after")
    def _mini_r_is_for_mini(self) -> "Section":
        if self.mini_r != 1 and self.init_weights != "mini":
            raise ValueError("mini_r is read with init_weights: mini alone")
        return self


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers."""
    return method_problems("MISS", section, backbone, description)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's MiSS.

    Raises:
        RecipeError: a part or word that hits no layer, or a layer that the shards do not fit.
    """
    form = section.init_weights

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        return peft.MissConfig(
            r=section.rank,
            init_weights=True if form == "default" else form,
            mini_r=section.mini_r,
            miss_dropout=section.dropout,
            target_modules=names,
        )

    return insert_method(backbone, section, seed, config, lambda *shape: _misfit(section, *shape))


def _misfit(section: Section, inputs: int, outputs: int) -> str | None:
    rank, form = section.rank, section.init_weights
    if rank > inputs:
        return f"adapter.rank: {rank} is more than the {inputs} inputs of a layer"
    if form == "bat" and (inputs % rank or outputs % rank):
        return (
            f"adapter.rank: bat needs a rank that divides inputs and outputs, and {rank} does not: {inputs}, {outputs}"
        )
    if form == "mini" and outputs % section.mini_r:
        return f"adapter.mini_r: {section.mini_r} does not divide the {outputs} outputs of a layer"
    return None
