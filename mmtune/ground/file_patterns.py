"""Names of several files in one line of a recipe: ``shards/{000..012}.tar``, ``{a,b}.parquet``, ``data/train-*``."""

import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from mmtune.ground.errors import DataError

MOST_FILES = 1_000_000
"""More than this is a slip of the pen: ``{0..999999999}``."""

MOST_NAMES = 8
"""Names of a folder that a message lists."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> Iterator[str]:
    """Every name that the braces stand for, in their order: ``{08..10}`` keeps its width, ``{a,b}`` lists words.

    Braces that hold neither a range nor a comma stand for themselves.
    """
    for braces in _BRACES.finditer(pattern):
        words = _words(braces.group(1))
        if words is not None:
            head, tail = pattern[: braces.start()], pattern[braces.end() :]
            for word in words:
                yield from (head + word + rest for rest in expand_braces(tail))
            return
    yield pattern


def _words(inside: str) -> Iterator[str] | None:
    bounds = _RANGE.fullmatch(inside)
    if bounds:
        first, last = bounds.groups()
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        return (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))
    return iter(inside.split(",")) if "," in inside else None


def files_of(pattern: str, setting: str, ending: str) -> list[Path]:
    """The files that a pattern stands for: in the order of its braces, and sorted within each ``*``; each once.

    A folder stands for the files in it that have the ending, sorted.

    Args:
        pattern: a path; ``{}`` as `expand_braces`, ``*``, ``?``, ``[]`` and ``**`` as in a shell.
        setting: the recipe's key, for the message.
        ending: of the files of a folder, such as ``.tar``.

    Raises:
        DataError: folders without such files; names without a file, all of them (the first five are shown), or a range
            that is endless.
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    names = list(islice(expand_braces(pattern), MOST_FILES + 1))
    if len(names) > MOST_FILES:
        raise DataError(f"{setting}: '{pattern}' stands for more than {MOST_FILES:,} files")
    found: dict[Path, None] = {}
    missing: list[str] = []
    for name in names:
        there = files_in(name, setting, ending) if Path(name).is_dir() else _matches(name)
        found.update(dict.fromkeys(there))
        missing += [] if there else [name]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        of = f" (of '{pattern}')" if len(names) > 1 else ""
        raise DataError(f"{setting}: no such file: {', '.join(missing[:5])}{more}{of}{_siblings(missing[0])}")
    return list(found)


def files_in(folder: str, setting: str, ending: str) -> list[Path]:
    """The files of a folder (not below it) that have the ending, sorted.

    Raises:
        DataError: there is none.
    """
    inside = sorted(Path(folder).iterdir())
    found = [path for path in inside if path.name.lower().endswith(ending) and path.is_file()]
    if not found:
        names = ", ".join(path.name for path in inside[:MOST_NAMES]) or "nothing"
        deeper = next((path.parent for path in sorted(Path(folder).glob(f"*/*{ending}"))), None)
        hint = f"; write '{Path(folder) / '*' / f'*{ending}'}' for those in {deeper.name}" if deeper else ""
        raise DataError(f"{setting}: {folder} is a folder without *{ending}; it holds {names}{hint}")
    return found


def files_of_splits(patterns: Mapping[str, str], setting: str, ending: str) -> dict[str, list[Path]]:
    """`files_of` for a pattern per split ("" where one pattern stands for all).

    Raises:
        DataError: all problems of all patterns.
    """
    found: dict[str, list[Path]] = {}
    problems = []
    for split, pattern in patterns.items():
        try:
            found[split] = files_of(pattern, f"{setting}.{split}" if split else setting, ending)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return found


def any_file(pattern: str) -> bool:
    """Whether the first name that a pattern stands for is there."""
    return bool(_matches(next(expand_braces(pattern))))


def _matches(name: str) -> list[Path]:
    if Path(name).is_file() or not glob.has_magic(name):
        return [Path(name)] if Path(name).is_file() else []
    return [path for each in sorted(glob.glob(name, recursive=True)) if (path := Path(each)).is_file()]


def _siblings(name: str) -> str:
    folder = Path(name).parent
    if glob.has_magic(str(folder)):
        return ""
    if not folder.is_dir():
        return f"; there is no folder {folder}"
    names = nearest_first(Path(name).name, (path.name for path in folder.iterdir()))
    return f"; {folder} holds {', '.join(names[:MOST_NAMES]) or 'nothing'}{' ...' if len(names) > MOST_NAMES else ''}"


def missing_folder(name: str, holds: Sequence[str] = ()) -> str | None:
    """What to say of a name that is surely meant as a folder and is none; None where it may be a name on the hub.

    It is meant as one where it begins or is deep like a path, where its parent is a folder here, and where a folder of
    that name, one level down, has a file that ``holds`` names.
    """
    place = Path(name).expanduser()
    path_like = name.startswith((".", "/", "~")) or name.count("/") > 1
    beside = [path.name for path in _inside(place.parent) if path.is_dir()]
    deeper = [each / name for each in _inside(Path()) if holds and "/" not in name]
    below = [path for path in deeper if any((path / file).is_file() for file in holds)]
    if not path_like and not below and not ("/" in name and beside):
        return None
    near = nearest_first(place.name, beside)
    guesses = [str(path) for path in below] or [
        str(place.parent / each) for each in near[:1] if _alike(place.name, each)
    ]
    guess = f"; did you mean {' or '.join(guesses[:3])}?" if guesses else ""
    there = f"; {place.parent} has {', '.join(near[:MOST_NAMES])}" if near and not below else ""
    return f"there is no folder {name}{guess}{there}"


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _alike(name: str, other: str) -> bool:
    from rapidfuzz import fuzz, utils

    return fuzz.ratio(name, other, processor=utils.default_process) >= 60


def nearest_first(name: str, names: Iterable[str]) -> list[str]:
    """Names by their likeness to one that is not there, so that a list that is cut still holds what was meant."""
    from rapidfuzz import fuzz, utils

    score = {each: fuzz.ratio(name, each, processor=utils.default_process) for each in names}
    return sorted(score, key=lambda each: (-score[each], each))
