"""FourierFT: a few trained frequencies of the update's spectrum, through peft.

Formula: W' = W + scaling Re(IDFT2(F)), with F float[out, in] zero but for ``n_frequency`` trained entries, whose places
are drawn once and are the same in every layer of a shape. They start at zero; peft's own default, normal numbers, would
start from another model than the backbone.
Source: arXiv:2405.03003.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import MethodSection, Seed, Shapes, insert_method, method_problems

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Trained frequencies of the updates of the chosen layers."""

    kind: Literal["fourierft"] = Field(description="trained frequencies of the update's spectrum (FourierFT)")
    n_frequency: int = Field(1000, ge=1, description="trained frequencies per layer; at most its inputs times outputs")
    scaling: float = Field(150.0, gt=0, description="scale of the update")
    init_weights: bool = Field(True, description="start at zero, as the backbone; false: at normal numbers")
    random_loc_seed: Seed = Field(777, description="seed of the frequencies' places, which are not saved: it is")


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers."""
    return method_problems("FOURIERFT", section, backbone, description)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's FourierFT.

    Raises:
        RecipeError: a part or word that hits no layer, or a layer with fewer weights than frequencies.
    """
    count = section.n_frequency

    def misfit(inputs: int, outputs: int) -> str | None:
        if count <= inputs * outputs:
            return None
        return f"adapter.n_frequency: {count} is more than the {inputs * outputs} weights of a layer"

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        return peft.FourierFTConfig(
            n_frequency=count,
            scaling=section.scaling,
            init_weights=section.init_weights,
            random_loc_seed=section.random_loc_seed,
            target_modules=names,
        )

    return insert_method(backbone, section, seed, config, misfit)
