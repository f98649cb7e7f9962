"""VeRA: two trained vectors per layer beside one pair of frozen random matrices, through peft.

Formula: W' = W + diag(b) B diag(d) A, with A float[rank, in] and B float[out, rank] random, frozen and shared by all
chosen layers of both towers (drawn once for the widest, smaller layers take the upper left); d float[rank] starts at
``d_initial``, b float[out] at zero. A and B are saved with the adapter, so that another torch reloads the same ones.
Source: arXiv:2310.11454.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import Dropout, MethodSection, Rank, Seed, Shapes, insert_method, method_problems
from mmtune.ground.seeding import seed_for

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Trained vectors beside shared frozen random matrices in the chosen layers."""

    kind: Literal["vera"] = Field(description="trained vectors beside shared frozen random matrices (VeRA)")
    rank: Rank = Field(256, description="rank of the shared random matrices; larger than LoRA's, for it costs little")
    d_initial: float = Field(0.1, description="where d starts; at 0 neither vector would ever get a gradient")
    dropout: Dropout = Field(0.0, description="dropout on the input of the update")
    projection_prng_key: Seed | None = Field(
        None, description="seed of the random matrices; null: they come from the recipe's seed"
    )


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers, a start from which nothing moves."""
    found = method_problems("VERA", section, backbone, description)
    if section.d_initial == 0:
        found.append("adapter.d_initial: at 0 neither vector ever gets a gradient; write a number such as 0.1")
    return found


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's VeRA.

    Raises:
        RecipeError: a part or word that hits no layer.
    """
    key = section.projection_prng_key

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        return peft.VeraConfig(
            r=section.rank,
            d_initial=section.d_initial,
            vera_dropout=section.dropout,
            projection_prng_key=seed_for(seed, "adapter") if key is None else key,
            save_projection=True,
            target_modules=names,
        )

    return insert_method(backbone, section, seed, config)
