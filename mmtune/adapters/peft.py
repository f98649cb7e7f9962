"""Any method of peft, by its own config, in chosen layers of chosen parts.

``config`` holds ``peft_type`` and fields of that method's config class in peft; which layers, what is saved and where
random numbers come from is this project's, and so is a start at the backbone where peft's default is another (C3A,
FourierFT; ``init_weights`` says otherwise). What does not work here is refused by name, see ``_peft_limits.py``.
Reading the fields needs peft itself, so this is the one kind that is checked with torch loaded.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_limits import DEAD_FIELDS, NO_PROMPTS, REFUSED_FIELDS, REFUSED_TYPES
from mmtune.adapters._peft_method import MethodSection, Shapes, insert_method, method_problems
from mmtune.adapters._refusals import refusal
from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection

SEEDED = {"random_seed": 0}
"""Fields that seed what a method draws for itself, where peft's default would be another draw every time."""

KEPT = {"progressbar": False, "save_projection": True, "save_indices": True, "save_precomputed_indices": True}
"""Fields that are the same always: everything that was drawn is saved."""

AT_BACKBONE = {"C3A": {"init_weights": True}, "FOURIERFT": {"init_weights": True}}
"""Fields of methods that peft's defaults would start from another model than the backbone."""

ONE_PART = ("UNILORA",)
"""Methods whose trained weights are shared by all layers: no part has any of its own."""


class Section(MethodSection):
    """Any method of peft, by its own config, in the chosen layers."""

    kind: Literal["peft"] = Field(description="any method of peft, by its own config")
    config: dict[str, Any] = Field(description="peft_type, such as WAVEFT, and fields of that config class of peft")

    @field_validator("config")
    @classmethod
    def _names_a_method(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(config.get("peft_type"), str):
            raise ValueError("write peft_type, the name of one of peft's methods, such as WAVEFT")
        return {**config, "peft_type": config["peft_type"].upper().replace("-", "_")}


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json and peft's config classes alone show to be wrong, without weights: all of it at once."""
    name = section.config["peft_type"]
    found = method_problems(name, section, backbone, description)
    reason = _refused_type(name)
    if reason:
        return [*found, f"adapter.config.peft_type: {reason}"]
    found += [f"adapter.config.{key}: {why}" for key, why in _field_problems(section.config).items()]
    if name in ONE_PART and len(section.parts) > 1:
        found.append(f"adapter.parts: {name} shares its trained weights among all layers: write one part")
    if section.config.get("use_dora") and backbone.quantize == "8bit":
        found.append("adapter.config.use_dora: DoRA does not work on 8bit layers; write backbone.quantize: 4bit")
    if section.config.get("init_lora_weights") == "orthogonal" and backbone.quantize is not None:
        found.append(
            "adapter.config.init_lora_weights: peft draws an orthogonal start in full precision alone; delete it"
        )
    return found


def _refused_type(name: str) -> str | None:
    from peft import PromptLearningConfig

    configs = _configs()
    if refused := refusal(name):
        return refused
    if name in REFUSED_TYPES:
        return f"{name} is refused: {REFUSED_TYPES[name]}"
    if name not in configs:
        there = sorted(one for one in configs if not _refused_type(one))
        return f"peft has no {name}{_nearest(name, there)}; there are {', '.join(there)}"
    return f"{name} is refused: {NO_PROMPTS}" if issubclass(configs[name], PromptLearningConfig) else None


def _configs() -> dict[str, Any]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {str(name.value): config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def _field_problems(config: dict[str, Any]) -> dict[str, str]:
    """What is wrong with the fields that ``config`` gives: field -> message."""
    import typing

    made = _configs()[config["peft_type"]]
    hints = typing.get_type_hints(made)
    allowed = [name for name in hints if name not in REFUSED_FIELDS and name != "peft_type"]
    found = {}
    for name, value in config.items():
        if name == "peft_type":
            continue
        if name not in hints:
            found[name] = f"{made.__name__} has no such field{_nearest(name, allowed)}; it has {', '.join(allowed)}"
        elif (config["peft_type"], name) in DEAD_FIELDS:
            found[name] = f"peft reads {name} of {made.__name__} nowhere; delete it"
        elif name in REFUSED_FIELDS:
            found[name] = REFUSED_FIELDS[name]
        elif reason := _value_problem(name, value, hints[name]):
            found[name] = reason
    if not found:
        try:
            made(target_modules=["layer"], **_fields(config))
        except (ValueError, TypeError, ImportError) as error:
            found["peft_type"] = f"{made.__name__}: {error}"
    return found


def _value_problem(name: str, value: Any, hint: Any) -> str | None:
    if name == "bias" and value != "none":
        return f"{value!r} trains biases beside the chosen layers; write none, or delete it"
    if name == "init_lora_weights" and isinstance(value, str):
        if reason := refusal(value):
            return reason
        if value in ("olora", "pissa", "pissa_niter_4", "pissa_niter_16"):
            return f"{value!r} changes the backbone's weights; kind: lora with init: {value} undoes that on saving"
        if value not in ("gaussian", "orthogonal"):
            return f"{value!r} is no start that is taken here; write true, gaussian or orthogonal, or use kind: lora"
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        return f"{value!r} does not fit: {error.errors()[0]['msg']}"
    return None


def _nearest(name: str, there: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, there, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    """All fields for the config class: those given, and those that are this project's to set."""
    start = AT_BACKBONE.get(config["peft_type"], {})
    there = _configs()[config["peft_type"]].__dataclass_fields__
    given = {name: value for name, value in config.items() if name != "peft_type"}
    return {name: value for name, value in {**SEEDED, **KEPT, **start, **given}.items() if name in there}


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the chosen layers with the method that ``config`` names.

    Raises:
        RecipeError: a part or word that hits no layer, or a config that peft does not take for these layers.
    """
    made = _configs()[section.config["peft_type"]]

    def config(names: list[str], shapes: Shapes) -> Any:
        return made(target_modules=names, **_fields(section.config))

    try:
        inserted = insert_method(backbone, section, seed, config)
    except RecipeError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise RecipeError(f"adapter.config: peft does not take it for these layers: {error}") from error
    shared = [part for part, names in inserted.parameters.items() if not names]
    if shared:
        raise RecipeError(
            f"adapter.parts: nothing is trained for {', '.join(shared)} alone, the method shares its weights among all "
            "layers: write one part"
        )
    return inserted
