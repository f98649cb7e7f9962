"""The keys that a recipe can have, found by walking the sections, and what a mistyped one was meant to be."""

import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rapidfuzz.distance import OSA, JaroWinkler

SectionClass = type[BaseModel]

OTHER_NAMES = {
    "lr": "learning_rate",
    "batch_size": "batch",
    "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "micro_batch",
    "epochs": "length",
    "num_train_epochs": "length",
    "max_steps": "length",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule",
    "optim": "optimizer",
    "grad_clip": "max_grad_norm",
    "gradient_checkpointing": "activation_checkpointing",
    "num_workers": "workers",
    "report_to": "trackers",
    "eval_steps": "evaluate_every",
    "logging_steps": "log_every",
    "save_steps": "every",
    "save_total_limit": "keep",
    "output_dir": "output",
    "model_name_or_path": "id",
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "init_lora_weights": "init",
}
"""What transformers, peft and their users call a key of ours."""


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    Attributes:
        path: names from the top; a section that has kinds contributes its name only.
        kind: the kind whose section holds the key, "" where there are no kinds.
        section: the class that declares it.
        field: pydantic's record of it.
    """

    path: tuple[str, ...]
    kind: str
    section: SectionClass
    field: FieldInfo


def sections_in(annotation: Any) -> list[SectionClass]:
    """The section classes that a field may hold, through Annotated, Optional and Union."""
    if get_origin(annotation) is Annotated:
        return sections_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [section for part in get_args(annotation) for section in sections_in(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def sections_by_name(annotation: Any) -> list[SectionClass]:
    """The section classes that the values of a mapping may hold, for a key that maps free names to sections."""
    if get_origin(annotation) is dict:
        return sections_in(get_args(annotation)[1])
    return []


def kind_of(section: SectionClass) -> str:
    """The name in ``kind: Literal[name]``, "" for a section without kinds."""
    field = section.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal:
        return ""
    return str(get_args(field.annotation)[0])


@cache
def walk_keys(root: SectionClass) -> tuple[Key, ...]:
    """Every key of the schema below ``root``, sections and leaves, all kinds; not below the free names of a mapping,
    where the keys of other sections come again."""
    return tuple(_walk(root, ()))


def _walk(section: SectionClass, above: tuple[str, ...]) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        key = Key((*above, name), kind_of(section), section, field)
        yield key
        for inner in sections_in(field.annotation):
            yield from _walk(inner, key.path)


def suggest(word: str, candidates: Iterable[str]) -> list[str]:
    """The candidates that ``word`` may be a misspelling of, likeliest first.

    Distance counts insertions, deletions, replacements and swapped neighbours, case and ``-`` for ``_`` are free;
    at most a third of the letters may differ. Ties go to the candidate that begins alike. What other libraries call
    a candidate is as good as its name.
    """
    typed = _plain(word)
    candidates = tuple(dict.fromkeys(candidates))
    if OTHER_NAMES.get(typed) in candidates and typed not in candidates:
        return [OTHER_NAMES[typed]]
    allowed = max(1, len(typed) // 3)
    ranked = [
        (OSA.distance(typed, _plain(name)), -JaroWinkler.similarity(typed, _plain(name)), name) for name in candidates
    ]
    return [name for distance, _, name in sorted(ranked) if distance <= allowed]


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def explain_unknown_key(root: SectionClass, path: Sequence[str], here: Iterable[str]) -> str:
    """What to say about a key that its section does not have.

    Args:
        root: the whole schema.
        path: path of the unknown key.
        here: keys that its section does have.
    """
    word, level = path[-1], list(here)
    near = suggest(word, level)
    one_edit = bool(near) and OSA.distance(_plain(word), _plain(near[0])) <= 1
    elsewhere = [key.path for key in walk_keys(root) if key.path[-1] == word and len(key.path) > 1]
    if elsewhere and not one_edit:
        return f"is no key of this section; it belongs under {_sections(elsewhere)}"
    if near:
        return f"is no key of this section; did you mean {near[0]}?"
    far = suggest(word, [key.path[-1] for key in walk_keys(root)])
    if far:
        paths = [key.path for key in walk_keys(root) if key.path[-1] == far[0]]
        return f"is no key of this section; did you mean {'.'.join(paths[0])}?"
    return f"is no key of this section; it has {', '.join(level)}"


def _sections(paths: Iterable[tuple[str, ...]]) -> str:
    return " or ".join(dict.fromkeys(".".join(path[:-1]) for path in paths))
