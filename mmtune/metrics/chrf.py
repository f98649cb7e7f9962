"""chrF: agreement in runs of characters, through sacrebleu."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._sacre_sums import sacre_combine, sacre_metric, sacre_statistics


def chrf(predictions: Predictions, references: References) -> float:
    """chrF2 of a whole split by sacrebleu with its own settings, 0 to 100.

    What: F-measure over runs of 1 to 6 characters, recall counting twice: kinder than word metrics to inflection and
        spelling, and needs no words, so it suits every script. A copy is 100.

    Formula: ``100 * (1 + b^2) P R / (b^2 P + R)``, b = 2, with P and R the means over n = 1..6 of the precision and
        recall of character n-grams, counted over the split; of several references each sample takes the one that
        scores best. Signature: case.mixed, eff.yes, nc.6, nw.0, space.no.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: the extra ``mmtune[metrics]``. Raw text; spaces do not count, case and punctuation do.

    Relatives: chrF++ adds words; `cer` counts edits instead of n-grams.

    Source: Popovic 2015 (chrF), 2016 (chrF2); Post 2018 (arXiv:1804.08771), sacrebleu.

    Raises:
        DataError: sacrebleu is missing.
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(combine(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Per sample and n = 1..6: n-grams said, of the best reference, matched: float64[N, 18]."""
    return sacre_statistics(sacre_metric("CHRF"), predictions, references)


def combine(sums: np.ndarray) -> np.ndarray:
    """The score of summed statistics: float64[..., 18] -> float64[...]."""
    return sacre_combine(sacre_metric("CHRF"), sums)


METRIC = AnswerMetric(
    name="chrf", higher_is_better=True, function=chrf, statistics=statistics, combine=combine, top=100.0
)
