"""The records of a backbone: what a recipe says, what a family declares, what describing and loading give."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmtune.ground.sections import StrictSection

if TYPE_CHECKING:
    from torch import nn

COMMIT = re.compile(r"[0-9a-f]{40}")


class Section(StrictSection):
    """Which pretrained model to start from, and in which precision it is held.

    Either one model with both towers (``id``), or two encoders that become one (``vision`` and ``text``).
    """

    id: str | None = Field(
        None, min_length=1, description="hub id, folder, or builtin:NAME; null: two encoders, vision and text"
    )
    vision: str | None = Field(
        None, min_length=1, description="hub id or folder of an image encoder, to be paired with `text`; then no `id`"
    )
    text: str | None = Field(
        None, min_length=1, description="hub id or folder of a text encoder, to be paired with `vision`; then no `id`"
    )
    projection_dim: int | None = Field(
        None, ge=1, description="width of the embeddings of a `vision` and `text` pair; null: 512"
    )
    family: str | None = Field(
        None,
        description="the backbone family, checked against config.json; null: config.json says; needed only where "
        "config.json is out of reach (a tiny twin for a hub id, offline)",
    )
    revision: str | None = Field(
        None, description="branch, tag or commit on the hub; the commit it stands for is shown and recorded"
    )
    vision_revision: str | None = Field(None, description="as revision, for the `vision` encoder of a pair")
    text_revision: str | None = Field(None, description="as revision, for the `text` encoder of a pair")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of the weights that are not quantized"
    )
    quantize: Literal["4bit", "8bit"] | None = Field(
        None, description="hold the towers' linear layers in 4 bit (nf4) or 8 bit (LLM.int8), through bitsandbytes"
    )
    double_quantization: bool = Field(
        True, description="with quantize: 4bit, hold the scales of the weights in 8 bit too: 0.4 bit less per weight"
    )
    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="with quantize: 4bit, the number format that 4-bit layers compute in; null: dtype "
        "(under train.precision bf16 or fp16 they compute in that)",
    )
    image: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="limits on the images' size, and so on the tokens that each takes, in the model's own words "
        "(min_pixels and max_pixels, longest_edge, max_patches, ...); null: as its image processor's file says",
    )
    image_processing: Literal["exact", "fast"] = Field(
        "exact",
        description="exact: pixels bit for bit as the model's image processor makes them; fast: images at least twice "
        "as large as the model takes them are resized by torch, which reads more images per second: about 0.4 % of the "
        "values differ by one of 256 grey levels (in very smooth pictures hardly ever by two)",
    )
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None,
        description="what computes attention: eager (plain), sdpa (torch's), flash_attention_2 (needs a GPU and "
        "the package flash-attn); null: transformers' choice, mostly sdpa",
    )
    allow_pickle: bool = Field(
        False, description="load .bin weights (torch's weights_only unpickler) where a repository has no safetensors"
    )
    trust_remote_code: bool = Field(
        False, description="run the repository's own Python code; needs a revision that is a 40-digit commit"
    )

    @property
    def name(self) -> str:
        """What messages call the backbone: its id, of two encoders both."""
        return self.id if self.id is not None else f"{self.vision} + {self.text}"

    def encoder(self, part: str) -> "Section":
        """The section of one encoder of a pair (``vision`` or ``text``), alone."""
        own = {"id": self.vision, "revision": self.vision_revision}
        if part == "text":
            own = {"id": self.text, "revision": self.text_revision}
        unset = dict.fromkeys(("vision", "text", "projection_dim", "vision_revision", "text_revision"))
        return self.model_copy(update={**unset, **own})

    @model_validator(mode="after")
    def _is_one_model_or_two_encoders(self) -> Self:
        of_pair = ("vision", "text", "projection_dim", "vision_revision", "text_revision")
        given = [key for key in of_pair if getattr(self, key) is not None]
        if self.id is not None and given:
            raise ValueError(
                f"id names a whole model ({self.id!r}), and {', '.join(given)} belong to a pair of two encoders: "
                "write id alone, or leave it out and write vision and text"
            )
        if self.id is None and not given:
            raise ValueError(
                "names no model: write id (a model with both towers), or vision and text (two encoders to pair)"
            )
        if self.id is None:
            self._check_pair()
        return self

    @model_validator(mode="after")
    def _words_about_4bit_go_with_it(self) -> Self:
        idle = ["compute_dtype"] * (self.compute_dtype is not None)
        idle += ["double_quantization"] * (not self.double_quantization)
        if self.quantize != "4bit" and idle:
            what = f"{' and '.join(idle)} {'say' if len(idle) > 1 else 'says'} how 4-bit layers are held or compute"
            raise ValueError(f"{what}, and quantize is {self.quantize or 'null'}; write quantize: 4bit, or delete it")
        return self

    def _check_pair(self) -> None:
        missing = [part for part in ("vision", "text") if getattr(self, part) is None]
        if missing:
            raise ValueError(
                f"a pair needs both of its encoders, and {' and '.join(missing)} is not given: write vision and text"
            )
        if self.revision is not None:
            raise ValueError(
                "revision belongs to id; each encoder of a pair has its own: vision_revision and text_revision"
            )
        if self.trust_remote_code:
            raise ValueError("trust_remote_code is not for a pair: its encoders are loaded by transformers' own code")

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Self:
        if self.id is not None and self.trust_remote_code and not COMMIT.fullmatch(self.revision or ""):
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
        abilities: what the family can do for a task: ``embed``, ``generate``, ``match``, ``classify``.
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
        modality: what is matched with text: ``image`` or ``audio``.
        idle: patterns of modules inside the parts that no ability runs: never adapted, never trained.
        whole_forward: for models without ``get_image_features``: the arguments of ``forward`` beside the inputs, and
            the output that holds the cosine of every image with every text; what a merge is proven with.
        unquantizable: value of ``quantize`` -> why it does not work.
        made_of: part -> what it is made of, for parts without the linear layers that adapters stand beside.
        head: path of the layer that maps states float[B, L, D] to logits float[B, L, V], for what generates.
        shifted_labels: whether the logits at a place are for the label of the next one (decoders alone), or of the
            place itself (encoder-decoders, whose ``decoder_input_ids`` are shifted already).
        caption_prompt: what asks for a caption where the recipe says nothing.
        other_types: model types that it answers for too, without a tiny twin: built alike, or refused with the reason.
        image_words: words of ``backbone.image`` -> where the image processor has them, such as ``size.longest_edge``.
        stems: part -> paths of the modules that run before its first layer, in their order: the first makes states
            float[B, T, D] of the inputs, the others states of states. Where it is declared, what lies below a layer can
            be computed once and fed back above; see ``mmtune.trunk_cuts``.
        image_side: parts that together make of images what the language model reads, where that can be given to the
            model instead of pixels; see ``_image_side``.
        whole_processor: whether its processor makes images and text in one call, so that the images' pixels are made by
            transformers alone; see ``_pixel_tables``.
        sides: ``media`` and ``text`` -> the parts that their embedding passes, for what embeds.
        by_ability: ability -> the fields of this record that are others where a task uses it; see ``used_by``.
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
    modality: Literal["image", "audio"] = "image"
    idle: tuple[str, ...] = ()
    unquantizable: Mapping[str, str] = field(default_factory=dict)
    made_of: Mapping[str, str] = field(default_factory=dict)
    head: str = ""
    shifted_labels: bool = True
    caption_prompt: str = ""
    other_types: tuple[str, ...] = ()
    image_words: Mapping[str, str] = field(default_factory=dict)
    whole_forward: tuple[Mapping[str, Any], str] | None = None
    stems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    image_side: tuple[str, ...] = ()
    whole_processor: bool = False
    sides: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"media": ("vision",), "text": ("text",)})
    by_ability: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def used_by(self, ability: str) -> "Family":
        """The record as it is for a task that uses one ability: what runs, and so what may be trained, depends on it.

        ``""`` and abilities for which nothing is another give the record itself.
        """
        return replace(self, **self.by_ability.get(ability, {}))


@dataclass(frozen=True)
class Place:
    """Where a model's files lie.

    Attributes:
        id: as the recipe wrote it.
        folder: where its files lie (for a hub id the snapshot folder of the local cache).
        commit: the commit that the hub's revision stood for; None for a folder.
        config: config.json, parsed.
        section: what was looked for.
    """

    id: str
    folder: Path
    commit: str | None
    config: dict[str, Any]
    section: Section

    @property
    def short_id(self) -> str:
        """For what is shared: the id, of a folder its name alone."""
        is_folder = self.commit is None and not self.id.startswith("builtin:")
        return self.folder.resolve().name if is_folder else self.id


@dataclass(frozen=True)
class Description(Place):
    """What config.json alone says about a backbone.

    A pair of two encoders has the ``config`` of the model they become, the folder of its image encoder, and no commit
    of its own.

    Attributes:
        family: the family's module.
        num_layers: part -> number of layers, for the parts that have a list of them.
        encoders: part -> the encoder it is made of, for a pair.
        ability: which of the family's abilities the task uses; "" where there is no task.
    """

    family: ModuleType
    num_layers: dict[str, int]
    encoders: Mapping[str, Place] = field(default_factory=dict)
    ability: str = ""

    @property
    def places(self) -> tuple[Place, ...]:
        """Everything it is read from: the encoders of a pair, else itself."""
        return tuple(self.encoders.values()) or (self,)

    @property
    def commits(self) -> dict[str, str | None]:
        """The commits as a manifest records them: ``commit``, of a pair also ``vision_commit`` and ``text_commit``."""
        return {"commit": self.commit, **{f"{part}_commit": one.commit for part, one in self.encoders.items()}}

    @property
    def traits(self) -> Family:
        """What the family declares for this checkpoint: its ``family_for(config)`` where it has one, else ``FAMILY``;
        as it is for the ability that the task uses.

        Paths of parts and layers are read from here; ``family.FAMILY`` alone is for what a name or a search needs.
        """
        concrete = getattr(self.family, "family_for", None)
        traits: Family = self.family.FAMILY if concrete is None else concrete(self.config)
        return traits.used_by(self.ability)

    @property
    def short_id(self) -> str:
        """For what is shared: the id, of a folder its name alone; of a pair both."""
        return " + ".join(one.short_id for one in self.encoders.values()) or super().short_id


@dataclass
class Backbone:
    """A loaded model with all that belongs to it. The model is in eval mode and asks for no gradient.

    Attributes:
        model: transformers' model.
        processor: has ``image_processor`` (the Pillow one; for sound ``feature_extractor``) and ``tokenizer``.
        family: the family's module.
        description: what config.json said.
        weight_hash: sha256 over the weight files, hex.
        section: what the recipe said.
        fresh: names of the parameters that no checkpoint holds: drawn at loading from a fixed seed, the same every
            time; every adapter trains them in full.
    """

    model: "nn.Module"
    processor: Any
    family: ModuleType
    description: Description
    weight_hash: str
    section: Section
    fresh: tuple[str, ...] = ()

    @property
    def traits(self) -> Family:
        """``description.traits``."""
        return self.description.traits

    @property
    def notes(self) -> list[str]:
        """What a run's log says of the backbone: the family's ``notes(processor)`` where it has them."""
        found: list[str] = self.family.notes(self.processor) if hasattr(self.family, "notes") else []
        return found

    def record(self) -> dict[str, str | None]:
        """What a manifest keeps of the backbone."""
        reader = "image_processor" if self.traits.modality == "image" else "feature_extractor"
        return {
            "id": self.section.name,
            "revision": self.section.revision,
            **self.description.commits,
            "weight_hash": self.weight_hash,
            "family": self.traits.name,
            "auto_class": self.traits.auto_class,
            "dtype": self.section.dtype,
            "quantize": self.section.quantize,
            reader: type(getattr(self.processor, reader)).__name__,
        }
