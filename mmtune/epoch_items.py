"""What an epoch goes through: every item of one source, or the items of several in the proportions of their weights.

All of it is a function of (seed, epoch, place): nothing is counted while training, so a run that goes on needs no more
than its step.

With weights, an epoch is the shortest that holds them and every item at least once. With n items and the share w of an
epoch, a source has N w places of the N = max(n / w) of an epoch (rounded): each of its items stands floor(N w / n)
times, and the places that remain go round its items from epoch to epoch: in the long run all come equally often.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtune.ground.records import Sample
from mmtune.ground.seeding import generator_for
from mmtune.sources import sections_by_source


@dataclass(frozen=True)
class Shown:
    """What stands at a place of an epoch.

    Attributes:
        turn: how often the item was shown before, which is the epoch where every item comes once in each; captions and
            changes of the image are drawn by it.
        sample: index of the sample.
        caption: index of its caption; None: one that is drawn.
    """

    turn: int
    sample: int
    caption: int | None


class EpochItems:
    """The items of an epoch; places are 0 to ``len``, in the order of the sources and not yet shuffled."""

    def __init__(self, items: Mapping[str, Sequence[tuple[int, int | None]]], counts: Mapping[str, int], seed: int):
        """Take the items of every source as (sample, caption), and the places that each source has in an epoch."""
        self.parts = [_Part(items[name], counts[name], name, seed) for name in items]
        self.ends = np.cumsum([part.count for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def at(self, epoch: int, place: int) -> Shown:
        """What stands at a place."""
        number = int(np.searchsorted(self.ends, place, side="right"))
        part = self.parts[number]
        turn, item = part.at(epoch, place - int(self.ends[number]) + part.count)
        return Shown(turn, *part.items[item])

    def lines(self) -> list[str]:
        """What a log says of each source of a mix."""
        if [part.name for part in self.parts] == [""]:
            return []
        return [
            f"source {part.name}: {len(part.items)} items in {part.count} of an epoch's {len(self)} places"
            for part in self.parts
        ]


class _Part:
    """One source's places in an epoch."""

    def __init__(self, items: Sequence[tuple[int, int | None]], count: int, name: str, seed: int) -> None:
        self.items, self.count, self.name = items, count, name
        self.whole, self.rest = divmod(count, max(1, len(items)))
        self.walk = generator_for(seed, "walk", name).permutation(len(items)) if self.rest else None
        self.position = np.argsort(self.walk) if self.walk is not None else None

    def at(self, epoch: int, place: int) -> tuple[int, int]:
        """(turn, item) of a place: first the items as often as all of them fit, then the walk's share."""
        num = len(self.items)
        times, item = divmod(place, num)
        if self.walk is None or self.position is None:
            return epoch * self.whole + times, item
        if times < self.whole:
            walked = epoch * self.rest - int(self.position[item])
            return epoch * self.whole + max(0, -(-walked // num)) + times, item
        step = epoch * self.rest + item
        return epoch * self.whole + step // num + self.whole, int(self.walk[step % num])


def epoch_items(task: Any, samples: Sequence[Sample], data: Any, seed: int) -> EpochItems:
    """The items of an epoch.

    Args:
        task: the task's module; its ``items`` says what one goes through.
        samples: of the training split.
        data: the recipe's data section.
        seed: the recipe's seed.
    """
    sections = sections_by_source(data)
    indices: dict[str, list[int]] = {name: [] for name in sections}
    for index, sample in enumerate(samples):
        indices[sample.source].append(index)
    items = {
        name: [(here[index], caption) for index, caption in task.items([samples[i] for i in here], section.captions)]
        for (name, section), here in zip(sections.items(), indices.values(), strict=True)
    }
    items = {name: found for name, found in items.items() if found}
    return EpochItems(items, places({name: len(found) for name, found in items.items()}, _weights(data)), seed)


def _weights(data: Any) -> Mapping[str, float] | None:
    weights: Mapping[str, float] | None = getattr(data, "weights", None)
    return weights


def places(sizes: Mapping[str, int], weights: Mapping[str, float] | None) -> dict[str, int]:
    """How many places of an epoch each source has: its size without weights, else as the heading of this file says."""
    if weights is None:
        return dict(sizes)
    most = max((size / weights[name] for name, size in sizes.items()), default=0.0)
    return {name: max(size, int(most * weights[name] + 0.5)) for name, size in sizes.items()}
