"""VQA accuracy: an answer is as right as people agree with it."""

from collections.abc import Sequence

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import check_answers, mean_of_sums, mean_statistics
from mmtune.metrics._vqa_words import normal_answer, plain_answer

ENOUGH = 3
"""So many people who gave the answer make it wholly right."""


def vqa_accuracy(predictions: Predictions, references: References) -> float:
    """Share of questions answered as people did, an answer that few gave counting in part.

    What: the accuracy of VQA v1 and v2, as a share in [0, 1]. The same answer always gives what people agree on it.

    Formula: ``mean over questions of mean over annotators i of min(1, others than i who gave the answer / 3)``. With
        ten annotators 1, 2, 3 and 4 of them make 0.3, 0.6, 0.9 and 1. The normalisation of `_vqa_words.py` is applied
        to prediction and answers where the answers differ; where all are the same they are compared as they stand
        (but for spaces at the ends), case included: so the official script has it.

    Shapes: predictions str[N], references list of str[A], A people's answers for each -> float.

    Needs: nothing. Made for A = 10. With fewer than four annotators the others cannot be three: the divisor is then
        ``min(3, A - 1)``, so that agreement still makes 1, and a single answer is simply compared; where there is one
        answer per question `exact_match` says more plainly what is counted.

    Relatives: `exact_match`; an early version of the official script normalised the prediction always and the answers
        by punctuation alone.

    Source: Antol et al. 2015 (arXiv:1505.00468), section 3; Goyal et al. 2017 (arXiv:1612.00837); rules of
        normalisation as published with the evaluation code of visualqa.org.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without an answer.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each question's accuracy, and 1: float64[N, 2]."""
    check_answers(predictions, references)
    return mean_statistics(_agreement(p, answers) for p, answers in zip(predictions, references, strict=True))


def _agreement(prediction: str, answers: Sequence[str]) -> float:
    said, given = plain_answer(prediction), [plain_answer(answer) for answer in answers]
    if len(set(given)) > 1:
        said, given = normal_answer(said), [normal_answer(answer) for answer in given]
    same = [answer == said for answer in given]
    if len(same) == 1:
        return float(same[0])
    enough = min(ENOUGH, len(same) - 1)
    return sum(min(1.0, (sum(same) - own) / enough) for own in same) / len(same)


METRIC = AnswerMetric(
    name="vqa_accuracy", higher_is_better=True, function=vqa_accuracy, statistics=statistics, combine=mean_of_sums
)
