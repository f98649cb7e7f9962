"""Ranks of the best positive per query, in chunks, so that Q x N similarities never exist at once.

Letters: Q queries, N items, M pairs (query, positive), D embedding width.

The rank is the expected place of the best positive among the items that are not positives, when equal items are
shuffled: ``1 + above + equal / (tied + 1)``, with ``above`` non-positives scored higher than the best positive,
``equal`` non-positives scored the same, ``tied`` positives that share the best score. For one positive that is
"1 + number above + half of the other equals"; for any number of positives a constant model gets exactly the expected
rank of a random order. Other positives never push a query down.
"""

from dataclasses import dataclass

import numpy as np

ITEM_BLOCK = 4096


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
    queries: np.ndarray, items: np.ndarray, positives: Positives, *, chunk: int = 512
) -> np.ndarray:
    """Rank of the best positive of every query by inner product (cosine similarity for L2-normalised embeddings).

    Where one side has several vectors for each, the greatest of the inner products counts.

    Similarities are summed in float64 and rounded to float32: the sum's order, which differs with chunk size and place
    in a matrix product, then cannot turn a tie into a difference.

    Args:
        queries: float32[Q, D]; either side may be float32[..., V, D], V vectors for each.
        items: float32[N, D].
        positives: the right items of every query.
        chunk: queries at a time; memory is about ``5 * chunk * N`` bytes and the result does not depend on it.

    Returns:
        float64[Q], each >= 1.

    Raises:
        ValueError: a query without positives, an index outside the items, or an embedding that is not finite.
    """
    _check(len(queries), len(items), positives)
    for name, embeds in (("query", queries), ("item", items)):
        broken = int((~np.isfinite(embeds.reshape(len(embeds), -1)).all(axis=1)).sum())
        if broken:
            raise ValueError(f"{broken} of {len(embeds)} {name} embeddings are not finite: they have no rank")
    ranks = np.empty(len(queries), dtype=np.float64)
    for start in range(0, len(queries), chunk):
        stop = min(start + chunk, len(queries))
        scores = _similarities(queries[start:stop], items)
        ranks[start:stop] = _ranks(scores, positives.between(start, stop))
    return ranks


def ranks_of_scores(scores: np.ndarray, positives: Positives) -> np.ndarray:
    """The same for similarities that exist already: scores float[Q, N], higher is more similar -> float64[Q].

    Raises:
        ValueError: a query without positives, an index outside the items, or a score that is not finite.
    """
    _check(scores.shape[0], scores.shape[1], positives)
    if not np.isfinite(scores).all():
        raise ValueError("some similarities are not finite: they have no rank")
    return _ranks(scores, positives)


def _similarities(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    scores = np.empty((len(queries), len(items)), dtype=np.float32)
    exact = queries.astype(np.float64)
    for start in range(0, len(items), ITEM_BLOCK):
        block = items[start : start + ITEM_BLOCK].astype(np.float64)
        scores[:, start : start + ITEM_BLOCK] = _products(exact, block)
    return scores


def _products(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Inner products float64[Q, N]; the greatest over the vectors of either side, one vector at a time."""
    if queries.ndim == 3:
        return np.maximum.reduce([_products(queries[:, number], items) for number in range(queries.shape[1])])
    if items.ndim == 3:
        return _products(items, queries).T
    products: np.ndarray = queries @ items.T
    return products


def _ranks(scores: np.ndarray, positives: Positives) -> np.ndarray:
    rows, starts = positives.rows(), positives.offsets[:-1]
    right = scores[rows, positives.indices]
    best = np.maximum.reduceat(right, starts)
    tied = np.add.reduceat((right == best[rows]).astype(np.int64), starts)
    above = np.count_nonzero(scores > best[:, None], axis=1)
    equal = np.count_nonzero(scores == best[:, None], axis=1) - tied
    return 1.0 + above + equal / (tied + 1.0)


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
