"""Files of conversations to rows that know their line: JSON lines, or one JSON list of objects."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from mmtune.ground.errors import DataError
from mmtune.ground.records import BadItem
from mmtune.sources._table import Row, Table, json_object, read_table, text_lines

_BLANK = re.compile(r"\s*")
_NUMBER = re.compile(r"(\d+)\)?$")


def read_conversations(path: Path) -> Table:
    """The rows of a file; in a list, ``where`` says the line and which entry of the list it is.

    Raises:
        DataError: the file is missing, holds one object instead of many, or is a list that is no JSON (what comes after
            a slip in a list cannot be told apart).
    """
    lines = text_lines(path)
    first = next((line.strip() for line in lines if line.strip()), "")
    if first == "{":
        raise DataError(f"{path} is one JSON object; write a list of objects, or one object per line")
    if not first.startswith("["):
        return read_table(path, "jsonl")
    found = list(_listed("\n".join(lines), path))
    rows = tuple(item for item in found if isinstance(item, Row))
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    return Table(path, rows, tuple(item for item in found if isinstance(item, BadItem)), columns)


def number_of(row: Row) -> int:
    """The row's line, or in a list its entry, from 1: the same whether other rows are good or bad."""
    found = _NUMBER.search(row.where)
    assert found is not None, row.where
    return int(found.group(1))


def _listed(text: str, path: Path) -> Iterator[Row | BadItem]:
    line, counted = 1, 0
    for number, (start, end) in enumerate(_entries(text, path), start=1):
        line, counted = line + text.count("\n", counted, start), start
        where = f"{path}:{line} (entry {number})"
        values = json_object(text[start:end])
        yield Row(where, values) if isinstance(values, dict) else BadItem(where, values)


def _entries(text: str, path: Path) -> Iterator[tuple[int, int]]:
    """Where each entry of the list begins and ends."""
    decoder = json.JSONDecoder()
    place = _after_blank(text, text.index("[") + 1)
    try:
        while not text.startswith("]", place):
            _, end = decoder.raw_decode(text, place)
            yield place, end
            place = _after_blank(text, end)
            if text.startswith("]", place):
                break
            if not text.startswith(",", place):
                raise json.JSONDecodeError("a comma or ] is missing", text, place)
            place = _after_blank(text, place + 1)
    except json.JSONDecodeError as problem:
        raise DataError(f"{path}:{problem.lineno} is not JSON: {problem.msg} at column {problem.colno}") from None
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path} is not JSON: {problem}") from None
    rest = _after_blank(text, place + 1)
    if rest < len(text):
        line = text.count("\n", 0, rest) + 1
        raise DataError(f"{path}:{line} comes after the list's end; write one list, or one object per line")


def _after_blank(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    return found.end() if found else place
