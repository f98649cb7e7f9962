"""CIDEr-D: CIDEr that repetition and length do not fool; what caption papers print."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import mean_of_sums, mean_statistics
from mmtune.metrics._ngram_weights import ORDERS, WeightedCaption, length_penalty, weigh_split


def cider_d(predictions: Predictions, references: References) -> float:
    """`cider` with counts clipped to the reference's and a penalty for another length, times 10.

    What: the "CIDEr" of the COCO caption evaluation, on its official scale of 0 to 10 (papers print ten times that).
        An exact copy of the only reference, of four words or more, is 10; of n < 4 words it is 10 n / 4. What every
        sample's references have weighs nothing, so a split of one sample scores 0, and a constant caption little.

    Formula: ``10 * mean over samples, references and n = 1..4 of exp(-d^2 / (2 * 6^2)) *
        sum_w min(p_n[w], r_n[w]) * r_n[w] / (|p_n| |r_n|)`` with p_n and r_n the weighted n-grams of prediction and
        reference as in `cider`, and d the difference of their numbers of bigrams, as the official scorer has it: that
        of their words, but for captions of no word.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: the references of the whole split, for the document frequencies; words by `_ptb_tokens.py`. The bootstrap
        keeps these frequencies as they are in the split and draws samples.

    Relatives: `cider` without clipping and penalty; `rouge_l` and `coco_bleu`, which weigh all words alike.

    Source: Vedantam, Zitnick, Parikh 2015 (arXiv:1411.5726), section 7 (CIDEr-D, sigma = 6); document frequencies and
        scale as in the scorer of the COCO caption evaluation (Chen et al. 2015, arXiv:1504.00325).

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each sample's CIDEr-D, and 1: float64[N, 2]."""
    return mean_statistics(
        10 * float(np.mean([_clipped_cosine(caption, text) for text in texts]))
        for caption, texts in weigh_split(predictions, references)
    )


def _clipped_cosine(caption: WeightedCaption, text: WeightedCaption) -> float:
    """Mean over n, penalty for the length included."""
    total = 0.0
    for n in range(len(ORDERS)):
        if caption.norms[n] and text.norms[n]:
            shared = ((weight, text.weights[n].get(ngram, 0.0)) for ngram, weight in caption.weights[n].items())
            total += sum(min(own, other) * other for own, other in shared) / (caption.norms[n] * text.norms[n])
    return length_penalty(caption.length - text.length) * total / len(ORDERS)


METRIC = AnswerMetric(
    name="cider_d",
    higher_is_better=True,
    function=cider_d,
    statistics=statistics,
    combine=mean_of_sums,
    top=10.0,
)
