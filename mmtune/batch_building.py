"""From samples to batches: order, reading, encoding and collating, all functions of (seed, epoch, sample id).

Nothing here depends on how many workers or ranks there are: the order of an epoch is one permutation, an optimizer
step takes the next ``batch`` items of it, rank r of R takes the r-th of R equal slices, a micro-batch the next
``micro_batch`` items of that slice. Resuming therefore needs a step number and nothing else.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmtune.epoch_items import epoch_items
from mmtune.ground.calm_forking import wait_for_calm
from mmtune.ground.errors import DataError
from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.records import BadItem, MediaReference, Sample
from mmtune.ground.seeding import generator_for
from mmtune.ground.stop_signals import leave_signals_to_parent
from mmtune.item_encoding import ANSWER_SCORES, IS_MATCH, Asking, Encoded, ItemEncoder
from mmtune.length_grouping import grouped_order
from mmtune.shown_media import opened, show
from mmtune.sources import sections_by_source
from mmtune.tasks.matching import source_id

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

JUDGED = (IS_MATCH, ANSWER_SCORES)
"""What an item brings that is not the model's."""


@dataclass(frozen=True)
class Layout:
    """How an epoch is cut into steps, ranks and micro-batches.

    Attributes:
        num_items: items in one epoch.
        batch: samples per optimizer step, all ranks together.
        micro_batch: samples per forward pass on one rank.
        num_ranks: how many processes take part.
        seed: the recipe's seed.
        lengths: epoch -> text positions of every item, where batches are of similar length; None: in random order.
    """

    num_items: int
    batch: int
    micro_batch: int
    num_ranks: int
    seed: int
    lengths: Callable[[int], Sequence[int]] | None = field(default=None, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the last short one is dropped."""
        return self.num_items // self.batch

    @property
    def num_dropped(self) -> int:
        """Items left out of each epoch because they do not fill a batch."""
        return self.num_items % self.batch

    @property
    def micro_batches_per_step(self) -> int:
        """Forward passes of one rank for one optimizer step."""
        return self.batch // self.num_ranks // self.micro_batch

    def epoch_of(self, step: int) -> int:
        """The epoch in which the step after ``step`` finished ones falls."""
        return step // self.steps_per_epoch

    def order(self, epoch: int) -> list[int]:
        """The epoch's permutation of the items."""
        order = [int(index) for index in generator_for(self.seed, "order", epoch).permutation(self.num_items)]
        if self.lengths is None:
            return order
        return grouped_order(order, self.lengths(epoch), self.batch, seed=self.seed, epoch=epoch)

    def micro_batches(self, rank: int, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """The micro-batches of one rank as lists of (epoch, item), from ``first_step`` up to ``last_step``."""
        share = self.batch // self.num_ranks
        epoch, order = -1, []
        for step in range(first_step, last_step):
            if self.epoch_of(step) != epoch:
                epoch = self.epoch_of(step)
                order = self.order(epoch)
            start = (step % self.steps_per_epoch) * self.batch + rank * share
            for offset in range(start, start + share, self.micro_batch):
                yield [(epoch, item) for item in order[offset : offset + self.micro_batch]]


@dataclass
class Batch:
    """What a micro-batch brings to the model.

    Attributes:
        inputs: the model's tensors, ``pixel_values float32[B, C, H, W]``, ``input_ids int64[B, L]`` and so on.
        image_keys: ``int64[B, K]`` identities of all texts true of each image, padded with -1.
        text_keys: ``int64[B]`` identity of the text that is shown.
        ids: sample ids, for messages.
        bad: what failed to decode and left the batch.
        long_keys: identities of captions that were cut to the text tower's limit.
        num_shown: how many of the samples have an image or a sound.
    """

    inputs: "dict[str, Tensor]"
    image_keys: "Tensor"
    text_keys: "Tensor"
    ids: list[str]
    bad: list[BadItem]
    long_keys: list[int] = field(default_factory=list)
    num_shown: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class EncodedItems:
    """A dataset whose index is (epoch, place); runs in the loader's workers.

    What cannot be decoded, or does not fit the model, becomes a ``BadItem``; it is never replaced by another.
    """

    def __init__(self, samples: Sequence[Sample], task: Any, family: Any, processor: Any, data: Any, seed: int) -> None:
        self.samples = samples
        self.task = task
        self.family = family
        self.processor = processor
        self.augmentations: dict[str, AugmentSection] = {
            name: section.augment for name, section in sections_by_source(data).items()
        }
        self.items = epoch_items(task, samples, data, seed)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: tuple[int, int]) -> Encoded | BadItem:
        item = self.items.at(*place)
        sample = self.samples[item.sample]
        try:
            return self.encode(sample, item.caption, item.turn)
        except DataError as error:
            return bad_item(sample, error, "train")

    def encode(self, sample: Sample, choice: int | None, turn: int) -> Encoded:
        """One item's tensors; ``turn`` is how often it was shown before.

        Raises:
            DataError: its image or sound cannot be decoded, or it does not fit the model.
        """
        raise TypeError("a subclass says how")

    def show(self, sample: Sample, media: MediaReference, choice: int | None, turn: int) -> Any:
        """One of the sample's images as this turn shows it: changed at random by (seed, turn, id)."""
        change = self.augmentations[sample.source]
        return opened(self.family, show(media, change, self.seed, turn, sample.id, choice))


def bad_item(sample: Sample, error: DataError, split: str) -> BadItem:
    """The sample with what is wrong with it; where several may share an image, its id is said too."""
    image, name = sample.media.where, source_id(sample.id)
    shares = sample.question or sample.turns or sample.label is not None
    where = f"{image} (sample {name})" if shares and not image.endswith(name) else image
    return BadItem(where, str(error).removeprefix(f"{image}: "), split)


class EncodedPairs(EncodedItems):
    """Pairs of an image or a sound and a caption, for tasks that embed.

    Captions longer than ``limit`` tokens are cut by the text tower, and counted.
    """

    def __init__(
        self, samples: Sequence[Sample], task: Any, family: Any, processor: Any, data: Any, seed: int, limit: int
    ) -> None:
        super().__init__(samples, task, family, processor, data, seed)
        self.limit = limit

    def encode(self, sample: Sample, choice: int | None, turn: int) -> Encoded:
        """See ``EncodedItems``."""
        pair = self.task.render(sample, choice, seed=self.seed, epoch=turn)
        inputs = {**self._encode_media(sample, choice, turn), **self.family.encode_text(self.processor, pair.text)}
        is_long = self.family.num_tokens(self.processor, pair.text) > self.limit
        return Encoded(sample.id, inputs, pair.text_key, pair.image_keys, is_long)

    def _encode_media(self, sample: Sample, caption: int | None, epoch: int) -> "dict[str, Tensor]":
        """The sample's image or sound as this epoch shows it: changed, or cut, at random by (seed, epoch, id)."""
        encode = getattr(self.family, "encode_drawn", None)
        encoded: dict[str, Tensor]
        if encode is not None:
            generator = generator_for(self.seed, "encode", epoch, sample.id, caption)
            encoded = encode(self.processor, sample.media.read(), generator)
            return encoded
        encoded = self.family.encode_media(self.processor, self.show(sample, sample.media, caption, epoch))
        return encoded


class EncodedAnswers(EncodedItems):
    """What must be said, matched or classified, for tasks that do not embed; nothing is ever cut."""

    def __init__(self, samples: Sequence[Sample], asking: Asking, data: Any) -> None:
        super().__init__(samples, asking.task, asking.family, asking.processor, data, asking.seed)
        self.encode_item = ItemEncoder(asking, self.show)

    def encode(self, sample: Sample, choice: int | None, turn: int) -> Encoded:
        """See ``EncodedItems``."""
        return self.encode_item(sample, choice, turn)


class Collate:
    """Stack the good items of a micro-batch; picklable for the loader's workers."""

    def __init__(self, family: Any, processor: Any) -> None:
        self.family = family
        self.processor = processor

    def __call__(self, items: list[Encoded | BadItem]) -> Batch:
        import torch

        good = [item for item in items if isinstance(item, Encoded)]
        width = max((len(item.image_keys) for item in good), default=1)
        keys = [[*item.image_keys, *[-1] * (width - len(item.image_keys))] for item in good]
        return Batch(
            inputs=pad(self.family, self.processor, [item.inputs for item in good]) if good else {},
            image_keys=torch.tensor(keys, dtype=torch.int64).reshape(len(good), width),
            text_keys=torch.tensor([item.text_key for item in good], dtype=torch.int64),
            ids=[item.sample_id for item in good],
            bad=[item for item in items if isinstance(item, BadItem)],
            long_keys=[item.text_key for item in good if item.is_long],
            num_shown=sum(item.shows for item in good),
        )


def pad(family: Any, processor: Any, encoded: "list[dict[str, Tensor]]", **options: Any) -> "dict[str, Tensor]":
    """A batch of the family's tensors, and what is judged beside them."""
    import torch

    beside = {name: torch.stack([one[name] for one in encoded]) for name in JUDGED if name in encoded[0]}
    own = [{name: value for name, value in one.items() if name not in JUDGED} for one in encoded]
    padded: dict[str, Tensor] = family.pad(processor, own, **options)
    return {**padded, **beside}


@dataclass(frozen=True)
class _Places:
    """The micro-batches of a rank as an iterable that makes them when they are needed."""

    layout: Layout
    rank: int
    first_step: int
    last_step: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.layout.micro_batches(self.rank, self.first_step, self.last_step)


def open_loader(
    items: EncodedItems, layout: Layout, *, rank: int, first_step: int, last_step: int, workers: int
) -> "DataLoader[Batch]":
    """A loader that yields the micro-batches of ``rank`` for the steps [first_step, last_step).

    The loader gets a generator of its own: without one it would draw from the global generator each time it starts.
    """
    import torch
    from torch.utils.data import DataLoader

    if workers:
        wait_for_calm()
    return DataLoader(
        items,  # type: ignore[arg-type]
        batch_sampler=_Places(layout, rank, first_step, last_step),
        num_workers=workers,
        collate_fn=Collate(items.family, items.processor),
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=leave_signals_to_parent,
    )
