"""Low-rank adapters (LoRA, rsLoRA, DoRA, LoRA+) in chosen layers of chosen parts, through peft.

Formula: W' = W + (alpha / rank) B A, with A float[rank, in], B float[out, rank]; rsLoRA scales by alpha / sqrt(rank);
DoRA trains the length of W' per output as well. With ``init: pissa`` or ``olora`` the adapter is saved with twice the
rank, see ``_lora_start.py``.
Source: LoRA arXiv:2106.09685, rsLoRA arXiv:2312.03732, DoRA arXiv:2402.09353, LoRA+ arXiv:2402.12354.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._lora_start import add_initial, fill_from_weights, refuse_rank_beyond_layers, starts_in_weights
from mmtune.adapters._peft_method import wrap
from mmtune.adapters._refusals import refusal
from mmtune.adapters._section import LayeredSection, no_repeats
from mmtune.adapters._targets import find_targets, layer_problems, part_problems

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description, Family
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
    init: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora"] = Field(
        "default",
        description="how A and B start: default (Kaiming uniform A, zero B), gaussian (A), orthogonal (to each other), "
        "pissa (the weight's largest directions; pissa_niter_4 and _16: faster, nearly so) or olora (its QR factors); "
        "with the last two write train.weight_decay: 0, decay would pull the layer away from the backbone",
    )
    lora_plus_ratio: float | None = Field(
        None, ge=1, description="LoRA+: learning rate of B over that of A; null: the same for both"
    )

    @field_validator("targets")
    @classmethod
    def _no_target_twice(cls, targets: list[str]) -> list[str]:
        return no_repeats(targets)

    @field_validator("init", mode="before")
    @classmethod
    def _init_does_what_it_says(cls, init: Any) -> Any:
        if reason := refusal(init):
            raise ValueError(reason)
        return init

    @model_validator(mode="after")
    def _init_fits(self) -> "Section":
        if self.use_dora and starts_in_weights(self.init):
            raise ValueError(
                f"init {self.init} keeps its start as a second, fixed update beside the trained one, and DoRA's "
                "lengths are those of a weight with one update; write use_dora: false, or init: default"
            )
        ranks = self.rank.values() if isinstance(self.rank, dict) else [self.rank]
        if self.init == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError("init orthogonal gives A one half of the directions and B the other; write an even rank")
        return self

    @model_validator(mode="after")
    def _per_part_names_every_part(self) -> "Section":
        for name in ("rank", "alpha", "layers"):
            value = getattr(self, name)
            if isinstance(value, dict) and set(value) != set(self.parts):
                raise ValueError(f"{name} per part must name exactly {self.parts}, not {sorted(value)}")
        return self


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: parts, layers, and DoRA on an 8-bit backbone."""
    family = description.traits
    found = part_problems(section.parts, family) + layer_problems(section, family, description.num_layers)
    found += _convolution_problems(section, family)
    if section.use_dora and backbone.quantize == "8bit":
        found.append(
            "adapter.use_dora: DoRA needs the norm of the weights, which 8-bit layers do not give; "
            "use quantize: 4bit, or use_dora: false"
        )
    if section.init == "orthogonal" and backbone.quantize is not None:
        found.append(
            "adapter.init: peft draws an orthogonal start in the number format of the weights, and "
            f"{backbone.quantize} weights are stored as integers; write init: pissa or default, or "
            "backbone.quantize: null"
        )
    return found


def _convolution_problems(section: Section, family: "Family") -> list[str]:
    """Options that are made for linear layers, asked for in a part that is made of convolutions."""
    parts = [part for part in section.parts if part in family.made_of]
    options = ["use_dora"] * section.use_dora + ["init"] * (section.init not in ("default", "gaussian"))
    return [
        f"adapter.{option}: part {part!r} of {family.name} is made of {family.made_of[part]}, and this option is for "
        "linear layers alone; delete it"
        for part in parts
        for option in options
    ]


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with peft.

    Raises:
        RecipeError: a part or word that hits no layer, or a rank that a layer has not to start from.
    """
    targets = find_targets(backbone.model, backbone.traits, section, convolutions=True)
    if not starts_in_weights(section.init):
        return wrap(backbone, targets, _config(section, targets), seed)
    refuse_rank_beyond_layers(backbone.model, targets, _ranks(section, targets))
    inserted = wrap(backbone, targets, _config(section, targets), seed)
    add_initial(inserted.peft_model)
    fill_from_weights(inserted.peft_model, targets, section.init, seed)
    return inserted


def insert_empty(backbone: "Backbone", section: Section) -> Inserted:
    """The same without decomposing weights, a minute for large towers: all values are restored next.

    Raises:
        RecipeError: as ``insert``.
    """
    targets = find_targets(backbone.model, backbone.traits, section, convolutions=True)
    inserted = wrap(backbone, targets, _config(section, targets), 0)
    if starts_in_weights(section.init):
        add_initial(inserted.peft_model)
    return inserted


def _config(section: Section, targets: dict[str, list[str]]) -> Any:
    import peft

    ranks = _ranks(section, targets)
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
        init_lora_weights=section.init if section.init in ("gaussian", "orthogonal") else True,
        bias="none",
    )


def _ranks(section: Section, targets: dict[str, list[str]]) -> dict[str, int]:
    return {part: _for_part(section.rank, part) for part in targets}


def _for_part(value: Any, part: str) -> Any:
    return value[part] if isinstance(value, dict) else value


def _pattern(values: dict[str, Any], targets: dict[str, list[str]]) -> dict[str, Any]:
    """peft's pattern for what differs from the first part: full module name -> value."""
    first = next(iter(values.values()))
    return {re.escape(name): values[part] for part in targets if values[part] != first for name in targets[part]}
