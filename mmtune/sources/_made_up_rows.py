"""Made-up tables: rows with a recipe's own columns, two for each picture."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune.sources._answers import AnswerColumns
from mmtune.sources._captions import CaptionRule
from mmtune.sources._made_up import NUM_CAPTIONS, NUM_PICTURES, MadeUp, cells, questions
from mmtune.sources._splits import ColumnSplit


def made_up_rows(
    pictures: Sequence[MadeUp],
    rule: CaptionRule | None,
    *,
    id: str | None = None,
    by: str | None = None,
    splits: ColumnSplit | None = None,
    modality: str = "image",
    asked: AnswerColumns | None = None,
    listed: bool = True,
) -> list[tuple[MadeUp, dict[str, Any]]]:
    """Rows without their image. Where one column serves two ends, the split comes before the caption.

    With a question the two rows of a picture ask two things; with a label the second caption is another picture's.

    Args:
        pictures: what the rows are about.
        rule: the caption rule, where captions are read.
        id, by: columns that name the row (or its image) and its group.
        splits: the column that names the split.
        modality: of what is asked and said.
        asked: columns of questions, answers and labels.
        listed: whether a cell can hold several answers.
    """
    value_of = {ours: value for value, ours in reversed(list(splits.name_of.items()))} if splits else {}
    rows = []
    for one in pictures:
        for variant in range(NUM_CAPTIONS):
            row = _texts(one.number, variant, rule, asked, modality, listed)
            if id is not None:
                row[id] = f"tiny-{one.number}" + (f"-{variant}" if asked and asked.named else "")
            if by is not None:
                row[by] = one.group
            if splits is not None:
                row[splits.column] = next(value for ours, value in value_of.items() if ours == one.split)
            rows.append((one, row))
    return rows


def _texts(
    number: int, variant: int, rule: CaptionRule | None, asked: AnswerColumns | None, modality: str, listed: bool
) -> dict[str, Any]:
    """The columns that are read by a caption rule, or hold a question, answers or a label."""
    columns = asked or AnswerColumns()
    shown = number
    if columns.label is not None and variant:
        shown = (number + NUM_PICTURES // 2) % NUM_PICTURES
    row: dict[str, Any] = dict(cells(rule, shown, variant, modality)) if rule is not None else {}
    question, answer = questions(number, modality)[variant]
    if columns.question is not None:
        row[columns.question] = question
    if columns.answers is not None:
        row[columns.answers] = [answer] * 3 if listed else answer
    if columns.label is not None:
        row[columns.label] = shown == number
    return row


def write_table(path: Path, form: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table of text in one of `mmtune.sources._table`'s formats."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if form == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
