"""(IA)3: one trained factor per output, or per input of a feedforward block's last layer, through peft.

Formula: W' = diag(l) W and b' = l * b with l float[out]; for ``feedforward_modules`` W' = W diag(l) with l float[in].
All factors start at one. The paper adapts keys, values and the inner states of the feedforward blocks:
``targets: [k_proj, v_proj, fc2]``.
Source: arXiv:2205.05638.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import MethodSection, Shapes, insert_method, method_problems
from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(MethodSection):
    """Trained factors on outputs or inputs of the chosen layers."""

    kind: Literal["ia3"] = Field(description="trained factors on outputs or inputs of layers ((IA)3)")
    feedforward_modules: list[str] | None = Field(
        None,
        description="names of chosen layers whose inputs are scaled instead of their outputs; "
        "null: those with more inputs than outputs (the last of a feedforward block)",
    )


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers."""
    return method_problems("IA3", section, backbone, description)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft's (IA)3; nothing is drawn, so ``seed`` changes nothing here.

    Raises:
        RecipeError: a part or word that hits no layer, or a feedforward module that is not among the chosen layers.
    """
    feedforward: list[str] = []

    def config(names: list[str], shapes: Shapes) -> Any:
        import peft

        feedforward.extend(_feedforward(section.feedforward_modules, shapes))
        return peft.IA3Config(target_modules=names, feedforward_modules=list(feedforward))

    inserted = insert_method(backbone, section, seed, config)
    inserted.peft_model.peft_config["default"].feedforward_modules = feedforward  # in a stable order
    return inserted


def _feedforward(words: list[str] | None, shapes: Shapes) -> list[str]:
    if words is None:
        return [name for name, (inputs, outputs) in shapes.items() if inputs > outputs]
    absent = [word for word in words if not any(_is_named(name, word) for name in shapes)]
    if absent:
        own = sorted({name.rpartition(".")[2] for name in shapes})
        raise RecipeError(
            f"adapter.feedforward_modules: {', '.join(absent)} is not among the chosen layers; those are called "
            f"{', '.join(own)}"
        )
    return [name for name in shapes if any(_is_named(name, word) for word in words)]


def _is_named(name: str, word: str) -> bool:
    return name == word or name.endswith(f".{word}")
