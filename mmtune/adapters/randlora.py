"""RandLoRA: a full-rank update as a trained sum of frozen random low-rank ones, through peft.

Formula: W' = W + (alpha / rank) sum over k < rank, n < N of b_kn l_kn (a_k * g_n)^T, with a_k float[m] and b_kn
float[M] random, frozen and shared by all chosen layers of both towers (m and M are the smaller and larger side of W,
N = m / rank rounded up; drawn once for the widest, smaller layers take the first entries; transposed where the outputs
are fewer than the inputs); l float[rank, N] starts at zero, g float[N, m] evenly.
The random vectors are saved with the adapter, so that another torch reloads the same ones.
Source: arXiv:2502.00987; sparse bases arXiv:cs/0608073.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import (
    Alpha,
    Dropout,
    MethodSection,
    Rank,
    Seed,
    Shapes,
    insert_method,
    method_problems,
)
from mmtune.ground.seeding import seed_for

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Trained sums of shared frozen random updates in the chosen layers."""

    kind: Literal["randlora"] = Field(description="trained sums of frozen random updates (RandLoRA)")
    rank: Rank = Field(32, description="rank of each random update; a smaller one trains more weights, not fewer")
    alpha: Alpha | None = Field(None, description="the update is scaled by alpha / rank; default 20 times the rank")
    dropout: Dropout = Field(0.0, description="dropout on the input of the update")
    sparse: bool = Field(False, description="random matrices of -1, 0 and 1, two thirds of them 0")
    very_sparse: bool = Field(False, description="the same with far more zeros")
    projection_prng_key: Seed | None = Field(
        None, description="seed of the random matrices; null: they come from the recipe's seed"
    )

    @model_validator(mode="after")
    def _one_sparsity(self) -> "Section":
        if self.sparse and self.very_sparse:
            raise ValueError("sparse and very_sparse are two choices: set one of them")
        return self


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers."""
    return method_problems("RANDLORA", section, backbone, description)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's RandLoRA.

    Raises:
        RecipeError: a part or word that hits no layer.
    """
    key = section.projection_prng_key

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        return peft.RandLoraConfig(
            r=section.rank,
            randlora_alpha=section.alpha or 20 * section.rank,
            randlora_dropout=section.dropout,
            sparse=section.sparse,
            very_sparse=section.very_sparse,
            projection_prng_key=seed_for(seed, "adapter") if key is None else key,
            save_projection=True,
            target_modules=names,
        )

    return insert_method(backbone, section, seed, config)
