"""What the tests of conversations share: rows in the three usual formats, and what came out of them."""

import json
from pathlib import Path
from typing import Any

from mmtune.ground.records import Sample
from mmtune.sources import OpenedSplit
from mmtune.sources.conversations import Section
from mmtune.sources.conversations import open_split as open_unlimited


def messages(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    """``{"messages": [{"role", "content"}, ...]}``."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def spoken(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    """``{"conversations": [{"from", "value"}, ...]}``, as ShareGPT and LLaVA write them."""
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


def section(folder: Path, name: str = "chats.jsonl", **settings: Any) -> Section:
    chosen = {"path": str(folder / name), "images": str(folder / "images"), **settings}
    if isinstance(chosen["path"], str) and "splits" not in chosen:
        chosen.setdefault("split", {})
    return Section.model_validate_json(json.dumps({"kind": "conversations", **chosen}))


def opened(folder: Path, which: str = "train", /, name: str = "chats.jsonl", **settings: Any) -> OpenedSplit:
    """A split of ``chats.jsonl`` (or of ``name``), without the limit on bad items."""
    return open_unlimited(section(folder, name, **settings), which, seed=0)


def shown(sample: Sample) -> list[tuple[str, ...]]:
    """(role, pieces) of every turn; images by the names of their files, in angle brackets."""
    return [
        (
            turn.role,
            *(piece if isinstance(piece, str) else f"<{piece.where.rpartition('/')[2]}>" for piece in turn.content),
        )
        for turn in sample.turns
    ]
