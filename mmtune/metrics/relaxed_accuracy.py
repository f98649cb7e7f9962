"""Relaxed accuracy: a number read from a chart may be 5 % off."""

import math

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import best_of, check_answers, mean_of_sums, mean_statistics

TOLERANCE = 0.05


def relaxed_accuracy(predictions: Predictions, references: References) -> float:
    """Share of answers that are right, numbers within 5 % of the reference.

    What: the score of ChartQA, a share in [0, 1].

    Formula: ``mean over samples of max over references of r``. Where both are numbers and the reference is not 0:
        ``r = [|prediction - reference| / |reference| <= 0.05]``, in floating point as the published code has it (1.05
        for 1 is a hair above). Else r says whether the texts are the same but for case and spaces at the ends. A
        number is what Python reads as a finite one; ``12%`` is 0.12; ``1,200`` and ``$5`` are no numbers.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: nothing. Years are numbers too: 2010 for 2015 passes.

    Relatives: `exact_match`, without tolerance.

    Source: Masry et al. 2022 (ChartQA, arXiv:2203.10244), section 5; percent and zero as in the code published with
        Pix2Struct (Lee et al. 2023, arXiv:2210.03347).

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """1 or 0 for each sample, and 1: float64[N, 2]."""
    check_answers(predictions, references)
    return mean_statistics(best_of(_close, p, texts) for p, texts in zip(predictions, references, strict=True))


def _close(prediction: str, text: str) -> float:
    said, right = _number(prediction), _number(text)
    if said is not None and right:
        return float(abs(said - right) / abs(right) <= TOLERANCE)
    return float(prediction.strip().lower() == text.strip().lower())


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


METRIC = AnswerMetric(
    name="relaxed_accuracy",
    higher_is_better=True,
    function=relaxed_accuracy,
    statistics=statistics,
    combine=mean_of_sums,
)
