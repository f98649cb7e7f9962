"""The records of a backbone: what a recipe says, what a family declares, what describing and loading give."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from mmtune.ground.sections import StrictSection

if TYPE_CHECKING:
    from torch import nn

COMMIT = re.compile(r"[0-9a-f]{40}")


class Section(StrictSection):
    """Which pretrained model to start from, and in which precision it is held."""

    id: str = Field(min_length=1, description="hub id, folder, or builtin:NAME")
    family: str | None = Field(
        None,
        description="the backbone family, checked against config.json; null: config.json says; needed only where "
        "config.json is out of reach (a tiny twin for a hub id, offline)",
    )
    revision: str | None = Field(
        None, description="branch, tag or commit on the hub; the commit it stands for is shown and recorded"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of the weights that are not quantized"
    )
    quantize: Literal["4bit", "8bit"] | None = Field(
        None, description="hold the towers' linear layers in 4 bit (nf4) or 8 bit (LLM.int8), through bitsandbytes"
    )
    allow_pickle: bool = Field(
        False, description="load .bin weights (torch's weights_only unpickler) where a repository has no safetensors"
    )
    trust_remote_code: bool = Field(
        False, description="run the repository's own Python code; needs a revision that is a 40-digit commit"
    )

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Self:
        if self.trust_remote_code and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"trust_remote_code runs code from {self.id!r}: pin what was read with revision: <40-digit commit> "
                f"(revision is {self.revision!r})"
            )
        return self


@dataclass(frozen=True)
class Family:
    """What is true of every checkpoint of a family.

    Attributes:
        name: the file's name.
        model_types: values of ``model_type`` in config.json that the family answers for.
        abilities: what the family can do for a task (``embed``).
        parts: part -> path of its tower in the model.
        layers: part -> path of its list of layers.
        heads: part -> paths of what maps the tower's pooled state to the shared space (may be inside the tower).
        full_precision: paths that are never quantized, with everything below them.
        temperature: names of the temperature parameters, log scale first, then the bias where there is one.
        processor_classes: model type -> transformers' processor class.
        auto_class: transformers' class that loads the weights.
        targets: corrections of what is found by structure: target word -> part -> pattern of module names.
        new_weights: patterns of weights that a checkpoint may lack.
        ignored_weights: patterns of weights that a checkpoint may hold and the model does not.
    """

    name: str
    model_types: tuple[str, ...]
    abilities: frozenset[str]
    parts: Mapping[str, str]
    layers: Mapping[str, str]
    heads: Mapping[str, tuple[str, ...]]
    full_precision: tuple[str, ...]
    temperature: tuple[str, ...]
    processor_classes: Mapping[str, str]
    auto_class: str = "AutoModel"
    targets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    new_weights: tuple[str, ...] = ()
    ignored_weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """What config.json alone says about a backbone.

    Attributes:
        id: as the recipe wrote it.
        folder: where its files lie (for a hub id the snapshot folder of the local cache).
        commit: the commit that the hub's revision stood for; None for a folder.
        config: config.json, parsed.
        family: the family's module.
        num_layers: part -> number of layers.
        section: what was described.
    """

    id: str
    folder: Path
    commit: str | None
    config: dict[str, Any]
    family: ModuleType
    num_layers: dict[str, int]
    section: Section

    @property
    def short_id(self) -> str:
        """For what is shared: the id, of a folder its name alone."""
        is_folder = self.commit is None and not self.id.startswith("builtin:")
        return self.folder.resolve().name if is_folder else self.id


@dataclass
class Backbone:
    """A loaded model with all that belongs to it. The model is in eval mode and asks for no gradient.

    Attributes:
        model: transformers' model.
        processor: has ``image_processor`` (the Pillow one) and ``tokenizer``.
        family: the family's module.
        description: what config.json said.
        weight_hash: sha256 over the weight files, hex.
        section: what the recipe said.
    """

    model: "nn.Module"
    processor: Any
    family: ModuleType
    description: Description
    weight_hash: str
    section: Section

    def record(self) -> dict[str, str | None]:
        """What a manifest keeps of the backbone."""
        return {
            "id": self.section.id,
            "revision": self.section.revision,
            "commit": self.description.commit,
            "weight_hash": self.weight_hash,
            "family": self.family.FAMILY.name,
            "dtype": self.section.dtype,
            "quantize": self.section.quantize,
            "image_processor": type(self.processor.image_processor).__name__,
        }
