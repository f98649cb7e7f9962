"""Ranks of the best positive per query, in chunks, so that Q x N similarities never exist at once.

Letters: Q queries, N items, M pairs (query, positive), D embedding width, n the queries of one direction.

The rank is the expected place of the best positive among the items that are not positives, when equal items are
shuffled: ``1 + above + equal / (tied + 1)``, with ``above`` non-positives scored higher than the best positive,
``equal`` non-positives scored the same, ``tied`` positives that share the best score. For one positive that is
"1 + number above + half of the other equals"; for any number of positives a constant model gets exactly the expected
rank of a random order. Other positives never push a query down.

A similarity is summed in float64 and rounded to float32: the sum's order, which differs with chunk size and place in a
matrix product, then cannot turn a tie into a difference. Few are needed so exactly: a product in float32 is never
further from it than a proven bound, so one that is further than that from the best positive is counted as it is, and
only the others are summed in float64. The ranks are those of float64 in every case.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1, for the bound
``D u / (1 - D u) * |x| |y|`` of an inner product summed in any order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

ITEM_BLOCK = 4096
PAIR_NUMBERS = 1 << 20
"""Numbers on either side that are multiplied at a time where single pairs are."""
DOUBTFUL = 1 / 64
"""Where more of a block's values than this share are in doubt, all of it in float64 is quicker than pair by pair."""
LARGEST = 1e37
"""The largest product of two lengths that is left to float32, which ends at 3.4e38."""


@dataclass(frozen=True)
class Positives:
    """Which items are right for each query, in compressed rows.

    Attributes:
        offsets: int64[Q + 1]; the positives of query q are ``indices[offsets[q]:offsets[q + 1]]``, at least one.
        indices: int64[M]; items, each at most once per query.
    """

    offsets: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, query: int) -> np.ndarray:
        return self.indices[self.offsets[query] : self.offsets[query + 1]]

    def rows(self) -> np.ndarray:
        """The query of every pair, int64[M]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def between(self, start: int, stop: int) -> "Positives":
        """The rows of the queries start..stop-1."""
        low, high = self.offsets[start], self.offsets[stop]
        return Positives(self.offsets[start : stop + 1] - low, self.indices[low:high])

    def transposed(self, num_items: int) -> "Positives":
        """The same pairs seen from the items; every item must occur."""
        rows, order = self.rows(), np.argsort(self.indices, kind="stable")
        counts = np.bincount(self.indices, minlength=num_items)
        return Positives(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), rows[order])

    @staticmethod
    def from_lists(lists: "list[list[int]] | list[np.ndarray]") -> "Positives":
        """From one list of item indices per query; an item named twice in a list counts once."""
        rows = [np.unique(np.asarray(row, dtype=np.int64)) for row in lists]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return Positives(offsets, np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64))


def ranks_of_embeddings(
    queries: np.ndarray, items: np.ndarray, positives: Positives, *, chunk: int = 1024
) -> np.ndarray:
    """Rank of the best positive of every query by inner product (cosine similarity for L2-normalised embeddings).

    Where one side has several vectors for each, the greatest of the inner products counts.

    Args:
        queries: float32[Q, D]; either side may be float32[..., V, D], V vectors for each.
        items: float32[N, D].
        positives: the right items of every query.
        chunk: queries at a time; memory is about 6 bytes for each of ``chunk * ITEM_BLOCK`` values, 14 where most of
            them are doubtful, and the result does not depend on it.

    Returns:
        float64[Q], each >= 1.

    Raises:
        ValueError: a query without positives, an index outside the items, or an embedding that is not finite.
    """
    ranking = _Ranking(queries, items, positives, both=False)
    ranking.count(0, len(queries), chunk)
    return ranking.tallies[0].ranks()


def ranks_both_ways(
    queries: np.ndarray,
    items: np.ndarray,
    positives: Positives,
    *,
    chunk: int = 1024,
    part: int = 0,
    parts: int = 1,
    total: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of the queries among the items, and of the items among the queries; each similarity is made once.

    Args:
        queries, items, positives, chunk: as for `ranks_of_embeddings`; every item must be right for some query.
        part: which share of the similarities is made here.
        parts: how many shares there are.
        total: counts int64[2, Q + N] of this share -> their sum over all shares.

    Returns:
        float64[Q] and float64[N], each >= 1.

    Raises:
        ValueError: as for `ranks_of_embeddings`, or an item is right for no query.
    """
    ranking = _Ranking(queries, items, positives, both=True)
    start, stop = (len(queries) * number // parts for number in (part, part + 1))
    ranking.count(start, stop, chunk)
    counts = total(np.concatenate([tally.counts for tally in ranking.tallies], axis=1))
    forth, back = ranking.tallies
    return forth.ranks(counts[:, : len(queries)]), back.ranks(counts[:, len(queries) :])


def ranks_of_scores(scores: np.ndarray, positives: Positives) -> np.ndarray:
    """The same for similarities that exist already: scores float[Q, N], higher is more similar -> float64[Q].

    Raises:
        ValueError: a query without positives, an index outside the items, or a score that is not finite.
    """
    _check(scores.shape[0], scores.shape[1], positives)
    if not np.isfinite(scores).all():
        raise ValueError("some similarities are not finite: they have no rank")
    return _ranks(scores, positives)


@dataclass(frozen=True)
class _Tally:
    """What is known of one direction's queries and what has been counted for them.

    Attributes:
        best: float32[n]; the best positive's value.
        tied: int64[n]; positives of that value.
        low: float32[n]; a float32 product below it stands for a value below ``best``.
        high: float32[n]; one above it stands for a value above ``best``.
        counts: int64[2, n]; non-positives above ``best`` and equal to it, so far.
    """

    best: np.ndarray
    tied: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray

    @staticmethod
    def starting(right: np.ndarray, positives: Positives, margins: np.ndarray) -> "_Tally":
        """From the values of all pairs float32[M], in the order of ``positives``, and the margins float64[n]."""
        best, tied = _best(right, positives)
        with np.errstate(over="ignore"):  # a limit beyond float32 is infinite, which is right
            low, high = ((best + sign * margins).astype(np.float32) for sign in (-1.0, 1.0))
        low, high = np.nextafter(low, np.float32(-np.inf)), np.nextafter(high, np.float32(np.inf))
        return _Tally(best, tied, low, high, np.zeros((2, len(best)), dtype=np.int64))

    def ranks(self, counts: np.ndarray | None = None) -> np.ndarray:
        """float64[n], from these counts or its own."""
        above, equal = self.counts if counts is None else counts
        ranks: np.ndarray = 1.0 + above + equal / (self.tied + 1.0)
        return ranks


class _Ranking:
    """One set of queries and items: a tally for the queries and, if ``both``, one for the items as queries."""

    def __init__(self, queries: np.ndarray, items: np.ndarray, positives: Positives, *, both: bool) -> None:
        _check(len(queries), len(items), positives)
        self.queries, self.items, self.positives = queries, items, positives
        lengths = _lengths("query", queries), _lengths("item", items)
        most = [each.max(initial=0.0) for each in lengths]
        self.quick = queries.dtype == items.dtype == np.float32 and most[0] * most[1] < LARGEST
        right = self._values(positives.rows(), positives.indices)
        width = queries.shape[-1]
        self.tallies = [_Tally.starting(right, positives, _margins(lengths[0] * most[1], width))]
        if both:
            _check_every_item(positives, len(items))
            back, order = positives.transposed(len(items)), np.argsort(positives.indices, kind="stable")
            self.tallies.append(_Tally.starting(right[order], back, _margins(lengths[1] * most[0], width)))

    def count(self, start: int, stop: int, chunk: int) -> None:
        """Count the queries start..stop-1 against all items."""
        tops, lefts = range(start, stop, chunk), range(0, len(self.items), ITEM_BLOCK)
        for top, left in product(tops, lefts):
            self._count_block(slice(top, min(top + chunk, stop)), slice(left, left + ITEM_BLOCK))

    def _count_block(self, rows: slice, columns: slice) -> None:
        if not self.quick:
            self._count_exactly(rows, columns)
            return
        block = self._without_pairs(_products(self.queries[rows], self.items[columns]), rows, columns)
        views = list(zip(self.tallies, (block, block.T), (rows, columns), strict=False))
        above = [_number(view > tally.high[place, None]) for tally, view, place in views]
        doubtful = [
            _number(view >= tally.low[place, None]) - sure
            for (tally, view, place), sure in zip(views, above, strict=True)
        ]
        if sum(each.sum() for each in doubtful) > DOUBTFUL * block.size:
            self._count_exactly(rows, columns)
            return
        for turned, (tally, view, place) in enumerate(views):
            tally.counts[0, place] += above[turned]
            self._settle(tally, view, np.flatnonzero(doubtful[turned]), (rows.start, columns.start), bool(turned))

    def _count_exactly(self, rows: slice, columns: slice) -> None:
        exact = _products(self.queries[rows].astype(np.float64), self.items[columns].astype(np.float64))
        block = self._without_pairs(_rounded(exact), rows, columns)
        for tally, view, place in zip(self.tallies, (block, block.T), (rows, columns), strict=False):
            tally.counts[0, place] += _number(view > tally.best[place, None])
            tally.counts[1, place] += _number(view == tally.best[place, None])

    def _settle(
        self, tally: _Tally, view: np.ndarray, asking: np.ndarray, corner: tuple[int, int], turned: bool
    ) -> None:
        """Count the doubtful values of the rows ``asking`` of a view by their sums in float64."""
        if not len(asking):
            return
        some, first = view[asking], corner[turned]
        low, high = (limit[first + asking, None] for limit in (tally.low, tally.high))
        found, others = np.nonzero((some >= low) & (some <= high))
        asking, others = first + asking[found], corner[not turned] + others
        values = self._values(others, asking) if turned else self._values(asking, others)
        for kind, met in enumerate((values > tally.best[asking], values == tally.best[asking])):
            np.add.at(tally.counts[kind], asking[met], 1)

    def _without_pairs(self, block: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """The block with NaN, which no comparison counts, at the positives: they are nobody's rivals."""
        near = self.positives.between(rows.start, rows.stop)
        row, column = near.rows(), near.indices - columns.start
        inside = (column >= 0) & (column < block.shape[1])
        block[row[inside], column[inside]] = np.nan
        return block

    def _values(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The similarities float32[P] of single pairs (query, item), all summed in the same order."""
        values = np.empty(len(rows), dtype=np.float32)
        vectors = [int(np.prod(embeds.shape[1:-1])) for embeds in (self.queries, self.items)]
        step = max(1, PAIR_NUMBERS // max(1, vectors[0] * vectors[1] * self.queries.shape[-1]))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            left, right = self.queries[rows[some]].astype(np.float64), self.items[columns[some]].astype(np.float64)
            left, right = (each.reshape(len(each), -1, each.shape[-1]) for each in (left, right))
            products = (left[:, :, None] * right[:, None]).sum(axis=-1)
            values[some] = _rounded(products.max(axis=(1, 2)))
        return values


def _lengths(name: str, embeds: np.ndarray) -> np.ndarray:
    """The length of each embedding, float64[n]; of the longest where there are several vectors."""
    squares = np.einsum("...d,...d->...", embeds, embeds, dtype=np.float64)
    longest = np.sqrt(squares.reshape(len(embeds), -1).max(axis=1, initial=0.0))
    broken = int((~np.isfinite(longest)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(embeds)} {name} embeddings are not finite: they have no rank")
    return longest


def _margins(lengths: np.ndarray, width: int) -> np.ndarray:
    """How far a float32 product is at most from the similarity, float64[n].

    Args:
        lengths: float64[n]; a query's length times the longest item's.
        width: D; two more roundings are those of the similarity itself, and products that vanish add the last term.
    """
    error = (width + 2) * 2.0**-24
    return lengths * (error / (1.0 - error) * (1.0 + 2.0**-20)) + width * 2.0**-125


def _number(mask: np.ndarray) -> np.ndarray:
    """How many are true in each row."""
    return np.asarray(np.count_nonzero(mask, axis=1))


def _rounded(exact: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, and still compares
        return exact.astype(np.float32)


def _products(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Inner products [Q, N] in the given precision; the greatest over the vectors of either side, one at a time."""
    if queries.ndim == 3:
        greatest = _products(queries[:, 0], items)
        for number in range(1, queries.shape[1]):
            np.maximum(greatest, _products(queries[:, number], items), out=greatest)
        return greatest
    if items.ndim == 3:
        return _products(items, queries).T
    products: np.ndarray = queries @ items.T
    return products


def _best(right: np.ndarray, positives: Positives) -> tuple[np.ndarray, np.ndarray]:
    """The best value of each query's positives and how many have it, from the values of all pairs [M]."""
    starts = positives.offsets[:-1]
    best = np.maximum.reduceat(right, starts)
    return best, np.add.reduceat((right == best[positives.rows()]).astype(np.int64), starts)


def _ranks(scores: np.ndarray, positives: Positives) -> np.ndarray:
    best, tied = _best(scores[positives.rows(), positives.indices], positives)
    above = _number(scores > best[:, None])
    equal = _number(scores == best[:, None]) - tied
    return np.asarray(1.0 + above + equal / (tied + 1.0))


def _check_every_item(positives: Positives, num_items: int) -> None:
    alone = num_items - len(np.unique(positives.indices))
    if alone:
        raise ValueError(f"{alone} of {num_items} items are right for no query: they have no rank")


def _check(num_queries: int, num_items: int, positives: Positives) -> None:
    if len(positives) != num_queries:
        raise ValueError(f"{num_queries} queries, but positives of {len(positives)}")
    empty = np.flatnonzero(np.diff(positives.offsets) < 1)
    if len(empty):
        raise ValueError(f"{len(empty)} queries have no positive, the first is query {empty[0]}: leave them out")
    if len(positives.indices) and not 0 <= positives.indices.min() <= positives.indices.max() < num_items:
        raise ValueError(f"positives name items outside 0..{num_items - 1}")
    pairs = positives.rows() * num_items + positives.indices
    if len(np.unique(pairs)) != len(pairs):
        raise ValueError("an item is named twice as a positive of one query")
