"""BLEU as translation papers report it, through sacrebleu."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._sacre_sums import sacre_combine, sacre_metric, sacre_statistics


def bleu(predictions: Predictions, references: References) -> float:
    """BLEU of a whole split by sacrebleu with its own settings, 0 to 100.

    What: share of n-grams up to four words that a reference has too. It keeps sacrebleu's scale, 0 to 100, so that the
        number can be compared with printed ones; a copy is 100. Signature: case.mixed, eff.no, tok.13a, smooth.exp.

    Formula: ``100 * exp(mean over n = 1..4 of ln precision_n) * min(1, exp(1 - reference words / words said))``; where
        nothing of order n matches, the precision is ``1 / (2^m * said_n)`` for the m-th such order.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: the extra ``mmtune[metrics]``. Raw text: words are split by sacrebleu's 13a rules; case and punctuation
        count.

    Relatives: `coco_bleu` works on PTB words in lower case without punctuation, unsmoothed, on a scale of 1. Per
        sample, it is BLEU of a corpus of one, without sacrebleu's "effective order".

    Source: Papineni et al. 2002; Post 2018 (arXiv:1804.08771), sacrebleu.

    Raises:
        DataError: sacrebleu is missing.
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(combine(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Per sample: words said, reference words, n-grams matched and said at n = 1..4: float64[N, 10]."""
    return sacre_statistics(sacre_metric("BLEU"), predictions, references)


def combine(sums: np.ndarray) -> np.ndarray:
    """The score of summed statistics: float64[..., 10] -> float64[...]."""
    return sacre_combine(sacre_metric("BLEU"), sums)


METRIC = AnswerMetric(
    name="bleu", higher_is_better=True, function=bleu, statistics=statistics, combine=combine, top=100.0
)
