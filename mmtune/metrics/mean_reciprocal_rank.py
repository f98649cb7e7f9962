"""Mean reciprocal rank: one number for the whole list, most sensitive at the top."""

import numpy as np

from mmtune.metrics import MetricRecord


def reciprocals(ranks: np.ndarray, k: int | None = None) -> np.ndarray:
    """1 / rank of every query: float64[Q]. ``k`` is not used by this metric."""
    return 1.0 / np.asarray(ranks, dtype=np.float64)


def mean_reciprocal_rank(ranks: np.ndarray) -> float:
    """Mean of 1 / rank of the best positive.

    What: in (0, 1]; 1.0 when every first answer is right, 0.5 when every right answer stands second.

    Formula: ``mean over q of 1 / rank_q``, over the whole list, without a cut-off.

    Shapes: ranks float[Q], each >= 1 -> float.

    Needs: ranks of the best positive per query.

    Relatives: recall at k sees only one threshold; this one rewards every step up, so it moves earlier in training.

    Source: Voorhees 1999, The TREC-8 Question Answering Track Report (NIST SP 500-246), there with a cut-off at five.

    Raises:
        ValueError: no ranks.
    """
    if len(ranks) == 0:
        raise ValueError("mean reciprocal rank needs at least one rank")
    return float(reciprocals(ranks).mean())


METRIC = MetricRecord(
    name="mean_reciprocal_rank",
    key="mrr",
    higher_is_better=True,
    inputs=("ranks",),
    function=mean_reciprocal_rank,
    per_query=reciprocals,
)
