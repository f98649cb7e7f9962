"""Ranks counted from float32 products equal those of a float64 double loop, in every case that rounding could spoil."""

import math
import tracemalloc

import numpy as np
import pytest

from mmtune.metrics import _ranking
from mmtune.metrics._ranking import Positives, ranks_both_ways, ranks_of_embeddings

QUERIES, ITEMS, WIDTH = 19, 11, 48


def unit(generator: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = generator.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def scattered(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return unit(generator, QUERIES, WIDTH), unit(generator, ITEMS, WIDTH)


def tied(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every vector several times, to the bit."""
    queries, items = scattered(generator)
    return queries[generator.integers(0, 4, QUERIES)], items[generator.integers(0, 3, ITEMS)]


def one_step_apart(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every vector several times, one number of it moved to the next float32."""
    queries, items = (each.copy() for each in tied(generator))
    for embeds in (queries, items):
        rows, places = np.arange(len(embeds)), generator.integers(0, WIDTH, len(embeds))
        embeds[rows, places] = np.nextafter(embeds[rows, places], np.float32(1))
    return queries, items


def crowded(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All values within about 1e-7 of one another, which is what float32 cannot tell apart."""
    middle = unit(generator, WIDTH)
    queries, items = (middle + generator.normal(size=(n, WIDTH)) * 2e-8 for n in (QUERIES, ITEMS))
    return queries.astype(np.float32), items.astype(np.float32)


def all_the_same(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    one = unit(generator, WIDTH)
    return np.tile(one, (QUERIES, 1)), np.tile(one, (ITEMS, 1))


def several_items(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    items = unit(generator, ITEMS, 3, WIDTH)
    items[4:8] = items[:4, ::-1]  # the same vectors in another order: ties
    return unit(generator, QUERIES, WIDTH), items


def several_on_both_sides(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return unit(generator, QUERIES, 2, WIDTH), several_items(generator)[1]


def cancelling(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Large terms that cancel: the sum is small beside what float32 loses on the way to it."""
    queries, items = (generator.integers(-3, 4, size=(n, WIDTH)).astype(np.float32) for n in (QUERIES, ITEMS))
    queries[:, 0], queries[:, 1], items[:, :2] = 3e4, -3e4, 1.1e3
    items[:, 0] += generator.integers(0, 2, ITEMS) * np.float32(2**-13)
    return queries, items


def huge(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Products beyond float32: infinite, and so equal."""
    queries, items = scattered(generator)
    return queries * np.float32(1e20), items * np.float32(1e20)


def vanishing(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Products below the smallest normal float32."""
    queries, items = scattered(generator)
    return queries * np.float32(1e-21), items * np.float32(1e-21)


CASES = [
    scattered,
    tied,
    one_step_apart,
    crowded,
    all_the_same,
    several_items,
    several_on_both_sides,
    cancelling,
    huge,
    vanishing,
]


def positives_for(generator: np.random.Generator) -> Positives:
    """One to three right items per query, and every item right for one query at least."""
    more = [generator.choice(ITEMS, size=generator.integers(0, 3), replace=False).tolist() for _ in range(QUERIES)]
    return Positives.from_lists([[number % ITEMS, *row] for number, row in enumerate(more)])


def similarity(query: np.ndarray, item: np.ndarray) -> np.float32:
    """The greatest inner product, each summed without any rounding, then rounded to float32."""
    pairs = [(q, i) for q in np.atleast_2d(query).astype(float) for i in np.atleast_2d(item).astype(float)]
    with np.errstate(over="ignore"):
        return np.float32(max(math.fsum((q * i).tolist()) for q, i in pairs))


def ranks_by_double_loop(queries: np.ndarray, items: np.ndarray, positives: Positives) -> list[float]:
    ranks = []
    for number, query in enumerate(queries):
        right = set(positives[number].tolist())
        values = [similarity(query, item) for item in items]
        best = max(values[i] for i in right)
        above = sum(value > best for i, value in enumerate(values) if i not in right)
        equal = sum(value == best for i, value in enumerate(values) if i not in right)
        ranks.append(1 + above + equal / (sum(values[i] == best for i in right) + 1))
    return ranks


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def world(request):
    """Embeddings, pairs, and the ranks of both directions by the double loop."""
    generator = np.random.default_rng(CASES.index(request.param))
    queries, items = request.param(generator)
    positives = positives_for(generator)
    forth = ranks_by_double_loop(queries, items, positives)
    back = ranks_by_double_loop(items, queries, positives.transposed(ITEMS))
    return queries, items, positives, (forth, back)


def test_both_ways_equal_a_double_loop(world, monkeypatch):
    queries, items, positives, expected = world
    for chunk in (1, 7, QUERIES):
        for block in (1, 4, 4096):
            monkeypatch.setattr(_ranking, "ITEM_BLOCK", block)
            forth, back = ranks_both_ways(queries, items, positives, chunk=chunk)
            assert (forth.tolist(), back.tolist()) == expected
            assert ranks_of_embeddings(queries, items, positives, chunk=chunk).tolist() == expected[0]


@pytest.mark.parametrize("share", [-1.0, 2.0], ids=["blocks in float64", "every doubt by its pair"])
def test_how_doubts_are_settled_changes_nothing(world, share, monkeypatch):
    queries, items, positives, expected = world
    monkeypatch.setattr(_ranking, "DOUBTFUL", share)
    monkeypatch.setattr(_ranking, "PAIR_NUMBERS", 5 * WIDTH)
    forth, back = ranks_both_ways(queries, items, positives, chunk=7)
    assert (forth.tolist(), back.tolist()) == expected


def counts_of(part: int, parts: int, *world) -> np.ndarray:
    """What one share hands to ``total``."""
    seen: list[np.ndarray] = []
    ranks_both_ways(*world, part=part, parts=parts, total=lambda mine: seen.append(mine) or mine)
    return seen[0]


def test_shares_of_the_work_add_up(world):
    queries, items, positives, expected = world
    for parts in (2, 3, QUERIES + 2):  # the last: some have nothing to do
        counts = [counts_of(part, parts, queries, items, positives) for part in range(parts)]
        whole = np.sum(counts, axis=0)
        forth, back = ranks_both_ways(
            queries, items, positives, part=0, parts=parts, total=lambda mine, whole=whole: whole
        )
        assert (forth.tolist(), back.tolist()) == expected
    alone = ranks_both_ways(queries, items, positives, part=0, parts=2)
    assert alone[0].sum() < sum(expected[0])  # the negation: one share is not the whole


@pytest.mark.parametrize(("case", "width"), [(cancelling, WIDTH), (crowded, 4000)])
def test_without_the_bound_ranks_are_wrong(case, width, monkeypatch):
    """The negation of the whole: products in float32 taken as they are, but for the last digit."""
    monkeypatch.setattr("test_ranks_both_ways.WIDTH", width)
    generator = np.random.default_rng(CASES.index(case))
    queries, items = case(generator)
    positives = positives_for(generator)
    expected = ranks_by_double_loop(queries, items, positives)
    monkeypatch.setattr(_ranking, "DOUBTFUL", 2.0)
    assert ranks_both_ways(queries, items, positives)[0].tolist() == expected
    monkeypatch.setattr(_ranking, "_margins", lambda lengths, width: np.zeros(len(lengths)))
    assert ranks_both_ways(queries, items, positives)[0].tolist() != expected


@pytest.mark.parametrize("width", [1, 2, 33, 512, 3000])
@pytest.mark.parametrize("alike", [False, True])
def test_no_order_of_summation_leaves_the_bound(width, alike):
    generator = np.random.default_rng(width)
    queries, items = unit(generator, 40, width), unit(generator, 50, width)
    if alike:  # one sign: every rounding is of a large sum
        queries, items = np.abs(queries), np.abs(items)
    values = np.array([[similarity(query, item) for item in items] for query in queries])
    margin = _ranking._margins(np.linalg.norm(queries.astype(float), axis=1), width)[:, None]
    products = queries[:, None] * items[None]
    one_by_one = np.cumsum(products, axis=-1, dtype=np.float32)[..., -1]
    for found in (queries @ items.T, one_by_one, np.cumsum(products[..., ::-1], axis=-1)[..., -1]):
        assert (np.abs(found.astype(float) - values) <= margin * (1 + 1e-6)).all()  # lengths are 1 but for rounding
    assert width < 3 or (one_by_one != values).any()
    assert margin.max() < (width + 3) * 2.0**-24 * 1.001  # and it is no wider than it must be


def test_few_values_are_in_doubt(monkeypatch):
    """Speed: where embeddings are spread, almost nothing is summed in float64 but the pairs."""
    generator = np.random.default_rng(0)
    items = unit(generator, 300, 64)
    near = np.repeat(items, 2, axis=0) + 0.1 * generator.normal(size=(600, 64))
    queries = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    asked = []
    values = _ranking._Ranking._values
    monkeypatch.setattr(
        _ranking._Ranking, "_values", lambda self, rows, columns: asked.append(len(rows)) or values(self, rows, columns)
    )
    ranks_both_ways(queries, items, Positives.from_lists([[n // 2] for n in range(600)]))
    assert asked[0] == 600 and sum(asked[1:]) < 600 * 300 / 1000


@pytest.mark.parametrize("same", [False, True], ids=["spread", "all the same"])
def test_memory_is_that_of_one_block(same, monkeypatch):
    generator = np.random.default_rng(1)
    num, chunk, block = 4000, 64, 512
    queries, items = unit(generator, num, 4), unit(generator, num, 4)
    if same:
        queries[:], items[:] = queries[0], queries[0]
    positives = Positives.from_lists([[n] for n in range(num)])
    monkeypatch.setattr(_ranking, "ITEM_BLOCK", block)
    tracemalloc.start()
    ranks_both_ways(queries, items, positives, chunk=chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # a block in float32, float64 and booleans, and some vectors of Q, N and M
    assert peak < chunk * block * (4 + 8 + 4) + 80 * num * 8 < num * num / 4


def test_refusals():
    generator = np.random.default_rng(2)
    queries, items = scattered(generator)
    positives = positives_for(generator)
    with pytest.raises(ValueError, match="1 of 12 items are right for no query"):
        ranks_both_ways(queries, np.concatenate([items, items[:1]]), positives)
    for broken in (np.nan, np.inf):
        wrong = queries.copy()
        wrong[3, 5] = broken
        with pytest.raises(ValueError, match="1 of 19 query embeddings are not finite"):
            ranks_both_ways(wrong, items, positives)
        with pytest.raises(ValueError, match="1 of 19 item embeddings are not finite"):
            ranks_of_embeddings(items, wrong, Positives.from_lists([[0]] * ITEMS))
