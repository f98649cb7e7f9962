"""Low-rank adapters (LoRA, rsLoRA, DoRA, LoRA+) in chosen layers of chosen parts, through peft.

Formula: W' = W + (alpha / rank) B A, with A float[rank, in], B float[out, rank]; rsLoRA scales by alpha / sqrt(rank);
DoRA trains the length of W' per output as well.
Source: LoRA arXiv:2106.09685, rsLoRA arXiv:2312.03732, DoRA arXiv:2402.09353, LoRA+ arXiv:2402.12354.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_warnings import old_names_allowed
from mmtune.adapters._section import LayeredSection, no_repeats
from mmtune.adapters._targets import find_targets, layer_problems, part_problems
from mmtune.ground.seeding import seed_for

if TYPE_CHECKING:
    from torch import nn

    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0)]


class Section(LayeredSection):
    """Low-rank adapters in the linear layers that ``parts``, ``targets`` and ``layers`` choose."""

    kind: Literal["lora"] = Field(description="low-rank updates beside frozen linear layers")
    rank: Rank | dict[str, Rank] = Field(8, description="rank of the update, one number or one per part")
    alpha: Alpha | dict[str, Alpha] | None = Field(
        None, description="scale of the update, one number or one per part; default twice the rank"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the update")
    targets: list[str] = Field(
        ["attention"], min_length=1, description="attention, mlp, or names of linear layers such as q_proj"
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
    use_dora: bool = Field(False, description="train magnitude and direction apart (DoRA)")
    init: Literal["default", "gaussian"] = Field(
        "default", description="how A starts: default (Kaiming uniform) or gaussian; B starts at zero"
    )
    lora_plus_ratio: float | None = Field(
        None, ge=1, description="LoRA+: learning rate of B over that of A; null: the same for both"
    )

    @field_validator("targets")
    @classmethod
    def _no_target_twice(cls, targets: list[str]) -> list[str]:
        return no_repeats(targets)

    @model_validator(mode="after")
    def _per_part_names_every_part(self) -> "Section":
        for name in ("rank", "alpha", "layers"):
            value = getattr(self, name)
            if isinstance(value, dict) and set(value) != set(self.parts):
                raise ValueError(f"{name} per part must name exactly {self.parts}, not {sorted(value)}")
        return self


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers, and DoRA on an 8-bit backbone."""
    family = description.family.FAMILY
    found = part_problems(section.parts, family) + layer_problems(section, family, description.num_layers)
    if section.use_dora and backbone.quantize == "8bit":
        found.append(
            "adapter.use_dora: DoRA needs the norm of the weights, which 8-bit layers do not give; "
            "use quantize: 4bit, or use_dora: false"
        )
    return found


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft.

    Raises:
        RecipeError: a part or word that hits no layer.
    """
    import peft
    import torch

    model = backbone.model
    targets = find_targets(model, backbone.family.FAMILY, section)
    config = _config(section, targets)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(seed, "adapter"))
        with old_names_allowed():
            peft_model = peft.get_peft_model(model, config, autocast_adapter_dtype=True)
    config = peft_model.peft_config["default"]
    config.target_modules = [name for names in targets.values() for name in names]  # full names, in a stable order
    config.base_model_name_or_path = backbone.section.id
    config.revision = backbone.description.commit
    return Inserted(targets, _check_wrapped(model, targets), peft_model)


def _config(section: Section, targets: dict[str, list[str]]) -> Any:
    import peft

    ranks = {part: _for_part(section.rank, part) for part in targets}
    given = section.alpha
    alphas = {part: 2 * ranks[part] if given is None else _for_part(given, part) for part in targets}
    first = next(iter(targets))
    return peft.LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],
        rank_pattern=_pattern(ranks, targets),
        alpha_pattern=_pattern(alphas, targets),
        target_modules=[name for names in targets.values() for name in names],
        lora_dropout=section.dropout,
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        init_lora_weights=True if section.init == "default" else section.init,
        bias="none",
    )


def _for_part(value: Any, part: str) -> Any:
    return value[part] if isinstance(value, dict) else value


def _pattern(values: dict[str, Any], targets: dict[str, list[str]]) -> dict[str, Any]:
    """peft's pattern for what differs from the first part: full module name -> value."""
    first = next(iter(values.values()))
    return {re.escape(name): values[part] for part in targets if values[part] != first for name in targets[part]}


def _check_wrapped(model: "nn.Module", targets: dict[str, list[str]]) -> dict[str, list[str]]:
    """Parameters to train per part, after asserting that peft wrapped exactly what was chosen."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    chosen = {name for names in targets.values() for name in names}
    assert wrapped == chosen, f"peft wrapped {sorted(wrapped - chosen)} and left out {sorted(chosen - wrapped)}"
    parameters = {}
    for part, names in targets.items():
        own = tuple(f"{name}.lora_" for name in names)
        parameters[part] = [name for name, _ in model.named_parameters() if name.startswith(own)]
    return parameters
