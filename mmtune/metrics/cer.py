"""Character error rate, through jiwer."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import ratio_of_sums
from mmtune.metrics._edit_sums import edit_statistics


def cer(predictions: Predictions, references: References) -> float:
    """Characters to change, add or remove, by the characters of the references; lower is better.

    What: 0 for a copy, 1 for saying nothing; it can exceed 1, where too much is said. For text read from an image.

    Formula: ``sum over samples of (substitutions + deletions + insertions) / sum of the references' characters``. Of
        several references each sample is counted against the one with the lowest rate.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: the extra ``mmtune[metrics]``. White space at the ends does not count; spaces inside, case and punctuation
        do. Where no reference has a character, the number of characters said.

    Relatives: `wer` counts words; `anls` divides by the longer text, has a threshold and ignores case.

    Source: Levenshtein 1966; as computed by jiwer with its own settings.

    Raises:
        DataError: jiwer is missing.
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(ratio_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each sample's errors and reference characters: float64[N, 2]."""
    return edit_statistics("characters", predictions, references)


METRIC = AnswerMetric(name="cer", higher_is_better=False, function=cer, statistics=statistics, combine=ratio_of_sums)
