"""Mean per-class recall: accuracy in which every class counts alike."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import check_answers
from mmtune.metrics._class_counts import mean_where, one_hot, share, true_labels


def mean_class_recall(predictions: Predictions, references: References) -> float:
    """Mean over classes of the share of a class's samples that are recognised.

    What: a share in [0, 1]; always saying one of C classes gets 1 / C, however frequent it is.

    Formula: ``mean over classes c of (samples of c that are said to be c) / (samples of c)``.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 right labels for each -> float.

    Needs: predictions chosen from a list of classes. Of several right labels the predicted one counts, else the first.
        Classes without a sample are left out; so are those that a resample of the bootstrap misses.

    Relatives: `accuracy` counts samples alike; `macro_f1` also minds what is wrongly said. Known as balanced accuracy.

    Source: Brodersen et al. 2010, https://doi.org/10.1109/ICPR.2010.764; reported for Oxford Pets, Flowers and
        Caltech101 in Radford et al. 2021, https://arxiv.org/abs/2103.00020, appendix A.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a label.
    """
    return float(combine(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """For every class 1 where the sample is of it and recognised, then 1 where it is of it: float64[N, 2 C]."""
    check_answers(predictions, references)
    labels = true_labels(predictions, references)
    of_class = one_hot(labels, sorted(set(labels)))
    right = np.array([[float(said == label)] for said, label in zip(predictions, labels, strict=True)])
    return np.concatenate([of_class * right, of_class], axis=1)


def combine(sums: np.ndarray) -> np.ndarray:
    """The score of sums float64[..., 2 C] -> float64[...]."""
    right, there = np.split(sums, 2, axis=-1)
    return mean_where(share(right, there), there > 0)


METRIC = AnswerMetric(
    name="mean_class_recall",
    higher_is_better=True,
    function=mean_class_recall,
    statistics=statistics,
    combine=combine,
)
