"""Token F1: which words of the answer are right."""

import re
import string
from collections import Counter

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import best_of, check_answers, mean_of_sums, mean_statistics

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def token_f1(predictions: Predictions, references: References) -> float:
    """Mean F1 of the words of an answer against those of its best reference.

    What: partial credit in [0, 1] for answers of several words; order does not count.

    Formula: ``mean over samples of max over references of 2 P R / (P + R)``, P and R the shares of the prediction's and
        of the reference's words that the other has too, each word as often as both have it. Words: lower case, ASCII
        punctuation removed, then a, an, the, then split at white space. Where one side has no word left, 1 if the
        other has none either, else 0.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: nothing.

    Relatives: `rouge_l` minds the order; `exact_match` wants all of it.

    Source: Rajpurkar et al. 2016 (SQuAD, arXiv:1606.05250), section 6.1; empty answers as in SQuAD 2.0.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each sample's F1, and 1: float64[N, 2]."""
    check_answers(predictions, references)
    return mean_statistics(best_of(_f1, p, texts) for p, texts in zip(predictions, references, strict=True))


def _f1(prediction: str, text: str) -> float:
    said, right = _words(prediction), _words(text)
    if not said or not right:
        return float(said == right)
    return 2 * (said & right).total() / (said.total() + right.total())


def _words(text: str) -> "Counter[str]":
    return Counter(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


METRIC = AnswerMetric(
    name="token_f1", higher_is_better=True, function=token_f1, statistics=statistics, combine=mean_of_sums
)
