"""The ``caption`` setting: a column, a column that holds a list, or a template such as ``{title} by {brand}``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmtune.ground.records import a_type, printable
from mmtune.ground.seeding import text_key
from mmtune.sources._table import is_missing

_PIECES = re.compile(r"(\{\{|\}\}|\{[^{}]*\})")


@dataclass(frozen=True)
class CaptionRule:
    """A parsed ``caption`` setting.

    Attributes:
        pieces: literal texts and columns, alternating, beginning and ending with a (maybe empty) text; a single column
            without any braces is ``None``.
        columns: the columns it needs, in order.
    """

    text: str
    pieces: tuple[str, ...] | None
    columns: tuple[str, ...]


def parse_caption(text: str) -> CaptionRule:
    """Read the setting; ``{{`` and ``}}`` stand for braces.

    Raises:
        ValueError: an empty setting, an empty or unclosed ``{}``, or a template that names no column.
    """
    if not text.strip():
        raise ValueError("an empty caption; write a column name or a template such as '{title} by {brand}'")
    if "{" not in text and "}" not in text:
        return CaptionRule(text, None, (text,))
    pieces, columns = [""], []
    for piece in _PIECES.split(text):
        if piece in ("{{", "}}"):
            pieces[-1] += piece[0]
        elif piece.startswith("{") and piece.endswith("}"):
            columns.append(_column(piece, text))
            pieces += [columns[-1], ""]
        elif "{" in piece or "}" in piece:
            raise ValueError(f"{text!r}: a brace without its partner; write {{{{ or }}}} for a brace itself")
        else:
            pieces[-1] += piece
    if not columns:
        raise ValueError(f"{text!r} names no column, so every image would have the same caption")
    return CaptionRule(text, tuple(pieces), tuple(dict.fromkeys(columns)))


def _column(piece: str, text: str) -> str:
    name = piece[1:-1].strip()
    if not name:
        raise ValueError(f"{text!r}: an empty {{}}; write the column's name between the braces")
    return name


def captions_of(values: dict[str, Any], rule: CaptionRule) -> tuple[list[str], list[str]]:
    """The captions of a row, stripped and without repetition, and a reason for each that is bad."""
    if rule.pieces is not None:
        found, problems = _filled(values, rule.pieces)
    else:
        found, problems = _of_column(values.get(rule.text), rule.text)
    return distinct(found) if len(found) > 1 else found, problems


def distinct(captions: Iterable[str]) -> list[str]:
    """Captions without those that equal an earlier one (`text_key`)."""
    kept: dict[int, str] = {}
    for caption in captions:
        kept.setdefault(text_key(caption), caption)
    return list(kept.values())


def _of_column(value: Any, column: str) -> tuple[list[str], list[str]]:
    if not isinstance(value, list):
        problem = _problem(value, column)
        return ([], [problem]) if problem else ([value.strip()], [])
    if not value:
        return [], [f"empty caption: column '{column}' is an empty list"]
    problems = [_problem(entry, column, f", item {number} of its list") for number, entry in enumerate(value, start=1)]
    kept = [entry.strip() for entry, problem in zip(value, problems, strict=True) if problem is None]
    rest = "; the row stays with its other captions" if kept else ""
    return kept, [f"{problem}{rest}" for problem in problems if problem is not None]


def _problem(value: Any, column: str, item: str = "") -> str | None:
    if is_missing(value):
        return f"empty caption: column '{column}'{item}"
    if not isinstance(value, str):
        return f"caption is not text: column '{column}'{item} holds {a_type(value)}"
    return _not_utf8(value, column)


def _filled(values: dict[str, Any], pieces: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """A template with its columns filled in; numbers are welcome, a missing cell makes the caption bad."""
    caption, problems = "", []
    for index, piece in enumerate(pieces):
        value = values.get(piece) if index % 2 else piece
        if index % 2 and is_missing(value):
            problems.append(f"empty caption: column '{piece}' of the template")
        elif isinstance(value, (list, dict, bytes)):
            problems.append(f"caption is not text: column '{piece}' of the template holds {a_type(value)}")
        elif index % 2 and isinstance(value, str) and (problem := _not_utf8(value, piece)):
            problems.append(problem)
        else:
            caption += str(value).strip() if index % 2 else piece
    return ([], problems) if problems else ([caption.strip()], [])


def _not_utf8(value: str, column: str) -> str | None:
    """The name of a class is that of a folder, which may be any bytes."""
    if printable(value) == value:
        return None
    return f"caption is not UTF-8: column '{column}' holds '{value}'; rename the folder"
