"""Caption retrieval: does a caption tell its image from the others of the split."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mmtune.metrics import AnswerMetric, Predictions, References
from mmtune.metrics._answer_sums import mean_of_sums, mean_statistics
from mmtune.metrics._ngram_weights import ORDERS, SIGMA, Ngram, WeightedCaption, weigh_split

DIGITS = 9
"""Similarities are compared after rounding: the order of a sum cannot turn a tie into a difference."""


def caption_retrieval(predictions: Predictions, references: References) -> float:
    """Share of captions whose nearest reference of the whole split is one of their own.

    What: a share in [0, 1]. It asks what no other caption metric asks: whether the caption says what is particular of
        its image. The constant caption gets exactly chance, 1 / N, whatever it says.

    Formula: ``mean over samples of [own is nearest] / (number of samples that are as near)``; the nearness of a sample
        is the greatest CIDEr-D similarity (`cider_d`) of the caption to one of its references. CIDEr-D, because it
        weighs a word by how few samples have it: by plain overlap of words (`token_f1`) "a man on a street" is near
        to half of COCO. Ties count as they would on average if broken at random, as in retrieval.

    Shapes: predictions str[N], references list of str[R] with any R >= 1 for each -> float.

    Needs: the references of the whole split, against which every caption is held; the bootstrap keeps them all and
        draws captions. Samples that share a reference word for word tie. Time and memory: N lists of all references
        that share an n-gram with a caption, one caption at a time.

    Relatives: recall at 1 of retrieval by embeddings (`recall`), which reads the image; this one reads only what was
        said of it.

    Source: self-retrieval of captions, Dai and Lin 2017 (arXiv:1710.02534) and Liu et al. 2018 (arXiv:1803.08314),
        with CIDEr-D to the references in place of a learned embedding.

    Raises:
        ValueError: no sample, unequal numbers, or a sample without a reference.
    """
    return float(mean_of_sums(statistics(predictions, references).sum(axis=0)))


def statistics(predictions: Predictions, references: References) -> np.ndarray:
    """Each caption's share of a hit, and 1: float64[N, 2]."""
    weighed = list(weigh_split(predictions, references))
    gallery = _Gallery([texts for _, texts in weighed])
    return mean_statistics(_hit(gallery.nearness(caption), own) for own, (caption, _) in enumerate(weighed))


def _hit(nearness: np.ndarray, own: int) -> float:
    best = nearness.max()
    return float(nearness[own] == best) / np.count_nonzero(nearness == best)


class _Gallery:
    """All references of a split by the n-grams they have. M references."""

    def __init__(self, samples: Sequence[Sequence[WeightedCaption]]) -> None:
        texts = [text for own in samples for text in own]
        self.starts = np.cumsum([0] + [len(own) for own in samples[:-1]])
        self.norms = np.array([text.norms for text in texts]).T
        self.lengths = np.array([text.length for text in texts])
        found: dict[Ngram, list[tuple[int, float]]] = defaultdict(list)
        for number, text in enumerate(texts):
            for weights in text.weights:
                for ngram, weight in weights.items():
                    if weight:
                        found[ngram].append((number, weight))
        self.holders = {ngram: _columns(pairs) for ngram, pairs in found.items()}

    def nearness(self, caption: WeightedCaption) -> np.ndarray:
        """Greatest CIDEr-D similarity, 0 to 1, to a reference of each sample: float64[N]."""
        total = np.zeros(len(self.lengths))
        for n in range(len(ORDERS)):
            shared = np.zeros_like(total)
            for ngram, weight in caption.weights[n].items():
                if ngram in self.holders:
                    numbers, weights = self.holders[ngram]
                    shared[numbers] += np.minimum(weight, weights) * weights
            scale = caption.norms[n] * self.norms[n]
            total += shared / np.where(scale > 0, scale, 1.0)
        differences = caption.length - self.lengths
        total *= np.exp(-(differences**2) / (2 * SIGMA**2)) / len(ORDERS)
        nearest: np.ndarray = np.maximum.reduceat(np.round(total, DIGITS), self.starts)
        return nearest


def _columns(pairs: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    numbers, weights = zip(*pairs, strict=True)
    return np.array(numbers), np.array(weights)


METRIC = AnswerMetric(
    name="caption_retrieval",
    higher_is_better=True,
    function=caption_retrieval,
    statistics=statistics,
    combine=mean_of_sums,
)
