"""CIDEr: do captions agree in the n-grams that are telling."""

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import mean_of_sums, mean_statistics
from mmtune.metrics._ngram_weights import ORDERS, WeightedCaption, weigh_split


def cider(predictions: Predictions, references: References) -> float:
    """Mean cosine between a caption and its references, n-grams weighted by how few samples have them, times 10.

    What: consensus of a caption with several people's captions of the image. 0 to 10; an exact copy of the only
        reference, of four words or more, is 10. What every sample's references have weighs nothing, so a split of
        one sample scores 0, and a constant caption little.

    Formula: ``10 * mean over samples, references and n = 1..4 of cos(g_n(prediction), g_n(reference))``, with
        ``g_n[w] = count(w) * (ln N - ln max(1, df(w)))`` and df(w) the number of samples of which some reference has
        the n-gram w. A cosine with nothing in it is 0.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: the references of the whole split, for df; words by `_ptb_tokens.py`. The bootstrap keeps df as it is in the
        split and draws samples, so its intervals leave out the spread of df itself.

    Relatives: `cider_d` clips counts and punishes wrong lengths, and is what papers print as CIDEr. As in the official
        code, words are not stemmed.

    Source: Vedantam, Zitnick, Parikh 2015 (arXiv:1411.5726), equations 1 to 3; scale and df as in the authors' scorer.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each sample's CIDEr, and 1: float64[N, 2]."""
    return mean_statistics(
        10 * float(np.mean([_cosine(caption, text) for text in texts]))
        for caption, texts in weigh_split(predictions, references)
    )


def _cosine(caption: WeightedCaption, text: WeightedCaption) -> float:
    """Mean over n of the cosine."""
    total = 0.0
    for n in range(len(ORDERS)):
        if caption.norms[n] and text.norms[n]:
            found = sum(weight * text.weights[n].get(ngram, 0.0) for ngram, weight in caption.weights[n].items())
            total += found / (caption.norms[n] * text.norms[n])
    return total / len(ORDERS)


METRIC = AnswerMetric(
    name="cider", higher_is_better=True, function=cider, statistics=statistics, combine=mean_of_sums, top=10.0
)
