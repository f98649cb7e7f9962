"""Made-up tables: rows with a recipe's own columns, two for each picture."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune.sources._captions import CaptionRule
from mmtune.sources._made_up import NUM_CAPTIONS, MadeUp, cells
from mmtune.sources._splits import ColumnSplit


def made_up_rows(
    pictures: Sequence[MadeUp],
    rule: CaptionRule,
    *,
    id: str | None = None,
    by: str | None = None,
    splits: ColumnSplit | None = None,
    modality: str = "image",
) -> list[tuple[MadeUp, dict[str, Any]]]:
    """Rows without their image. Where one column serves two ends, the split comes before the caption."""
    value_of = {ours: value for value, ours in reversed(list(splits.name_of.items()))} if splits else {}
    rows = []
    for one in pictures:
        for variant in range(NUM_CAPTIONS):
            row: dict[str, Any] = dict(cells(rule, one.number, variant, modality))
            if id is not None:
                row[id] = f"tiny-{one.number}"
            if by is not None:
                row[by] = one.group
            if splits is not None:
                row[splits.column] = next(value for ours, value in value_of.items() if ours == one.split)
            rows.append((one, row))
    return rows


def write_table(path: Path, form: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table of text in one of `mmtune.sources._table`'s formats."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if form == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
