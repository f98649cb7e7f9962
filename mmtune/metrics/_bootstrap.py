"""How sure is a difference: paired bootstrap over groups of samples.

Queries that share an image or a caption rise and fall together, so whole groups are drawn, not queries. Base and tuned
are scored on the same draws (paired), and all scores of both directions on the same draws too.

Answers are scored from sums over samples (`AnswerMetric.statistics`), so a resample only adds other sums: what a metric
counts over the whole split, such as CIDEr's document frequencies, stays as it is in the split.

Letters: Q queries, N samples, S sums, G groups, B resamples.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 (cluster resampling: 8.6) and 13
(percentile interval); paired use for model comparison: Koehn 2004, Statistical Significance Tests for Machine
Translation Evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mmtune.ground.seeding import generator_for
from mmtune.metrics import AnswerScore, MetricRecord, ScoreName

NUM_RESAMPLES = 2000
DRAWS_AT_ONCE = 4_000_000


def difference_intervals(
    scores: "tuple[ScoreName, ...] | list[ScoreName]",
    base: Mapping[str, np.ndarray],
    tuned: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
) -> dict[str, tuple[float, float] | None]:
    """Percentile interval of ``tuned - base`` for every score.

    Args:
        scores: what to compare.
        base: direction -> ranks float64[Q] of the base model.
        tuned: direction -> ranks float64[Q] of the tuned model, of the same queries in the same order.
        groups: direction -> group of each query, int64[Q] in 0..G-1, one numbering for all directions.
        seed: of the draws; the same seed gives the same interval.
        num_resamples: B.
        level: share of resampled differences inside the interval.

    Returns:
        score name -> (low, high), or None where there are fewer than two groups, so that nothing can be drawn.

    Raises:
        ValueError: base and tuned have different queries.
    """
    for direction, ranks in base.items():
        if not len(ranks) == len(tuned[direction]) == len(groups[direction]):
            raise ValueError(f"{direction}: base, tuned and groups must be of the same queries")
    num_groups = 1 + max(int(g.max()) for g in groups.values())
    if num_groups < 2:
        return {score.name: None for score in scores}
    parts: dict[str, list[np.ndarray]] = {score.name: [] for score in scores}
    for draws in _draws(num_groups, num_resamples, seed, max(len(g) for g in groups.values())):
        for s in scores:
            of = s.direction
            parts[s.name].append(_differences(s.record, s.k, base[of], tuned[of], groups[of], draws))
    return {name: _edges(np.concatenate(p), level) for name, p in parts.items()}


def answer_intervals(
    scores: Sequence[AnswerScore],
    base: Mapping[str, np.ndarray],
    tuned: Mapping[str, np.ndarray],
    groups: np.ndarray,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
) -> dict[str, tuple[float, float] | None]:
    """Percentile interval of ``tuned - base`` for every score of answers, all on the same draws.

    Args:
        scores: what to compare.
        base: score name -> statistics float64[N, S] of the base model's answers.
        tuned: score name -> statistics float64[N, S] of the tuned model's, of the same samples in the same order.
        groups: group of each sample, int64[N] in 0..G-1; every group has a sample.
        seed: of the draws; the same seed gives the same interval.
        num_resamples: B.
        level: share of resampled differences inside the interval.

    Returns:
        score name -> (low, high), or None where there are fewer than two groups, so that nothing can be drawn.

    Raises:
        ValueError: base and tuned have different samples, or there are none.
    """
    for score in scores:
        if not len(base[score.name]) == len(tuned[score.name]) == len(groups) > 0:
            raise ValueError(f"{score.name}: base, tuned and groups must be of the same samples, at least one")
    num_groups = 1 + int(groups.max()) if len(groups) else 0
    if num_groups < 2:
        return {score.name: None for score in scores}
    sums = {s.name: [_group_sums(of[s.name], groups, num_groups) for of in (base, tuned)] for s in scores}
    parts: dict[str, list[np.ndarray]] = {score.name: [] for score in scores}
    for draws in _draws(num_groups, num_resamples, seed, num_groups):
        counts = draws.astype(np.float64)
        for score in scores:
            of_base, of_tuned = (score.combine(counts @ each) for each in sums[score.name])
            parts[score.name].append(of_tuned - of_base)
    return {name: _edges(np.concatenate(p), level) for name, p in parts.items()}


def _group_sums(statistics: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Sums of statistics float64[N, S] over each group: float64[G, S]."""
    sums = np.zeros((num_groups, statistics.shape[1]))
    np.add.at(sums, groups, statistics)
    return sums


def _edges(differences: np.ndarray, level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(differences, [tail, 100 - tail])
    return float(low), float(high)


def _draws(num_groups: int, num_resamples: int, seed: int, num_queries: int) -> Iterator[np.ndarray]:
    """How often each group was drawn, int64[b, G] for some resamples at a time; independent of the slicing."""
    generator = generator_for(seed, "bootstrap")
    at_once = max(1, DRAWS_AT_ONCE // max(num_groups, num_queries))
    for start in range(0, num_resamples, at_once):
        rows = min(at_once, num_resamples - start)
        drawn = generator.integers(0, num_groups, size=(rows, num_groups))
        drawn += np.arange(rows)[:, None] * num_groups
        yield np.bincount(drawn.ravel(), minlength=rows * num_groups).reshape(rows, num_groups)


def _differences(
    record: MetricRecord, k: int | None, base: np.ndarray, tuned: np.ndarray, groups: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """``tuned - base`` under each draw int64[b, G] -> float64[b]; NaN where no query of this direction was drawn."""
    if record.per_query is None:
        assert record.weighted is not None
        weights = draws[:, groups]
        values = record.weighted(tuned, weights) - record.weighted(base, weights)
        return np.where(weights.any(axis=1), values, np.nan)
    gains = record.per_query(tuned, k) - record.per_query(base, k)
    num_groups = draws.shape[1]
    sums = np.bincount(groups, weights=gains, minlength=num_groups)
    counts = np.bincount(groups, minlength=num_groups).astype(np.float64)
    total = draws @ counts
    return np.divide(draws @ sums, total, out=np.full(len(draws), np.nan), where=total > 0)


def joined_groups(num_nodes: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number the connected components of a graph: nodes 0..num_nodes-1, edges left[e] - right[e] -> int64[num_nodes].

    Components are numbered in the order of their first node.
    """
    parent = list(range(num_nodes))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        a, b = root(a), root(b)
        if a != b:
            parent[max(a, b)] = min(a, b)
    roots = np.array([root(node) for node in range(num_nodes)], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64).reshape(-1)
