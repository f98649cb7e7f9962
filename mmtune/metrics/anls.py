"""ANLS: right but for a few letters, as text read from an image is."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import best_of, check_answers, mean_of_sums, mean_statistics

THRESHOLD = 0.5


def anls(predictions: Predictions, references: References) -> float:
    """Average normalised Levenshtein similarity: 1 for the same text, less for each wrong letter, 0 from half on.

    What: the score of ST-VQA and DocVQA, in [0, 1].

    Formula: ``mean over samples of max over references of s``, ``s = 1 - d`` if ``d < 0.5`` else 0, with
        ``d = edits / letters of the longer`` and both in lower case with single spaces. At d = 0.5 exactly s is 0.
        Two empty texts are the same.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: nothing.

    Relatives: `cer` divides by the reference's letters and has no threshold; `exact_match` forgives nothing.

    Source: Biten et al. 2019 (arXiv:1905.13648), equation 1, threshold 0.5.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each sample's similarity, and 1: float64[N, 2]."""
    check_answers(predictions, references)
    return mean_statistics(best_of(_similarity, p, texts) for p, texts in zip(predictions, references, strict=True))


def _similarity(prediction: str, text: str) -> float:
    from rapidfuzz.distance import Levenshtein

    said, right = (" ".join(each.lower().split()) for each in (prediction, text))
    longer = max(len(said), len(right))
    distance = Levenshtein.distance(said, right) / longer if longer else 0.0
    return 1 - distance if distance < THRESHOLD else 0.0


METRIC = AnswerMetric(name="anls", higher_is_better=True, function=anls, statistics=statistics, combine=mean_of_sums)
