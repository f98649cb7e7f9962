"""Grouped batches waste little on padding, and are else as fair as random ones."""

from collections.abc import Sequence

import numpy as np
import pytest
from adapter_examples import DrawnImage
from shown_worlds import captioned, reader, recipe, talks

from mmtune.ground.records import Sample
from mmtune.ground.seeding import generator_for
from mmtune.length_grouping import grouped_order, item_lengths, tokens_per_image

NUM, BATCH = 4_000, 32


def padding_share(order: Sequence[int], lengths: Sequence[int], batch: int, micro_batch: int | None = None) -> float:
    """Which share of an epoch's text positions is padding, in [0, 1).

    Args:
        order: of the epoch; what does not fill a batch is left out.
        lengths: text positions of every item.
        batch: samples per optimizer step.
        micro_batch: samples that are padded together; None: the whole batch.
    """
    whole = len(order) // batch * batch
    rows = np.asarray(lengths, dtype=np.int64)[np.asarray(order[:whole], dtype=np.int64)]
    rows = rows.reshape(-1, micro_batch or batch)
    if not rows.size:
        return 0.0
    return float(1 - rows.sum() / (rows.max(axis=1).sum() * rows.shape[1]))


def skewed_lengths(num=NUM):
    """Log-normal (median 64, sigma 0.8): one text in six has over 142 positions, one in forty over 307."""
    drawn = np.exp(np.random.default_rng(0).normal(np.log(64), 0.8, size=num))
    return np.maximum(drawn.round(), 1).astype(int).tolist()


def random_order(epoch=0, num=NUM, seed=0):
    return [int(item) for item in generator_for(seed, "order", epoch).permutation(num)]


def grouped(epoch=0, num=NUM, seed=0, batch=BATCH, lengths=None):
    lengths = skewed_lengths(num) if lengths is None else lengths
    return grouped_order(random_order(epoch, num, seed), lengths, batch, seed=seed, epoch=epoch)


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize(("batch", "micro_batch"), [(8, 8), (32, 32), (256, 16)])
def test_at_most_a_tenth_is_padding_where_random_order_wastes_most(batch, micro_batch, epoch):
    lengths = skewed_lengths()
    assert padding_share(grouped(epoch, batch=batch), lengths, batch, micro_batch) <= 0.10
    assert padding_share(random_order(epoch), lengths, batch, micro_batch) > 0.5


def test_smaller_micro_batches_are_padded_even_less():
    lengths = skewed_lengths()
    whole, parts = (padding_share(grouped(), lengths, BATCH, size) for size in (None, 4))
    assert parts < 0.7 * whole


def test_padding_share_by_hand():
    lengths = [1, 2, 3, 6, 9]
    assert padding_share([0, 1, 2, 3, 4], lengths, 2) == pytest.approx(1 - 12 / (2 * 2 + 2 * 6))
    assert padding_share([0, 1, 2, 3, 4], lengths, 4, 2) == pytest.approx(1 - 12 / (2 * 2 + 2 * 6))
    assert padding_share([0], lengths, 2) == 0


@pytest.mark.parametrize("num", [0, 5, 32, 63, 64, 1001])
def test_every_item_once_whatever_their_number(num):
    assert sorted(grouped(num=num)) == list(range(num))


def test_a_function_of_seed_and_epoch_alone():
    assert grouped(3) == grouped(3)
    assert len({tuple(grouped(epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 1)}) == 4


def test_equal_lengths_keep_nothing_of_the_numbering():
    order = grouped(num=640, lengths=[7] * 640)
    mates = np.array(order).reshape(-1, BATCH)
    assert np.abs(np.diff(np.sort(mates, axis=1), axis=1)).mean() > 5  # neighbours by number would differ by 1


def test_who_is_dropped_is_drawn_as_without_grouping():
    num = 5 * BATCH + 20
    lengths = list(range(1, num + 1))
    times = np.zeros(num)
    for epoch in range(300):
        order = grouped(epoch, num, lengths=lengths)
        assert order[-20:] == random_order(epoch, num)[-20:]
        times[order[-20:]] += 1
    expected = 300 * 20 / num
    assert abs(times[:30].mean() / expected - 1) < 0.25  # the shortest; three deviations of a mean over 30 items
    assert abs(times[-30:].mean() / expected - 1) < 0.25  # the longest


def test_batches_come_in_random_order():
    lengths = skewed_lengths()
    means = np.array(lengths)[np.array(grouped()).reshape(-1, BATCH)].mean(axis=1)
    places = np.argsort(np.argsort(means))
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.25  # sorted would be 1; 125 batches: 0.09 spread


def test_neighbours_change_from_epoch_to_epoch():
    pairs = []
    for epoch in (0, 1):
        groups = np.array(grouped(epoch)).reshape(-1, BATCH)
        pairs.append({(min(a, b), max(a, b)) for group in groups.tolist() for a in group for b in group if a < b})
    assert len(pairs[0] & pairs[1]) < 0.5 * len(pairs[0])


def encoder_of(name, samples, task):
    from mmtune.batch_building import EncodedAnswers
    from mmtune.item_encoding import make_asking

    of = recipe(task)
    asking = make_asking(of.task, reader(name), of.seed)
    return EncodedAnswers(samples, asking, of.data), asking


def test_lengths_are_those_of_the_encoded_items_but_for_the_template():
    samples = [Sample(f"s{n}", DrawnImage(n), ("a red line " * n,)) for n in range(1, 7)]
    encoder, asking = encoder_of("llava", samples, "captioning")
    found = item_lengths(asking, samples, encoder.items, 0, image_tokens=tokens_per_image(encoder))
    real = [len(encoder[0, place].inputs["input_ids"]) for place in range(len(samples))]
    assert len(set(np.array(real) - np.array(found))) == 1 and len(set(found)) == 6


def test_images_count_for_as_much_as_they_take():
    encoder, asking = encoder_of("llava", talks(), "chat")
    assert tokens_per_image(encoder) == 16  # of the tiny LLaVA, as its processor writes them
    alone, with_images = (item_lengths(asking, talks(), encoder.items, 0, image_tokens=tokens) for tokens in (0, 16))
    assert [b - a for a, b in zip(alone, with_images, strict=True)] == [16, 32, 0]
    beside, asking = encoder_of("git", captioned()[:1], "captioning")
    assert tokens_per_image(beside) == 0, "GIT reads images beside the text"


def test_texts_of_a_matching_head_are_counted_too():
    samples = [Sample(f"s{n}", DrawnImage(n), ("red line " * n,), label=True) for n in (1, 3)]
    encoder, asking = encoder_of("blip_matching", samples, "matching")
    short, long = item_lengths(asking, samples, encoder.items, 0)
    assert long == 3 * short
