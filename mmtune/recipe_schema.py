"""Floor 3, the recipe: its sections, and `load_recipe`, which reports every problem at once with file and line.

Reading order: `Recipe` (what there is), `load_recipe`, then `recipe_keys` (the keys and what a typo meant),
`recipe_errors` (shape and values), `recipe_checks` (contradictions between sections).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from mmtune.backbones import Section as BackboneSection
from mmtune.ground.durations import Duration, Span
from mmtune.ground.errors import RecipeError
from mmtune.ground.kind_folder import section_union
from mmtune.ground.recipe_text import Problem, RecipeText, dotted, read_recipe_text
from mmtune.ground.sections import StrictSection
from mmtune.recipe_checks import find_contradictions, view_valid_parts
from mmtune.recipe_errors import find_shape_problems, find_value_problems

if TYPE_CHECKING:
    AnyAdapter: TypeAlias = Any
    AnySource: TypeAlias = Any
    AnyTask: TypeAlias = Any
else:
    AnyAdapter = section_union("adapters")
    AnySource = section_union("sources")
    AnyTask = section_union("tasks")


Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"
]  # those that accelerate knows


class EarlyStoppingSection(StrictSection):
    """When to stop because validation (``train.best``) does not get better."""

    patience: int = Field(3, ge=1, description="validations in a row without a gain after which the run stops")
    min_delta: float = Field(0.0, ge=0, description="a gain counts where it is more than this")


class AverageSection(StrictSection):
    """The running average of what is trained (EMA), which is then what is validated, evaluated, merged and shared."""

    decay: float = Field(0.999, gt=0, lt=1, description="share of the old average that stays at every step")
    warmup: bool = Field(True, description="begin with a lower decay, (1 + n) / (10 + n) after n steps")


TrunkMode = Literal["auto", "off", "disk", "memory"]


class TrunkCacheSection(StrictSection):
    """Where states of the frozen part are kept, so that it runs once per image and text; see `mmtune.trunk_cache`."""

    mode: TrunkMode = Field(
        "auto",
        description="auto: on disk where it pays and fits; disk: also where nothing is seen twice in the run, for "
        "later ones; memory: in RAM, gone afterwards; off: never",
    )
    limit_gb: float = Field(
        50.0, gt=0, description="most that all kept states in the folder may take, in GB (1,000,000,000 bytes)"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="widest number format that states are kept in; float32 changes no bit"
    )
    folder: str | None = Field(
        None, min_length=1, description="where they are kept; null: $MMTUNE_CACHE, else mmtune in the user's cache"
    )


class TrainSection(StrictSection):
    """How long, how fast and in which precision to train."""

    length: Duration = Field(description="length of the run: '500 steps', '3 epochs' or '20000 samples'")
    batch: int = Field(ge=1, description="samples per optimizer step, all ranks together")
    micro_batch: int | None = Field(
        None, ge=1, description="samples in memory at once per rank; never changes the loss; null: batch / ranks"
    )
    learning_rate: Rate | dict[str, Rate] = Field(
        description="highest learning rate, reached after the warm-up; or one per part (vision, text, temperature), "
        "default for those that are not named"
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="learning rate of a layer is multiplied by this once per layer down from the top"
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="adamw; with its two averages in 8 bit (bitsandbytes); and paged to the host (GPU only)"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="learning rate after the warm-up: cosine or linear down to 0, or constant"
    )
    warmup: Duration = Field(Span(5, "%"), description="learning rate rises from 0 for so long; '5%' of the run")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay (AdamW) of matrices")
    betas: tuple[Share, Share] = Field((0.9, 0.98), description="decay rates of AdamW's two averages, as CLIP's")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are scaled down to this norm; null: never")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic of the forward pass; auto: bf16 on a GPU that has it, else fp32"
    )
    workers: int = Field(0, ge=0, le=256, description="processes per rank that read images or sounds; 0: none besides")
    evaluate_every: Duration | None = Field(
        None, description="how often to score the validation split; null: never, and the last checkpoint is used"
    )
    best: str | None = Field(
        None,
        description="validation score by which the best checkpoint is chosen; null: the first of the task's scores, "
        "for retrieval text_to_image_recall@1 (of sounds text_to_audio_recall@1)",
    )
    log_every: Duration = Field(Span(10, "steps"), description="how often a line of metrics is written")
    early_stopping: EarlyStoppingSection | None = Field(
        None, description="stop when validation does not get better; null: run to the end of length"
    )
    ema: AverageSection | None = Field(
        None, description="average what is trained over the steps and use the average; null: use the last values"
    )
    group_by_length: bool = Field(
        False, description="batches of samples that are about equally long: less padding; not for retrieval"
    )
    activation_checkpointing: bool = Field(
        False, description="compute layers again in the backward pass: less memory, about a third more time"
    )
    trunk_cache: TrunkMode | TrunkCacheSection = Field(
        "auto",
        description="what the frozen layers below the adapter make of an image or a text is computed once and kept: "
        "auto, off, disk or memory, or a section with mode, limit_gb, dtype and folder",
    )
    fused_layers: bool = Field(
        True,
        description="compute the layers of an embedding's towers with fewer operations, where it is known how: the "
        "same up to the order of sums; false: transformers' own code",
    )
    trackers: list[Tracker] = Field([], description="where metrics go besides metrics.jsonl")

    @property
    def trunk(self) -> TrunkCacheSection:
        """``trunk_cache`` as a section."""
        it = self.trunk_cache
        return it if isinstance(it, TrunkCacheSection) else TrunkCacheSection(mode=it)


class CheckpointSection(StrictSection):
    """When to save, and how many checkpoints to keep."""

    every: Duration = Field(Span(25, "%"), description="how often to save; the end of the run is always saved")
    keep: int = Field(2, ge=1, description="newest checkpoints to keep; the best one is kept besides")


class Recipe(StrictSection):
    """Everything a run needs to know; complete when read alone."""

    backbone: BackboneSection = Field(description="the pretrained model to adapt")
    adapter: AnyAdapter = Field(description="what is trained, and how")
    data: AnySource = Field(description="where image-text pairs come from")
    task: AnyTask = Field(description="what the backbone learns, and its loss")
    train: TrainSection = Field(description="how long, how fast, in which precision")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="when to save and how much to keep")
    output: str = Field(min_length=1, description="the run folder")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, world_size: int = 1) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file (JSON is YAML, so ``recipe.resolved.json`` too).
        overrides: ``section.key=value``, the value read as YAML.
        world_size: number of ranks, which ``train.batch`` must be divisible by.

    Raises:
        RecipeError: every problem of the file and the overrides, a line each: ``file:line: key: wrong; right``.
    """
    text = read_recipe_text(path, overrides)
    recipe = _validate(text, world_size)
    if recipe is None:
        raise RecipeError(_all_problems(text))
    return recipe


def _validate(text: RecipeText, world_size: int) -> Recipe | None:
    """The recipe, or None with ``text.problems`` filled."""
    if text.problems and not text.values:
        return None  # not YAML: the rest would only be consequences
    find_shape_problems(text, Recipe)
    view: Any = None
    try:
        view = recipe = Recipe.model_validate_json(json.dumps(text.values))
    except ValidationError as error:
        recipe = None
        find_value_problems(text, error)
        view = view_valid_parts(Recipe, text.values)
    known = {problem.key for problem in text.problems}
    for key, what in find_contradictions(view, world_size):
        if dotted(key) not in known:
            text.report(key, what)
    return None if text.problems else recipe


def _all_problems(text: RecipeText) -> str:
    def order(problem: Problem) -> tuple[bool, int, str]:
        line = problem.where.rpartition(":")[2]
        return not line.isdigit(), int(line) if line.isdigit() else 0, problem.key

    return "\n".join(str(problem) for problem in sorted(dict.fromkeys(text.problems), key=order))


def check_recipe(recipe: Recipe, *, world_size: int = 1) -> None:
    """Check a recipe made in Python for contradictions, as `load_recipe` does for a file.

    Raises:
        RecipeError: every contradiction, a line each.
    """
    problems = [f"recipe: {dotted(key)}: {what}" for key, what in find_contradictions(recipe, world_size)]
    if problems:
        raise RecipeError("\n".join(problems))


def resolved_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out, as plain JSON values; `recipe_from_json` is the inverse."""
    return recipe.model_dump(mode="json")


def recipe_from_json(values: Mapping[str, Any], name: str = "recipe.resolved.json") -> Recipe:
    """The recipe that `resolved_json` wrote.

    Raises:
        RecipeError: the values are no recipe (edited, or of another version).
    """
    try:
        return Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        text = RecipeText(name, dict(values))
        find_shape_problems(text, Recipe)
        find_value_problems(text, error)
        raise RecipeError(_all_problems(text)) from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors; ``recipes/recipe.schema.json`` is this."""
    schema = Recipe.model_json_schema(schema_generator=_SchemaWriter)
    return {"$schema": _SchemaWriter.schema_dialect, **schema, "title": "mmtune recipe"}


class _SchemaWriter(GenerateJsonSchema):
    """Writes default durations as the user would."""

    def encode_default(self, dft: Any) -> Any:
        return str(dft) if isinstance(dft, Span) else super().encode_default(dft)
