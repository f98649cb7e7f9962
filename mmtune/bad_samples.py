"""What a step's batches brought: samples counted, long captions noted, and what failed to decode listed once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtune.batch_building import Batch
from mmtune.ground.errors import DataError
from mmtune.ground.process_group import gather_objects
from mmtune.ground.records import BadItem
from mmtune.run_checkpoint import TrainState


@dataclass(frozen=True)
class Quarantine:
    """Where bad items go, and how many there may be.

    Attributes:
        run: the run folder, for the message.
        limit: ``data.max_bad_fraction``.
        num_seen: items per split, good and bad.
        say: is told about every new one.
    """

    run: Path
    limit: float
    num_seen: Mapping[str, int]
    say: Callable[[str], object]

    def add(self, state: TrainState, items: Sequence[BadItem]) -> None:
        """List each bad item once; every rank is given the same items.

        Raises:
            DataError: more than ``limit`` of a split is bad.
        """
        known = {item.where for item in state.bad}
        new = [item for item in dict.fromkeys(items) if item.where not in known]
        for item in new:
            state.bad.append(item)
            self.say(f"quarantined {item.where}: {item.reason}")
        for split in {item.split for item in new}:
            num_bad, num_seen = sum(item.split == split for item in state.bad), self.num_seen.get(split, 0)
            if num_bad > self.limit * num_seen:
                raise DataError(
                    f"{num_bad} of {num_seen} items of split {split!r} are bad, more than "
                    f"data.max_bad_fraction={self.limit:g} allows; they are listed in "
                    f"{self.run / 'quarantine.jsonl'}. Mend them, or raise the limit."
                )


def count_batches(state: TrainState, batches: Sequence[Batch], quarantine: Quarantine) -> int:
    """Count samples and long captions of all ranks, and quarantine what failed to decode; returns the samples.

    Raises:
        DataError: nothing of the batch is left, or too much of the split is bad.
    """
    mine = (
        sum(map(len, batches)),
        [key for batch in batches for key in batch.long_keys],
        [item for batch in batches for item in batch.bad],
    )
    facts = gather_objects([mine])
    num_samples = sum(count for count, _, _ in facts)
    state.num_samples += num_samples
    long_keys = {key for _, keys, _ in facts for key in keys}
    if not long_keys <= set(state.long_keys):
        state.long_keys = sorted({*state.long_keys, *long_keys})
    quarantine.add(state, [item for _, _, items in facts for item in items])
    if num_samples == 0:
        raise DataError(f"step {state.step + 1}: every sample of the batch is bad")
    return int(num_samples)
