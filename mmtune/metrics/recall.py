"""Recall at k: how often the first k answers hold a right one."""

import numpy as np

from mmtune.metrics import MetricRecord


def hits(ranks: np.ndarray, k: int | None) -> np.ndarray:
    """1.0 where a query's best positive is among the first ``k``, else 0.0: float64[Q]."""
    return (np.asarray(ranks, dtype=np.float64) <= (1 if k is None else k)).astype(np.float64)


def recall(ranks: np.ndarray, k: int = 1) -> float:
    """Share of queries whose best positive is among the first ``k`` answers.

    What: the number that papers on image-text retrieval print as R@1, R@5, R@10, as a share in [0, 1].

    Formula: ``mean over q of [rank_q <= k]``. A tie is not broken in the model's favour: with the expected rank of
        `_ranking.py` a constant model gets 0 for every k below the middle, never more than chance.

    Shapes: ranks float[Q], each >= 1 -> float.

    Needs: ranks of the best positive per query; k >= 1.

    Relatives: with several positives per query this is "success at k" (one right answer suffices), as in the
        five-captions protocol of Flickr30k and COCO, not the share of all positives that were found.

    Source: Hodosh, Young, Hockenmaier 2013 (JAIR 47), section 4; five-captions protocol: Karpathy and Fei-Fei 2015
        (arXiv:1412.2306), section 4.1.

    Raises:
        ValueError: no ranks, or k below 1.
    """
    if len(ranks) == 0:
        raise ValueError("recall needs at least one rank")
    if k < 1:
        raise ValueError(f"recall at k={k}: k counts answers and starts at 1")
    return float(hits(ranks, k).mean())


METRIC = MetricRecord(
    name="recall",
    key="recall",
    higher_is_better=True,
    inputs=("ranks", "k"),
    function=recall,
    cutoffs=(1, 5, 10),
    per_query=hits,
)
