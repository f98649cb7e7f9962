"""What stands where in an epoch: all of it by (seed, epoch, place), in the proportions of the weights."""

from collections import Counter
from types import SimpleNamespace

import pytest

from mmtune.epoch_items import EpochItems, epoch_items, places
from mmtune.ground.records import Sample
from mmtune.tasks import retrieval


def items_of(sizes: dict[str, int], counts: dict[str, int], seed: int = 0) -> EpochItems:
    starts, found = 0, {}
    for name, size in sizes.items():
        found[name] = [(starts + index, None) for index in range(size)]
        starts += size
    return EpochItems(found, counts, seed)


def epoch_of(items: EpochItems, epoch: int) -> list[tuple[int, int]]:
    """(sample, turn) of every place."""
    shown = [items.at(epoch, place) for place in range(len(items))]
    return [(one.sample, one.turn) for one in shown]


def test_one_source_comes_once_per_epoch_and_the_turn_is_the_epoch() -> None:
    items = items_of({"": 5}, places({"": 5}, None))
    for epoch in (0, 1, 7):
        assert epoch_of(items, epoch) == [(index, epoch) for index in range(5)]


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [
        ({"a": 10, "b": 10}, {"a": 3.0, "b": 1.0}, {"a": 30, "b": 10}),
        ({"a": 30, "b": 4}, {"a": 3.0, "b": 1.0}, {"a": 30, "b": 10}),
        ({"a": 7, "b": 100}, {"a": 1.0, "b": 1.0}, {"a": 100, "b": 100}),
        ({"a": 7, "b": 3}, {"a": 0.2, "b": 0.1}, {"a": 7, "b": 4}),
        ({"a": 7, "b": 3}, None, {"a": 7, "b": 3}),
        ({"a": 5, "b": 1_000_000}, {"a": 1e-9, "b": 1.0}, {"a": 5, "b": 5_000_000_000}),
    ],
)
def test_places_hold_the_weights_and_every_item(
    sizes: dict[str, int], weights: dict[str, float] | None, expected: dict[str, int]
) -> None:
    found = places(sizes, weights)
    assert found == expected
    assert all(found[name] >= size for name, size in sizes.items()), "nothing is lost"


@pytest.mark.parametrize(("size", "count"), [(7, 7), (7, 10), (7, 21), (7, 24), (3, 100), (1, 5)])
def test_every_item_comes_equally_often_and_no_turn_twice(size: int, count: int) -> None:
    items = items_of({"a": size, "b": 2}, {"a": count, "b": 2})
    seen: list[tuple[int, int]] = []
    for epoch in range(2 * size):
        here = [one for one in epoch_of(items, epoch) if one[0] < size]
        assert len(here) == count
        times = Counter(sample for sample, _ in here)
        assert set(times) == set(range(size)) and max(times.values()) - min(times.values()) <= 1
        seen += here
    turns = {sample: sorted(turn for one, turn in seen if one == sample) for sample in range(size)}
    assert all(found == list(range(2 * count)) for found in turns.values()), "2 x size epochs: each as often as any"


def test_seeds_walk_in_another_order_and_places_are_looked_up_alone() -> None:
    items, other = (items_of({"a": 20}, {"a": 30}, seed) for seed in (0, 1))
    assert epoch_of(items, 3) != epoch_of(other, 3)
    whole = epoch_of(items, 3)
    again = items_of({"a": 20}, {"a": 30})
    assert [(one.sample, one.turn) for one in (again.at(3, place) for place in (29, 4))] == [whole[29], whole[4]]


def test_sources_keep_their_own_captions_setting() -> None:
    samples = [Sample(str(n), None, ("x", "y"), source="ab"[n % 2]) for n in range(6)]  # type: ignore[arg-type]
    sources = {"a": SimpleNamespace(captions="all"), "b": SimpleNamespace(captions="one")}
    data = SimpleNamespace(kind="mix", sources=sources, weights={"a": 1.0, "b": 1.0})
    items = epoch_items(retrieval, samples, data, seed=0)
    shown = [items.at(0, place) for place in range(len(items))]
    assert len(items) == 12
    assert Counter((one.sample, one.caption) for one in shown if one.sample % 2 == 0) == {
        (sample, caption): 1 for sample in (0, 2, 4) for caption in (0, 1)
    }
    assert {one.caption for one in shown if one.sample % 2} == {None}
    assert {one.turn for one in shown if one.sample == 1} == {0, 1}, "a second time is another draw"
