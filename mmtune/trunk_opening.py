"""Where a run's states are kept: the folder, the room that each side gets, and what is left out for want of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.ground.errors import RecipeError
from mmtune.ground.process_group import gather_objects, rank
from mmtune.part_sizes import in_words
from mmtune.trunk_batches import Feed
from mmtune.trunk_cache import Asked, TrunkCache, words_for
from mmtune.trunk_keys import about_trunk, fingerprint

GB = 10**9


def open_stores(cache: TrunkCache, backbone: Any, asked: Asked, numbers: Mapping[str, int], num_shown: int = 0) -> None:
    """Decide where each side's states are kept; those that do not pay or find no room are not.

    Args:
        cache: from ``plan``; its feeds have seen a few items, where it is to be known how much room all take.
        backbone: whose family feeds.
        asked: see there.
        numbers: side -> how many different inputs there are.
        num_shown: how many items the run goes through; 0: it is not known.
    """
    from mmtune.content_memory import ContentMemory
    from mmtune.trunk_shelf import folder_bytes
    from mmtune.trunk_store import TrunkStore

    section, limit = asked.section, int(asked.section.limit_gb * GB)
    sizes = {side: int(feed.store.mean * numbers.get(side, 0)) for side, feed in cache.feeds.items()}
    for side in [*cache.feeds]:
        if section.mode == "auto" and 0 < num_shown <= numbers.get(side, 0):
            what = f"the run shows {num_shown:,} and there are {numbers[side]:,}, so few would be met again"
            why = f"{what}; train.trunk_cache: disk keeps them for later runs"
            cache.drop(side, words_for(backbone, side), why)
    if not cache.feeds:
        return
    root = _root(cache, section, sum(sizes[side] for side in cache.feeds))
    abouts = {
        side: about_trunk(backbone, feed.cut, precision=asked.precision, device=asked.device)
        for side, feed in cache.feeds.items()
    }
    folders = {side: root / fingerprint(about) for side, about in abouts.items()}
    wanted = {side: max(0, sizes[side] - folder_bytes(folder)) for side, folder in folders.items()}
    _fit(cache, backbone, root, wanted, limit)
    rooms = share_room(root, limit, {folders[side]: sizes[side] for side in cache.feeds})
    memory = ContentMemory(root)
    cache.closing.callback(memory.close)
    for side, feed in cache.feeds.items():
        folder, dtype = folders[side], section.dtype
        feed.store = TrunkStore(folder, about=abouts[side], limit=rooms[folder], dtype=dtype, say=asked.say)
        feed.memory = memory
        cache.before[side] = feed.store.num_entries
        feed.num_computed, feed.num_found, feed.seconds = 0, 0, 0.0
        cache.closing.callback(feed.store.close)
        cache.lines.append(_describe(feed, words_for(backbone, side), numbers.get(side, 0), sizes[side]))


def share_room(root: Path, limit: int, sizes: Mapping[Path, int]) -> dict[Path, int]:
    """Folder -> the bytes that it may have, so that all trunks below ``root`` together keep to the limit.

    Args:
        root: of the cache.
        limit: of all trunks.
        sizes: folder -> what its states are expected to take; what is left is shared in these proportions.
    """
    from mmtune.trunk_shelf import folder_bytes, held_bytes

    left = max(0, limit - held_bytes(root))
    whole = sum(size + 1 for size in sizes.values())
    return {folder: folder_bytes(folder) + left * (size + 1) // whole for folder, size in sizes.items()}


def _describe(feed: Feed, name: str, number: int, size: int) -> str:
    forecast = f"{number:,} take about {in_words(size)}, " if size else ""
    kept = f"{forecast}{feed.store.num_entries:,} are there already, in {feed.store.folder}"
    return f"trunk cache: {feed.cut} runs once for each of the {name}: {kept}"


def _root(cache: TrunkCache, section: Any, num_bytes: int) -> Path:
    """The folder of all trunks; in memory one for all ranks of this machine, which goes with the run.

    Raises:
        RecipeError: on every rank, where there is no room in memory.
    """
    from mmtune.trunk_shelf import cache_root, memory_root

    if section.mode != "memory":
        return cache_root(section.folder)
    mine, problem = "", ""
    if rank() == 0:
        try:
            mine = str(cache.closing.enter_context(memory_root(num_bytes)).folder)
        except RecipeError as error:  # every rank must hear of it: the others wait here
            problem = str(error)
    said = gather_objects([(mine, problem)])[0]
    if said[1]:
        raise RecipeError(said[1])
    return Path(said[0])


def _fit(cache: TrunkCache, backbone: Any, root: Path, sizes: Mapping[str, int], limit: int) -> None:
    """Leave the sides whose states find room together; the largest gives way first, and it is said."""
    from mmtune.trunk_shelf import room_for

    while cache.feeds:
        why = room_for(root, sum(sizes[side] for side in cache.feeds), limit)
        if why is None:
            return
        largest = max(cache.feeds, key=lambda side: sizes[side])
        cache.drop(largest, words_for(backbone, largest), why)
