"""Batches of samples that are about equally long, so that little is computed for padding.

A batch is padded to its longest row. In random order a skewed mix of lengths wastes most of it: one conversation of a
thousand words beside fifteen short answers. Here an epoch's items are sorted by length, cut into batches, and the
batches come in random order.

What stays as it was without grouping: the order is a function of (seed, epoch), every item is in it once, and those
that do not fill a last batch are drawn at random, not the longest or the shortest. What changes: who stands beside
whom. So that it is not the same neighbours in each epoch, lengths count as up to ``BLUR`` longer or shorter when they
are sorted, drawn anew each epoch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmtune.epoch_items import EpochItems
from mmtune.ground.errors import DataError
from mmtune.ground.records import Sample
from mmtune.ground.seeding import generator_for
from mmtune.item_encoding import shown_text

BLUR = 0.03
"""Share of its length by which an item may move among the others: costs about as much padding."""

AT_ONCE = 1024
"""Texts that are made tokens together."""
TRIED = 32
"""Items that are encoded to see how many tokens an image takes."""


def grouped_order(order: Sequence[int], lengths: Sequence[int], batch: int, *, seed: int, epoch: int) -> list[int]:
    """The items of ``order``, each once, so that every ``batch`` of them that follow each other are similarly long.

    Args:
        order: the epoch's random order; its last ``len(order) % batch`` items stay last, which is where they are
            dropped.
        lengths: text positions of every item, by item; what counts is their ratio, so letters do as well as tokens.
        batch: samples per optimizer step. Inside it the items stand from short to long, so that smaller
            micro-batches are padded even less.
        seed: the recipe's seed.
        epoch: which epoch it is the order of.
    """
    generator = generator_for(seed, "groups", epoch)
    num_batches = len(order) // batch
    items = np.asarray(order[: num_batches * batch], dtype=np.int64)
    own = np.asarray(lengths, dtype=np.float64)[items]
    blurred = own * generator.uniform(1 - BLUR, 1 + BLUR, size=len(items))
    groups = np.argsort(blurred, kind="stable").reshape(num_batches, batch)
    groups = groups[generator.permutation(num_batches)]
    inside = np.argsort(own[groups], axis=1, kind="stable")
    grouped = items[np.take_along_axis(groups, inside, axis=1)]
    return [*map(int, grouped.reshape(-1)), *order[num_batches * batch :]]


def item_lengths(
    asking: Any, samples: Sequence[Sample], items: EpochItems, epoch: int, *, image_tokens: float = 0
) -> list[int]:
    """About how many text positions each item of an epoch takes; nothing is read from the disk.

    Counted are the tokens of all that is said, and ``image_tokens`` for each image; what a template adds is not.

    Args:
        asking: the task with its section, and the processor; see ``item_encoding.Asking``.
        samples: that the items are of.
        items: of an epoch.
        epoch: texts are drawn by it.
        image_tokens: see ``tokens_per_image``.
    """
    texts, images = [], []
    for place in range(len(items)):
        shown = items.at(epoch, place)
        sample = samples[shown.sample]
        if asking.ability != "generate":
            texts.append(shown_text(asking, sample, shown.turn))
            images.append(1)
            continue
        turns = asking.task.spoken(
            asking.section, sample, shown.caption, prompt=asking.prompt, seed=asking.seed, epoch=shown.turn
        )
        texts.append("".join(turn.text for turn in turns))
        images.append(sum(len(turn.media) for turn in turns))
    counts = _count_tokens(asking.processor.tokenizer, texts)
    return [round(count + number * image_tokens) for count, number in zip(counts, images, strict=True)]


def _count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, without special ones; equal texts are counted once."""
    different = list(dict.fromkeys(texts))
    counts: dict[str, int] = {}
    for start in range(0, len(different), AT_ONCE):
        some = different[start : start + AT_ONCE]
        ids = tokenizer(some, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        counts |= {text: len(one) for text, one in zip(some, ids, strict=True)}
    return [counts[text] for text in texts]


def tokens_per_image(encoder: Any) -> float:
    """How many of the text's positions an image takes on average, by the first items that have one; 0 where none.

    Args:
        encoder: of a training split; see ``batch_building.EncodedAnswers``.
    """
    family, processor = encoder.family, encoder.processor
    if not hasattr(family, "image_tokens"):
        return 0.0
    tokens = images = 0
    for place in range(min(TRIED, len(encoder))):
        shown = encoder.items.at(0, place)
        sample = encoder.samples[shown.sample]
        number = sum(len(turn.media) for turn in sample.turns) if sample.turns else 1
        try:
            inputs = encoder.encode(sample, shown.caption, shown.turn).inputs
        except DataError:  # is quarantined when its turn comes
            continue
        tokens += int(family.image_tokens(processor, inputs).sum())
        images += number
    return tokens / max(1, images)
