"""Majority accuracy: what one gets by always giving the most frequent label."""

from collections import Counter

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import check_answers, mean_of_sums, mean_statistics


def majority_accuracy(predictions: Predictions, references: References) -> float:
    """`accuracy` of the best constant answer: the line that a model has to be above.

    What: a share in [0, 1] that says something of the data and nothing of the model; the predictions are not looked at.

    Formula: ``max over labels of mean over samples of [the label is one of the references]``.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 right labels for each -> float.

    Needs: the labels of the whole split: the bootstrap keeps its most frequent label. Of equally frequent ones, the
        first in the alphabet.

    Relatives: `accuracy`.

    Source: the textbook's zero rule (Holte 1993, Machine Learning 11, calls it the default accuracy).

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a label.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """1 where the split's most frequent label is right, else 0, and 1: float64[N, 2]."""
    check_answers(predictions, references)
    times = Counter(label for labels in references for label in set(labels))
    majority = min(times, key=lambda label: (-times[label], label))
    return mean_statistics(float(majority in labels) for labels in references)


METRIC = AnswerMetric(
    name="majority_accuracy",
    higher_is_better=True,
    function=majority_accuracy,
    statistics=statistics,
    combine=mean_of_sums,
)
