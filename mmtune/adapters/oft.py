"""OFT: the inputs of a layer are rotated, block by block, through peft.

Formula: W' = W R, with R float[in, in] block-diagonal, each block the Cayley transform (I + Q)(I - Q)^-1 of a trained
skew-symmetric Q that starts at zero; ``use_cayley_neumann`` takes a few terms of the inverse's series instead. peft's
``module_dropout`` is no key here: peft reads it nowhere.
Source: arXiv:2306.07280; the series arXiv:2506.19847.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import MethodSection, Shapes, insert_method, method_problems

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Rotations of the inputs of the chosen layers."""

    kind: Literal["oft"] = Field(description="rotations of the layers' inputs (OFT)")
    oft_block_size: int = Field(32, ge=2, description="side of a rotated block; must divide every layer's inputs")
    block_share: bool = Field(False, description="one rotation for all blocks of a layer")
    use_cayley_neumann: bool = Field(True, description="approximate the inverse by a series: faster, nearly orthogonal")
    num_cayley_neumann_terms: int = Field(5, ge=1, description="terms of that series")


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers."""
    return method_problems("OFT", section, backbone, description)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's OFT.

    Raises:
        RecipeError: a part or word that hits no layer, or a layer whose inputs the blocks do not divide (peft alone
            would take another size).
    """
    size = section.oft_block_size

    def misfit(inputs: int, outputs: int) -> str | None:
        if inputs % size == 0:
            return None
        fitting = [str(other) for other in range(2, inputs + 1) if inputs % other == 0]
        return f"adapter.oft_block_size: {size} does not divide {inputs} inputs; these do: {', '.join(fitting)}"

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        return peft.OFTConfig(
            oft_block_size=size,
            block_share=section.block_share,
            use_cayley_neumann=section.use_cayley_neumann,
            num_cayley_neumann_terms=section.num_cayley_neumann_terms,
            target_modules=names,
        )

    return insert_method(backbone, section, seed, config, misfit)
