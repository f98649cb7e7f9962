"""Macro F1: precision and recall of every class in one number, every class alike."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import check_answers
from mmtune.metrics._class_counts import mean_where, one_hot, share, true_labels


def macro_f1(predictions: Predictions, references: References) -> float:
    """Mean over classes of the harmonic mean of precision and recall.

    What: a share in [0, 1]; 1 where every label is right.

    Formula: ``mean over classes c of 2 TP_c / (2 TP_c + FP_c + FN_c)``, the mean of the classes' F1 (not the F1 of mean
        precision and recall).

    Shapes: predictions str[N], references list of str[R] with any R >= 1 right labels for each -> float.

    Needs: predictions chosen from a list of classes. Of several right labels the predicted one counts, else the first.
        A class that is neither true nor said of any sample is left out; one that is said and never true counts 0.

    Relatives: `mean_class_recall` without the precision; `token_f1` compares words.

    Source: the averaged F1 of Opitz and Burst 2019, https://arxiv.org/abs/1911.03347, equation 3.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a label.
    """
    return float(combine(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """For every class: right, said, and true, 1 or 0 each: float64[N, 3 C]."""
    check_answers(predictions, references)
    labels = true_labels(predictions, references)
    classes = sorted({*labels, *predictions})
    true, said = one_hot(labels, classes), one_hot(list(predictions), classes)
    return np.concatenate([true * said, said, true], axis=1)


def combine(sums: np.ndarray) -> np.ndarray:
    """The score of sums float64[..., 3 C] -> float64[...]; F1 is twice the right ones among said and true together."""
    right, said, true = np.split(sums, 3, axis=-1)
    return mean_where(share(2 * right, said + true), said + true > 0)


METRIC = AnswerMetric(name="macro_f1", higher_is_better=True, function=macro_f1, statistics=statistics, combine=combine)
