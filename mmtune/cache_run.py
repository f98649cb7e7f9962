"""The stories of ``cache``: what frozen trunks left on this disk, and clearing it."""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.trunk_shelf import Trunk

SECONDS = {"minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}


def list_cache(folder: str | None = None) -> list["Trunk"]:
    """Print each kept trunk: what it is of, how much it holds, when it was last used; and the sum.

    Args:
        folder: of the cache; None: the one that runs use by themselves.

    Returns:
        the trunks, the last used first.

    Raises:
        DataError: the folder cannot be read.
    """
    from mmtune.part_sizes import in_words
    from mmtune.trunk_shelf import cache_root, list_trunks

    root = cache_root(folder)
    trunks = list_trunks(root)
    for trunk in trunks:
        held = f"{_entries(trunk)}, {in_words(trunk.num_bytes)}, used {_ago(time.time() - trunk.last_use)}"
        print(f"{trunk.folder.name}  {_what(trunk)}: {held}")
    total = sum(trunk.num_bytes for trunk in trunks)
    print(f"{_counted(len(trunks))}, {in_words(total)}, in {root}" if trunks else f"no trunk is kept in {root}")
    return trunks


def clear_cache(names: Sequence[str] = (), *, older_than: str | None = None, folder: str | None = None) -> int:
    """Delete kept trunks, and print what was freed. A run that uses one goes on, and computes again.

    Args:
        names: as ``list_cache`` prints them, or how they begin; none: all of them.
        older_than: only those not used for so long: ``30 days``, ``12 hours``, ``2 weeks``.
        folder: of the cache; None: the one that runs use by themselves.

    Returns:
        bytes freed.

    Raises:
        RecipeError: a name that is not there or is several, or a time that is none; nothing was deleted.
        DataError: what could not be deleted; the rest was.
    """
    from mmtune.part_sizes import in_words
    from mmtune.trunk_shelf import cache_root, clear_trunks, list_trunks

    root = cache_root(folder)
    least = 0.0 if older_than is None else _seconds(older_than)
    now = time.time()
    chosen = [trunk for trunk in _named(list_trunks(root), names, root) if now - trunk.last_use >= least]
    freed = clear_trunks(root, chosen)
    for trunk in chosen:
        print(f"cleared {trunk.folder.name}  {_what(trunk)}")
    print(f"{in_words(freed)} freed, {_counted(len(chosen))}, in {root}")
    return freed


def _named(trunks: list["Trunk"], names: Sequence[str], root: "Path") -> list["Trunk"]:
    """The trunks that the names mean, each once; all where there is no name."""
    from mmtune.ground.errors import RecipeError

    if not names:
        return trunks
    meant: dict[str, Trunk] = {}
    problems = []
    for name in names:
        found = [each for each in trunks if each.folder.name == name]
        found = found or [each for each in trunks if name and each.folder.name.startswith(name)]
        meant.update({each.folder.name: each for each in found[:1]})
        if not found:
            there = ", ".join(each.folder.name for each in trunks[:5]) or "none"
            problems.append(f"there is no trunk {name!r} in {root}; there are: {there}")
        elif len(found) > 1:
            problems.append(f"{name!r} may be {' or '.join(each.folder.name for each in found[:5])}")
    if problems:
        raise RecipeError("\n".join(problems))
    return list(meant.values())


def _seconds(text: str) -> float:
    from mmtune.ground.errors import RecipeError

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(minute|hour|day|week)s?\s*", text)
    if match is None:
        raise RecipeError(f"{text!r} is not a time: write '30 days', '12 hours', '2 weeks' or '90 minutes'")
    return float(match[1]) * SECONDS[match[2]]


def _what(trunk: "Trunk") -> str:
    """What a trunk is of, as far as it says so."""
    about = trunk.about
    backbone = about.get("backbone", "an unknown backbone")
    family = f" ({about['family']})" if "family" in about else ""
    return f"{backbone}{family}, {about.get('cut', 'an unknown part')}"


def _entries(trunk: "Trunk") -> str:
    if trunk.num_entries is None:
        return "a damaged table"
    number = "1 entry" if trunk.num_entries == 1 else f"{trunk.num_entries:,} entries"
    return f"{number} in {' and '.join(trunk.dtypes)}" if trunk.dtypes else number


def _counted(number: int) -> str:
    return f"{number} trunk" if number == 1 else f"{number:,} trunks"


def _ago(seconds: float) -> str:
    """A time as people say it: ``3 days ago``."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count >= 1:
            return f"{count:,} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
