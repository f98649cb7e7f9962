"""What the recipe sections of adapters share."""

from pydantic import Field, field_validator

from mmtune.adapters._layer_choice import GRAMMAR, Choice, check_choice
from mmtune.ground.sections import StrictSection


class AdapterSection(StrictSection):
    """What every adapter has."""

    parts: list[str] = Field(min_length=1, description="parts of the backbone to train, such as vision and text")
    temperature: bool = Field(
        True, description="train the backbone's temperature (logit_scale, SigLIP's logit_bias) too"
    )
    start_from: str | None = Field(
        None,
        min_length=1,
        description="begin with the values of an earlier adapter: a run folder (its best checkpoint), a checkpoint "
        "folder, or a folder that peft wrote; the optimizer starts fresh; null: begin at the backbone",
    )

    @field_validator("parts")
    @classmethod
    def _no_part_twice(cls, parts: list[str]) -> list[str]:
        return no_repeats(parts)


class LayeredSection(AdapterSection):
    """What adapters that choose layers have on top."""

    layers: Choice | dict[str, Choice] = Field("all", description=f"{GRAMMAR}; or one of these per part")

    @field_validator("layers")
    @classmethod
    def _layers_can_be_read(cls, layers: Choice | dict[str, Choice]) -> Choice | dict[str, Choice]:
        for choice in layers.values() if isinstance(layers, dict) else [layers]:
            check_choice(choice)
        return layers


def no_repeats(names: list[str]) -> list[str]:
    """The names as they are.

    Raises:
        ValueError: a name stands there twice.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}")
    return names
