"""Accuracy of chosen labels."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import check_answers, mean_of_sums, mean_statistics


def accuracy(predictions: Predictions, references: References) -> float:
    """Share of samples whose chosen label is right.

    What: a share in [0, 1], to be read beside `majority_accuracy`, what the best constant label gets.

    Formula: ``mean over samples of [the prediction is one of the references]``, letter for letter.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 right labels for each -> float.

    Needs: predictions chosen from a list of labels; for free text see `exact_match`.

    Relatives: `majority_accuracy`; `exact_match` forgives case and spaces.

    Source: the textbook; no published variant differs.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a label.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """1 or 0 for each sample, and 1: float64[N, 2]."""
    check_answers(predictions, references)
    return mean_statistics(float(p in labels) for p, labels in zip(predictions, references, strict=True))


METRIC = AnswerMetric(
    name="accuracy", higher_is_better=True, function=accuracy, statistics=statistics, combine=mean_of_sums
)
