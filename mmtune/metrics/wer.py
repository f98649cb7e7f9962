"""Word error rate, through jiwer."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import ratio_of_sums
from mmtune.metrics._edit_sums import edit_statistics


def wer(predictions: Predictions, references: References) -> float:
    """Words to change, add or remove, by the words of the references; lower is better.

    What: 0 for a copy, 1 for saying nothing; it can exceed 1, where too much is said.

    Formula: ``sum over samples of (substitutions + deletions + insertions) / sum of the references' words``. Of several
        references each sample is counted against the one with the lowest rate.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: the extra ``mmtune[metrics]``. Words are split at white space; case and punctuation count. Where no reference
        has a word, the number of words said.

    Relatives: `cer` counts characters; a mean of per-sample rates is another number than this.

    Source: Levenshtein 1966; as computed by jiwer with its own settings.

    Raises:
        DataError: jiwer is missing.
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(ratio_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each sample's errors and reference words: float64[N, 2]."""
    return edit_statistics("words", predictions, references)


METRIC = AnswerMetric(name="wer", higher_is_better=False, function=wer, statistics=statistics, combine=ratio_of_sums)
