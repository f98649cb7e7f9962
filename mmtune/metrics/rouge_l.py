"""ROUGE-L as the COCO caption evaluation computes it."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import check_answers, mean_of_sums, mean_statistics
from mmtune.metrics._ptb_tokens import ptb_tokens

BETA = 1.2


def rouge_l(predictions: Predictions, references: References) -> float:
    """How long a subsequence of words a caption shares with its references.

    What: mean over samples of an F-measure in [0, 1]; 1 for a copy of a reference. Order counts, gaps do not.

    Formula: ``(1 + b^2) P R / (R + b^2 P)``, b = 1.2, with L the longest common subsequence, P the greatest
        ``L / words said`` and R the greatest ``L / words of the reference`` over the references. The two maxima may
        come from different references: so the official scorer has it.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: words by `_ptb_tokens.py`.

    Relatives: the ROUGE-L of summarisation works sentence by sentence and has other betas; `token_f1` ignores order.

    Source: Lin 2004 (ROUGE), section 3; beta and maxima as in the scorer of the COCO caption evaluation
        (Chen et al. 2015, arXiv:1504.00325).

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each sample's F-measure, and 1: float64[N, 2]."""
    check_answers(predictions, references)
    return mean_statistics(
        _f_measure(_words(prediction), [_words(text) for text in texts])
        for prediction, texts in zip(predictions, references, strict=True)
    )


def _words(text: str) -> list[str]:
    # The official scorer splits at single spaces: a text without a word is one empty word, equal to another such.
    return ptb_tokens(text) or [""]


def _f_measure(said: list[str], texts: list[list[str]]) -> float:
    shared = [_common_length(said, text) for text in texts]
    precision = max(shared) / len(said)
    recall = max(length / len(text) for length, text in zip(shared, texts, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_length(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


METRIC = AnswerMetric(
    name="rouge_l", higher_is_better=True, function=rouge_l, statistics=statistics, combine=mean_of_sums
)
