"""Tables of text (JSON lines, CSV, TSV) to rows that know their line; lines that cannot be read become `BadItem`."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmtune.ground.errors import DataError
from mmtune.ground.file_patterns import nearest_first
from mmtune.ground.records import BadItem, a_type

TableFormat = Literal["jsonl", "csv", "tsv"]

SUFFIXES: dict[str, TableFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}


@dataclass(frozen=True)
class Row:
    """One row: ``where`` is ``file:line`` (its first line), ``values`` maps column to cell (text for CSV and TSV)."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table that was read: rows and bad lines in file order, every column that occurs, in order of appearance."""

    path: Path
    rows: tuple[Row, ...]
    bad: tuple[BadItem, ...]
    columns: tuple[str, ...]


def format_of(path: str | Path) -> TableFormat:
    """The format that the suffix names.

    Raises:
        ValueError: an unknown suffix.
    """
    try:
        return SUFFIXES[Path(path).suffix.lower()]
    except KeyError:
        known = ", ".join(SUFFIXES)
        raise ValueError(f"'{path}' does not say what it is: end it in one of {known}, or set `format`") from None


def read_table(path: Path, form: TableFormat) -> Table:
    """Read a whole table, UTF-8 with or without a byte order mark, any line ends; blank lines are skipped.

    Raises:
        DataError: the file is missing or is no text of this format at all.
    """
    lines = text_lines(path)
    rows: list[Row] = []
    bad: list[BadItem] = []
    parsed = _json_rows(lines, path) if form == "jsonl" else _csv_rows(lines, path, "\t" if form == "tsv" else ",")
    for item in parsed:
        if isinstance(item, Row):
            rows.append(item)
        else:
            bad.append(item)
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    return Table(path, tuple(rows), tuple(bad), columns)


def require_columns(table: Table, wanted: Iterable[tuple[str, str]]) -> None:
    """Check that columns exist; ``wanted`` holds (setting that names it, column).

    Raises:
        DataError: every missing column at once, each with the nearest names.
    """
    if not table.rows:
        first = f"; first: {table.bad[0].where}: {table.bad[0].reason}" if table.bad else ""
        raise DataError(f"{table.path} has no readable rows ({len(table.bad)} bad lines{first})")
    problems = [
        f"{setting}: {table.path} has no column '{column}'{nearest(column, table.columns)}"
        for setting, column in wanted
        if column not in table.columns
    ]
    if problems and len(table.columns) == 1 and ";" in table.columns[0]:
        problems.append("its header has no comma: save it separated by commas instead of semicolons")
    if problems:
        raise DataError("\n".join(problems))


def nearest(name: str, choices: Sequence[str], limit: int = 12) -> str:
    """``; did you mean 'a' or 'b'? There are: ...`` for an error message."""
    from rapidfuzz import fuzz, process, utils

    hits = process.extract(name, choices, scorer=fuzz.ratio, processor=utils.default_process, limit=2, score_cutoff=60)
    guess = " or ".join(f"'{hit[0]}'" for hit in hits)
    shown = nearest_first(name, choices)[:limit] if len(choices) > limit else choices
    listed = ", ".join(f"'{choice}'" for choice in shown) or "none"
    more = f" and {len(choices) - limit} more" if len(choices) > limit else ""
    return f"; {f'did you mean {guess}? ' if guess else ''}there are: {listed}{more}"


def is_missing(value: Any) -> bool:
    """A cell without content: absent, null, blank, or the NaN that pandas writes for null (``nan`` in a CSV too)."""
    if isinstance(value, str):
        return value.strip() in ("", "nan", "NaN")
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str:
    """A cell as text: strings as they are, missing ones empty, everything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if is_missing(value) else json.dumps(value, ensure_ascii=False)


def text_lines(path: Path) -> list[str]:
    """Physical lines without their ends; bytes that are not UTF-8 become lone surrogates.

    Raises:
        DataError: the file is missing, cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"no such file: {path}{nearest(path.name, siblings)}") from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from None
    if b"\0" in content[:4096]:
        raise DataError(f"{path} is not UTF-8 text; save the table as UTF-8, not compressed")
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _json_rows(lines: list[str], path: Path) -> Iterator[Row | BadItem]:
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("["):
        raise DataError(f"{path} is one JSON list; write one object per line instead")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}:{number}"
            values = json_object(line)
            yield Row(where, values) if isinstance(values, dict) else BadItem(where, values)


def json_object(line: str) -> dict[str, Any] | str:
    """The object that a line (or a small file) holds, or why there is none."""
    if _has_lone_surrogate(line):
        return "not UTF-8"
    try:
        values = json.loads(line)
    except json.JSONDecodeError as problem:
        return f"not JSON: {problem.msg} at column {problem.colno}"
    except (ValueError, RecursionError) as problem:
        return f"not JSON: {problem}"
    if not isinstance(values, dict):
        return f"not a JSON object: {a_type(values)}"
    if "\\u" in line and _has_lone_surrogate(json.dumps(values, ensure_ascii=False)):
        return "half a character: a lone \\ud800 to \\udfff escape"
    return values


def _csv_rows(lines: list[str], path: Path, delimiter: str) -> Iterator[Row | BadItem]:
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            if header is None:
                raise DataError(f"{path}:{first} is no header line: {problem}") from None
            yield from _bad_lines(path, first, reader.line_num, f"not CSV: {problem}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _checked_header(cells, path, first)
        elif len(cells) != len(header):
            reason = f"wrong number of fields: {len(cells)}, the header has {len(header)}"
            yield from _bad_lines(path, first, reader.line_num, reason)
        elif any(map(_has_lone_surrogate, cells)):
            yield from _bad_lines(path, first, reader.line_num, "not UTF-8")
        else:
            yield Row(f"{path}:{first}", {name: cell for name, cell in zip(header, cells, strict=True) if name})


def _checked_header(cells: list[str], path: Path, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path}:{line}: column {', '.join(map(repr, twice))} occurs twice in the header")
    return header


def _bad_lines(path: Path, first: int, last: int, reason: str) -> Iterator[BadItem]:
    """One item per physical line: an open quote swallows good lines, and those are lost too."""
    yield BadItem(f"{path}:{first}", reason)
    for number in range(first + 1, min(last, first + 1_000_000) + 1):
        yield BadItem(f"{path}:{number}", f"lost with a bad row: the one that begins in line {first}")


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
