"""Median rank: how far down the right answer typically stands."""

import numpy as np

from mmtune.metrics import MetricRecord


def median_rank(ranks: np.ndarray) -> float:
    """The rank that half of the queries reach.

    What: 1 is perfect; a constant model gets exactly that of a random order, (N + 1) / 2 for one positive among N.

    Formula: ``median over q of rank_q``; for an even number of queries the mean of the two middle ones.

    Shapes: ranks float[Q], each >= 1 -> float, in answers.

    Needs: ranks of the best positive per query.

    Relatives: unlike the mean rank it does not follow a few hopeless queries; unlike recall it still moves when the
        model is far from the first ten.

    Source: "Med r" of Karpathy and Fei-Fei 2015 (arXiv:1412.2306), tables 1 and 2.

    Raises:
        ValueError: no ranks.
    """
    if len(ranks) == 0:
        raise ValueError("median rank needs at least one rank")
    return float(np.median(np.asarray(ranks, dtype=np.float64)))


def weighted_median_rank(ranks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`median_rank` of ranks float[Q] in which query q occurs weights[b, q] times: int[B, Q] -> float64[B]."""
    order = np.argsort(ranks, kind="stable")
    ordered = np.asarray(ranks, dtype=np.float64)[order]
    reached = np.cumsum(weights[:, order], axis=1, dtype=np.int64)
    total = reached[:, -1:]
    lower = ordered[np.argmax(2 * reached >= total, axis=1)]
    upper = ordered[np.argmax(2 * reached > total, axis=1)]
    return (lower + upper) / 2


METRIC = MetricRecord(
    name="median_rank",
    key="median_rank",
    higher_is_better=False,
    inputs=("ranks",),
    function=median_rank,
    weighted=weighted_median_rank,
)
