"""Exact match: the answer is one of the right ones."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import best_of, check_answers, mean_of_sums, mean_statistics


def exact_match(predictions: Predictions, references: References) -> float:
    """Share of answers that are word for word one of the references, but for case and spaces.

    What: the strictest score, a share in [0, 1]. A constant answer gets the share of its samples.

    Formula: ``mean over samples of [some reference equals the prediction]``, both with runs of white space made one
        space, none at the ends, and case folded. Punctuation and articles count.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: nothing.

    Relatives: `token_f1` and `anls` give part of a point for a near miss; `vqa_accuracy` normalises more; `accuracy`
        normalises nothing.

    Source: SQuAD's "exact match" (Rajpurkar et al. 2016, arXiv:1606.05250), without its removal of articles and
        punctuation.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """1 or 0 for each sample, and 1: float64[N, 2]."""
    check_answers(predictions, references)
    return mean_statistics(best_of(_same, p, texts) for p, texts in zip(predictions, references, strict=True))


def _same(prediction: str, text: str) -> float:
    return float(_folded(prediction) == _folded(text))


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


METRIC = AnswerMetric(
    name="exact_match", higher_is_better=True, function=exact_match, statistics=statistics, combine=mean_of_sums
)
