"""The sums that sacrebleu's corpus metrics are made of, so that the bootstrap can draw samples.

sacrebleu comes with the extra ``mmtune[metrics]``. The statistics of single samples are behind names that begin with
an underscore there, though its own bootstrap lives on them; the range in pyproject.toml and a test that compares the
result with ``corpus_score`` guard us.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.metrics import Predictions, References
from mmtune.metrics._answer_sums import check_answers

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


def sacre_metric(name: str) -> "Metric":
    """``BLEU`` or ``CHRF`` with sacrebleu's own settings.

    Raises:
        DataError: sacrebleu is missing.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise DataError(f"the score {name.lower()} needs sacrebleu: pip install 'mmtune[metrics]'") from error
    if name == "BLEU":
        return BLEU(force=True)  # no warning of spaces before full stops; the score is the same
    return CHRF()


def sacre_statistics(metric: "Metric", predictions: Predictions, references: References) -> np.ndarray:
    """What each sample adds: float64[N, S], whole numbers.

    Raises:
        ValueError: see `check_answers`.
    """
    check_answers(predictions, references)
    most = max(len(texts) for texts in references)
    # sacrebleu wants the first reference of every sample, then the second of every sample, None where there is none
    streams: Any = [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]
    return np.array(metric._extract_corpus_statistics(list(predictions), streams), dtype=np.float64)


def sacre_combine(metric: "Metric", sums: np.ndarray) -> np.ndarray:
    """The score of summed statistics, 0 to 100: float64[..., S] -> float64[...]."""
    rows = sums.reshape(-1, sums.shape[-1])
    scores = [metric._compute_score_from_stats(row.tolist()).score for row in rows]
    return np.array(scores, dtype=np.float64).reshape(sums.shape[:-1])
