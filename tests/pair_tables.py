"""What the tests of tables share: write a few lines, open them, look at what came out."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from mmtune.sources import OpenedSplit
from mmtune.sources.jsonl import Section
from mmtune.sources.jsonl import open_split as open_unlimited

ALL_TRAIN: dict[str, Any] = {}


def make_images(folder: Path, count: int = 10) -> Path:
    """``folder/images/0.png`` ... and nothing else; the red value is the number."""
    (folder / "images").mkdir()
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / "images" / f"{number}.png")
    return folder


def section(folder: Path, name: str = "pairs.jsonl", **settings: Any) -> Section:
    chosen = {"path": str(folder / name), "images": str(folder / "images"), **settings}
    if isinstance(chosen["path"], str) and "splits" not in chosen:
        chosen.setdefault("split", ALL_TRAIN)
    return Section(kind="jsonl", **chosen)


def write_lines(folder: Path, *rows: object, name: str = "pairs.jsonl") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")


def opened(folder: Path, which: str = "train", /, name: str = "pairs.jsonl", **settings: Any) -> OpenedSplit:
    """A split of ``pairs.jsonl`` (or of ``name``), without the limit on bad items."""
    return open_unlimited(section(folder, name, **settings), which, seed=0)


def captions(result: OpenedSplit) -> dict[str, tuple[str, ...]]:
    return {sample.id: sample.captions for sample in result.samples}


def reasons(result: OpenedSplit) -> list[tuple[str, str]]:
    """(line number, reason) of the bad items."""
    return [(item.where.rsplit(":", 1)[-1], item.reason) for item in result.bad]
