"""BLEU as the COCO caption evaluation computes it."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import check_answers
from mmtune.metrics._ngram_weights import count_ngrams
from mmtune.metrics._ptb_tokens import ptb_tokens

TINY, SMALL = 1e-15, 1e-9
"""Added above and below each fraction by the official scorer, so that it never divides by 0."""


def coco_bleu(predictions: Predictions, references: References, k: int = 4) -> float:
    """BLEU-k of a whole split: geometric mean of the clipped n-gram precisions, times a penalty for brevity.

    What: "B-1" to "B-4" of caption papers, as a share in [0, 1]. A constant caption still scores on its common words.

    Formula: ``(prod over n = 1..k of (matched_n + 1e-15) / (said_n + 1e-9)) ^ (1/k) * min(1, exp(1 - 1/ratio))``.
        matched_n counts a prediction's n-grams, each at most as often as the reference has it that has it most;
        ``ratio = (words said + 1e-15) / (words of references + 1e-9)``, with for each sample the reference closest in
        length, of two equally close ones the shorter. All counts are sums over the split.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each; k in 1..4 -> float.

    Needs: words by `_ptb_tokens.py`: lower case, no punctuation.

    Relatives: `bleu`, through sacrebleu: cased, with punctuation, smoothed, on a scale of 100. A mean of per-sample
        values is not this number; per sample, with nothing matched at some n, it is nearly 0.

    Source: Papineni et al. 2002 (BLEU); constants, closest length and tie rule as in the BLEU scorer of the COCO
        caption evaluation (Chen et al. 2015, arXiv:1504.00325).

    Raises:
        ValueError: no sample, unequal numbers, a sample without a reference, or k outside 1..4.
    """
    return float(combine(statistics(predictions, references, k).sum(axis=0), k))


def statistics(predictions: Predictions, references: References, k: int = 4) -> np.ndarray:
    """Per sample: n-grams matched at n = 1..k, n-grams said, words said, words of the closest reference.

    Returns:
        float64[N, 2 k + 2], whole numbers.
    """
    if k not in METRIC.cutoffs:
        raise ValueError(f"coco_bleu at k={k}: k is the longest n-gram, 1 to 4")
    check_answers(predictions, references)
    rows = [
        _counts(ptb_tokens(prediction), [ptb_tokens(text) for text in texts], k)
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return np.array(rows, dtype=np.float64)


def _counts(said: list[str], texts: list[list[str]], k: int) -> list[int]:
    matched, possible = [], []
    for n in range(1, k + 1):
        own, allowed = count_ngrams(said, [n]), count_ngrams([], [n])
        for text in texts:
            allowed |= count_ngrams(text, [n])
        matched.append((own & allowed).total())
        possible.append(own.total())
    closest = min((abs(len(text) - len(said)), len(text)) for text in texts)[1]
    return [*matched, *possible, len(said), closest]


def combine(sums: np.ndarray, k: int = 4) -> np.ndarray:
    """The score of summed counts: float64[..., 2 k + 2] -> float64[...]."""
    precisions = (sums[..., :k] + TINY) / (sums[..., k : 2 * k] + SMALL)
    ratio = (sums[..., -2] + TINY) / (sums[..., -1] + SMALL)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.prod(precisions, axis=-1) ** (1 / k) * penalty


METRIC = AnswerMetric(
    name="coco_bleu",
    higher_is_better=True,
    function=coco_bleu,
    statistics=statistics,
    combine=combine,
    cutoffs=(1, 2, 3, 4),
)
