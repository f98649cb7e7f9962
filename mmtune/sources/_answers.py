"""What a row asks and what is true: the settings ``question``, ``answers`` and ``label``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmtune.ground.records import a_type
from mmtune.sources._named_files import BadRow
from mmtune.sources._table import as_text, is_missing

TRUE = ("true", "1", "yes", "match")
FALSE = ("false", "0", "no", "no match")


@dataclass(frozen=True)
class AnswerColumns:
    """The columns that make every row a sample of its own; all None: rows are captions of images.

    Attributes:
        question: column with the question.
        answers: column with one answer, or with those of several people.
        label: column that says whether the row's caption is true of its image.
    """

    question: str | None = None
    answers: str | None = None
    label: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Setting -> column, for those that are given."""
        return {key: column for key, column in vars(self).items() if column is not None}


@dataclass(frozen=True)
class Asked:
    """What a row holds of it."""

    question: str = ""
    answers: tuple[str, ...] = ()
    label: bool | None = None


def asked_of(values: Mapping[str, Any], columns: AnswerColumns) -> tuple[Asked, list[str]]:
    """What a row asks, and a reason for each of several answers that is bad.

    Raises:
        BadRow: nothing of the row can be kept; all reasons.
    """
    question, label = "", None
    answers: tuple[str, ...] = ()
    reasons: list[str] = []
    left_out: list[str] = []
    for setting, column in columns.named.items():
        try:
            if setting == "question":
                question = _question(values.get(column), column)
            elif setting == "answers":
                answers, left_out = _answers(values.get(column), column)
            else:
                label = _label(values.get(column), column)
        except BadRow as problem:
            reasons.append(str(problem))
    if reasons:
        raise BadRow("; ".join(reasons))
    return Asked(question, answers, label), left_out


def _question(value: Any, column: str) -> str:
    if is_missing(value):
        raise BadRow(f"empty question: column '{column}'")
    if not isinstance(value, str):
        raise BadRow(f"question is not text: column '{column}' holds {a_type(value)}")
    return value.strip()


def _answers(value: Any, column: str) -> tuple[tuple[str, ...], list[str]]:
    """Answers in their order, equal ones kept; ``{"answer": ...}`` stands for what it holds."""
    value = _unwrapped(value)
    if not isinstance(value, list):
        return (_answer(value, column),), []
    if not value:
        raise BadRow(f"no answer: column '{column}' is an empty list")
    kept, problems = [], []
    for number, entry in enumerate(value, start=1):
        try:
            kept.append(_answer(_unwrapped(entry), column, f", item {number} of its list"))
        except BadRow as problem:
            problems.append(str(problem))
    if not kept:
        raise BadRow("; ".join(dict.fromkeys(problems)))
    return tuple(kept), [f"{problem}; the row stays with its other answers" for problem in problems]


def _unwrapped(value: Any) -> Any:
    """What ``{"answer": "red", "answer_id": 1}`` and ``{"text": ["red", "dark red"]}`` hold."""
    if isinstance(value, dict):
        return next((value[key] for key in ("answer", "text") if key in value), value)
    return value


def _answer(value: Any, column: str, item: str = "") -> str:
    if is_missing(value):
        raise BadRow(f"empty answer: column '{column}'{item}")
    if isinstance(value, bool):
        raise BadRow(f"answer is not text: column '{column}'{item} holds {as_text(value)}; write yes or no")
    if isinstance(value, (list, dict, bytes)):
        raise BadRow(
            f"answer is not text: column '{column}'{item} holds {a_type(value)}; write a text, a list of texts, or a "
            'list of {"answer": text}'
        )
    text = as_text(value).strip()
    if text.startswith(('["', "['")):
        raise BadRow(f"answers are a list written as text: column '{column}'{item}; lists need JSON lines or parquet")
    return text


def _label(value: Any, column: str) -> bool:
    if is_missing(value):
        raise BadRow(f"empty label: column '{column}'")
    written = f"{value:g}" if isinstance(value, float) else as_text(value).strip().lower()
    if written in TRUE:
        return True
    if written in FALSE:
        return False
    raise BadRow(
        f"label is neither true nor false: column '{column}' holds {as_text(value)[:80]!r}; write one of "
        f"{', '.join(TRUE)}, or one of {', '.join(FALSE)}"
    )
