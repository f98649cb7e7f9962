"""Annotation files: one JSON object that lists images, as COCO and Karpathy's splits are published."""

import json
from pathlib import Path
from typing import Any

from mmtune.ground.errors import DataError
from mmtune.ground.records import a_type
from mmtune.sources._table import nearest


def read_annotations(path: Path, setting: str) -> dict[str, Any]:
    """The object in a file.

    Raises:
        DataError: the file is missing, no UTF-8, no JSON, or holds something else.
    """
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"{setting}: no such file: {path}{nearest(path.name, siblings)}") from None
    except OSError as problem:
        raise DataError(f"{setting}: {path} cannot be read: {problem.strerror}") from None
    except json.JSONDecodeError as problem:
        raise DataError(f"{setting}: {path}:{problem.lineno} is not JSON: {problem.msg}") from None
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{setting}: {path} is not JSON in UTF-8: {problem}") from None
    if not isinstance(values, dict):
        raise DataError(f"{setting}: {path} holds {a_type(values)}, not an object with a list 'images'")
    return values


def listed(values: dict[str, Any], key: str, path: Path, setting: str, hint: str = "") -> list[Any]:
    """A list in the object that may not be empty.

    Raises:
        DataError: there is none; ``hint`` says what the file might be instead.
    """
    found = values.get(key)
    if isinstance(found, list) and found:
        return found
    keys = ", ".join(list(values)[:10]) or "nothing"
    raise DataError(f"{setting}: {path} has no list '{key}' with anything in it; it has {keys}{hint}")


def require_folders(folders: dict[str, str]) -> None:
    """Folders exist; ``folders`` maps settings to them.

    Raises:
        DataError: all that do not.
    """
    problems = [f"{setting}: no such folder: {path}" for setting, path in folders.items() if not Path(path).is_dir()]
    if problems:
        raise DataError("\n".join(problems))
