"""Captions as weighted n-grams, for the CIDEr family.

Letters: n = 1..4 words per n-gram, N samples, idf the inverse document frequency; a document is one sample's references
together.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmtune.metrics import Predictions, References
from mmtune.metrics._answer_sums import check_answers
from mmtune.metrics._ptb_tokens import ptb_tokens

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
"""Width, in words, of CIDEr-D's length penalty."""

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class WeightedCaption:
    """A caption's n-grams.

    Attributes:
        weights: per order, count times idf of every n-gram.
        norms: per order, the Euclidean length of the weights.
        length: number of bigrams, which is what the official scorers take for the length in words.
    """

    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    length: int


def count_ngrams(words: Sequence[str], orders: Sequence[int] = ORDERS) -> "Counter[Ngram]":
    """How often each n-gram of these orders occurs."""
    return Counter(tuple(words[i : i + n]) for n in orders for i in range(len(words) - n + 1))


class NgramWeights:
    """The idf of a split, counted over its references, and captions weighted by it."""

    def __init__(self, references: Sequence[Sequence["Counter[Ngram]"]]) -> None:
        frequencies = Counter(ngram for texts in references for ngram in set().union(*texts))
        self.highest = math.log(len(references))
        self.idf = {ngram: self.highest - math.log(times) for ngram, times in frequencies.items()}

    def weigh(self, counts: "Counter[Ngram]") -> WeightedCaption:
        """A caption from its n-gram counts; an n-gram of no reference has the idf of one that occurs once."""
        weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in ORDERS)
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * self.idf.get(ngram, self.highest)
        norms = tuple(math.sqrt(sum(w * w for w in of.values())) for of in weights)
        return WeightedCaption(weights, norms, sum(n for ngram, n in counts.items() if len(ngram) == 2))


def weigh_split(
    predictions: Predictions, references: References
) -> Iterator[tuple[WeightedCaption, list[WeightedCaption]]]:
    """Each sample's prediction and references, weighted by the idf of all the references.

    Raises:
        ValueError: see `check_answers`.
    """
    check_answers(predictions, references)
    counted = [[count_ngrams(ptb_tokens(text)) for text in texts] for texts in references]
    idf = NgramWeights(counted)
    for prediction, texts in zip(predictions, counted, strict=True):
        yield idf.weigh(count_ngrams(ptb_tokens(prediction))), [idf.weigh(counts) for counts in texts]


def length_penalty(difference: float) -> float:
    """CIDEr-D's factor for captions whose lengths differ by so many words."""
    return math.exp(-(difference**2) / (2 * SIGMA**2))
