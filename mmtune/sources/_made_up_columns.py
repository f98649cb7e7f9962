"""Made-up rows whose cells hold the images."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmtune.sources._answers import AnswerColumns
from mmtune.sources._captions import CaptionRule
from mmtune.sources._made_up import file_stem, group_name, make_up, picture
from mmtune.sources._made_up_rows import made_up_rows
from mmtune.sources._splits import ColumnSplit, HashSplit

_drawn = cache(picture)


def made_up_cells(
    names: Sequence[str],
    *,
    image: str,
    rule: CaptionRule | None,
    id: str | None = None,
    by_hash: HashSplit | None = None,
    splits: ColumnSplit | None = None,
    images: Path | None = None,
    asked: AnswerColumns | None = None,
) -> list[tuple[str, dict[str, Any]]]:
    """(split, row) with ``{bytes, path}`` in the image column; with ``images``, files there and their names instead."""
    by = by_hash.by if by_hash and by_hash.by != image else None
    group = group_name if by else _file_name if images is not None else _digest
    pictures = make_up(names, by_hash, group)
    rows = []
    for one, row in made_up_rows(pictures, rule, id=id, by=by, splits=splits, asked=asked):
        content = _drawn(one.number, one.attempt)
        cell: Any = {"bytes": content, "path": None}
        if images is not None:
            images.mkdir(parents=True, exist_ok=True)
            cell = _file_name(one.number, one.attempt)
            (images / cell).write_bytes(content)
        rows.append((one.split, {**row, image: cell}))
    return rows


def _file_name(number: int, attempt: int) -> str:
    return f"{file_stem(number, attempt)}.png"


def _digest(number: int, attempt: int) -> str:
    """What an image in a cell is called; see `mmtune.sources._columns`."""
    return hashlib.blake2b(_drawn(number, attempt), digest_size=16).hexdigest()
