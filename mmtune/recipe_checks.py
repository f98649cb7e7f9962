"""What sections of a recipe say against each other. Nothing here needs a file, a backbone or torch.

Each check takes the recipe and yields (key path, what is wrong; what would be right). A recipe with other mistakes is
checked too: `view_valid_parts` shows what of it is sound, and a check that needs more than that is left out.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import Discriminator, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from mmtune.adapters._peft_limits import quantized_problem
from mmtune.ground.durations import Span
from mmtune.ground.kind_folder import kind, kinds
from mmtune.ground.recipe_text import KeyPath
from mmtune.metrics import MODALITIES
from mmtune.recipe_keys import SectionClass, kind_of, sections_in, suggest
from mmtune.sources import sections_by_source, split_names, splits_on_disk
from mmtune.train_checks import TRAIN_CHECKS

Finding = tuple[KeyPath, str]

HOW_TO_NAME = {
    "captions": "name the column with data.caption",
    "question": "name the column with data.question",
    "answers": "name the column with data.answers",
    "turns": "write data.kind: conversations",
}
"""Field of samples -> how a recipe gives it."""


class AbsentKeyError(LookupError):
    """A check asked for a key that is missing or wrong, which is reported already."""


class PartialSection:
    """The sound keys of a section that has mistakes."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._values:
            raise AbsentKeyError(name)
        return self._values[name]


def view_valid_parts(section: SectionClass, values: Any) -> Any:
    """The section, or as much of it as is sound, with its defaults."""
    if not isinstance(values, dict):
        return PartialSection({})
    sound: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if name not in values:
            if not field.is_required():
                sound[name] = field.get_default(call_default_factory=True)
            continue
        try:
            sound[name] = _validator(field).validate_json(to_json(values[name]), strict=True)
        except ValidationError:
            inner = _chosen(sections_in(field.annotation), values[name])
            if inner is not None:
                sound[name] = view_valid_parts(inner, values[name])
    return PartialSection(sound)


def _validator(field: FieldInfo) -> TypeAdapter[Any]:
    """What the section does with this one key."""
    rules = list(field.metadata)
    if isinstance(field.discriminator, str):
        rules.append(Discriminator(field.discriminator))
    annotation: Any = field.annotation
    for rule in rules:
        annotation = Annotated[annotation, rule]
    return TypeAdapter(annotation)


def _chosen(sections: list[SectionClass], values: Any) -> SectionClass | None:
    kind = values.get("kind", "") if isinstance(values, dict) else ""
    fitting = [section for section in sections if kind_of(section) in ("", kind)]
    return fitting[0] if len(fitting) == 1 else None


def find_contradictions(recipe: Any, world_size: int) -> Iterator[Finding]:
    """Every contradiction in a recipe (or in what is sound of one)."""
    for check in CHECKS:
        try:
            yield from list(check(recipe, world_size))
        except AbsentKeyError:
            continue


# --- batches


def check_batch(recipe: Any, world_size: int) -> Iterator[Finding]:
    """batch = ranks x micro-batches x micro_batch, in whole numbers."""
    batch, micro = recipe.train.batch, recipe.train.micro_batch
    if batch % world_size:
        right = nearest_multiples(batch, world_size)
        yield ("train", "batch"), f"{batch} is not divisible by {world_size} ranks; write {right}"
        return
    if micro is None:
        return
    per_rank = batch // world_size
    if micro > per_rank:
        yield ("train", "micro_batch"), f"{micro} is more than the {per_rank} samples each rank has; write {per_rank}"
    elif per_rank % micro:
        right = nearest_multiples(batch, world_size * micro)
        ranks = f"{world_size} ranks x " if world_size > 1 else ""
        what = f"{batch} is not divisible by {ranks}micro_batch {micro}; write batch {right}"
        yield ("train", "batch"), f"{what}, or micro_batch {largest_divisor(per_rank, micro)}"


def check_pool_of_negatives(recipe: Any, world_size: int) -> Iterator[Finding]:
    """A softmax over one candidate is always right."""
    if recipe.task.kind == "retrieval" and recipe.task.loss.kind == "infonce" and recipe.train.batch < 2:
        yield ("train", "batch"), "infonce compares samples of one batch with each other; write at least 2"


def nearest_multiples(number: int, unit: int) -> str:
    """``"96 or 128"``: the multiples of ``unit`` around ``number``."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``."""
    return next(divisor for divisor in range(min(limit, number), 0, -1) if number % divisor == 0)


# --- durations


def check_durations(recipe: Any, world_size: int) -> Iterator[Finding]:
    """A duration that is zero, or a share of what it cannot be a share of."""
    durations = {
        ("train", "length"): lambda: recipe.train.length,
        ("train", "warmup"): lambda: recipe.train.warmup,
        ("train", "evaluate_every"): lambda: recipe.train.evaluate_every,
        ("train", "log_every"): lambda: recipe.train.log_every,
        ("checkpoint", "every"): lambda: recipe.checkpoint.every,
    }
    for path, read in durations.items():
        try:
            span: Span | None = read()
        except AbsentKeyError:
            continue
        if span is None:
            continue
        if path == ("train", "length") and span.unit == "%":
            yield path, f"{span} has nothing to be a share of; write steps, epochs or samples"
        elif span.unit == "%" and span.amount > 100:
            yield path, f"{span} is more than the whole run; write at most 100%"
        if span.amount <= 0 and path != ("train", "warmup"):
            yield path, f"{span} is nothing; write more than 0"


def check_warmup(recipe: Any, world_size: int) -> Iterator[Finding]:
    """Warm-up ends before the run does. Epochs against steps are compared once the data is counted."""
    length, warmup, batch = recipe.train.length, recipe.train.warmup, recipe.train.batch
    if warmup.unit == "%":
        if warmup.amount == 100:
            yield ("train", "warmup"), "100% leaves nothing to train at the full learning rate; write less"
        return
    if {length.unit, warmup.unit} <= {"steps", "samples"} or length.unit == warmup.unit:
        in_samples = {"steps": batch, "samples": 1, "epochs": 1}
        if warmup.amount * in_samples[warmup.unit] >= length.amount * in_samples.get(length.unit, 1) > 0:
            yield ("train", "warmup"), f"{warmup} is not shorter than the run of {length}; write less, such as 5%"


# --- validation


def check_splits(recipe: Any, world_size: int) -> Iterator[Finding]:
    """The splits that the run reads are named. Subfolders are looked at later, with the data."""
    data = recipe.data
    if isinstance(data, PartialSection) or splits_on_disk(data):
        return
    names = split_names(data)
    if "train" not in names:
        yield ("data",), f"there is no split train to learn from; it has {', '.join(names)}"
    if recipe.train.evaluate_every is not None and "validation" not in names:
        what = f"scores the split validation, and data has {', '.join(names)}; name one there"
        yield ("train", "evaluate_every"), f"{what}, or write evaluate_every: null"


def check_best(recipe: Any, world_size: int) -> Iterator[Finding]:
    """The best checkpoint is chosen by a score that there is, for what the data holds."""
    best, scores = recipe.train.best, _score_names(recipe)
    if best is not None and best not in scores:
        near = suggest(best, scores)
        meant = f"did you mean {near[0]}? The scores are" if near else "write one of"
        yield ("train", "best"), f"there is no score {best!r}; {meant} {', '.join(scores)}"


def check_best_is_measured(recipe: Any, world_size: int) -> Iterator[Finding]:
    """A score chosen by name is of no use where nothing is scored."""
    known = recipe.train.best in _score_names(recipe)
    if known and recipe.train.evaluate_every is None:
        what = "chooses among validation scores, and none are made; write train.evaluate_every, such as 10%"
        yield ("train", "best"), f"{what}, or leave best out"


def _score_names(recipe: Any) -> list[str]:
    """The task's scores; of every modality where the data section does not say which."""
    data, task = recipe.data, kind("tasks", recipe.task)
    chosen = MODALITIES if isinstance(data, PartialSection) else (data.modality,)
    return list(dict.fromkeys(name for modality in chosen for name in task.score_names(recipe.task, modality)))


# --- data x task


def check_fields(recipe: Any, world_size: int) -> Iterator[Finding]:
    """The data holds what the task is about."""
    data, task = recipe.data, kind("tasks", recipe.task)
    if isinstance(data, PartialSection):
        return
    if "label" in data.fields and recipe.task.kind in ("captioning", "retrieval"):
        what = f"{recipe.task.kind} would learn captions that label calls false: write kind: matching"
        yield ("task", "kind"), f"{what}, or leave data.label out"
    missing = sorted(task.FIELDS - data.fields)
    if missing:
        fitting = [name for name, one in kinds("tasks").items() if data.fields >= one.FIELDS]
        what = f"{recipe.task.kind} needs {' and '.join(missing)}, and data has {', '.join(sorted(data.fields))}"
        right = " and ".join(HOW_TO_NAME[field] for field in missing)
        yield ("task", "kind"), f"{what}: {right}; or a task that fits: {', '.join(fitting) or 'none'}"


def check_grouping(recipe: Any, world_size: int) -> Iterator[Finding]:
    """A batch of retrieval is the pool of negatives, which length must not choose."""
    if recipe.train.group_by_length and recipe.task.kind == "retrieval":
        what = "texts of one length would be each other's negatives; write false"
        yield ("train", "group_by_length"), what


def check_views(recipe: Any, world_size: int) -> Iterator[Finding]:
    """Views of an image are of use only where they differ."""
    for name, section in sections_by_source(recipe.data).items():
        if section.augment.views is not None and section.augment.is_idle:
            path = ("data", *(("sources", name) if name else ()), "augment", "views")
            yield path, "there is nothing to change, so all views are alike; write crop, flip or colour, or views: null"


# --- backbone x adapter


def check_quantization(recipe: Any, world_size: int) -> Iterator[Finding]:
    """What cannot be trained on a backbone whose weights are packed into 4 or 8 bits."""
    quantize, adapter = recipe.backbone.quantize, recipe.adapter
    if quantize is None:
        return
    if adapter.kind == "full":
        what = f"full trains every weight, and those of a {quantize} backbone are packed; write kind: lora"
        yield ("adapter", "kind"), f"{what}, or backbone.quantize: null"
    if adapter.kind == "lora" and quantize == "8bit" and adapter.use_dora:
        what = "DoRA needs the norm of weights, which 8bit layers do not give; write use_dora: false"
        yield ("adapter", "use_dora"), f"{what}, or backbone.quantize: 4bit or null"
    if refused := quantized_problem(adapter.kind.upper(), quantize):
        yield ("adapter", "kind"), refused


def check_half_precision(recipe: Any, world_size: int) -> Iterator[Finding]:
    """Weights that are trained themselves are float32: small steps vanish in half precision."""
    dtype, kind = recipe.backbone.dtype, recipe.adapter.kind
    if dtype != "float32" and kind in ("full", "head_only", "layernorm"):
        what = f"{dtype} is too coarse for weights that are trained, as kind {kind} does; write float32"
        yield ("backbone", "dtype"), f"{what} (train.precision: bf16 still computes in bfloat16)"


CHECKS: tuple[Callable[[Any, int], Iterator[Finding]], ...] = (
    check_batch,
    check_pool_of_negatives,
    check_durations,
    check_warmup,
    check_splits,
    check_best,
    check_best_is_measured,
    check_fields,
    check_grouping,
    check_views,
    *TRAIN_CHECKS,
    check_quantization,
    check_half_precision,
)
