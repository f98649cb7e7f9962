"""What answer metrics share: the check of their input, and the sums of a metric that is a mean over samples.

Letters: N samples, S sums.
"""

from collections.abc import Callable, Iterable

import numpy as np

from mmtune.metrics import Predictions, References


def check_answers(predictions: Predictions, references: References) -> None:
    """Every metric's input: at least one sample, a list of one or more references for each.

    Raises:
        ValueError: anything else; the message names the first sample that is wrong.
    """
    if isinstance(predictions, str) or len(predictions) == 0:
        raise ValueError("predictions must be a sequence of at least one text")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but references of {len(references)}")
    for number, texts in enumerate(references):
        if isinstance(texts, str):
            raise ValueError(f"references[{number}] is one text: give a list of texts, [{texts!r}]")
        if len(texts) == 0:
            raise ValueError(f"references[{number}] is empty: a sample without a reference has no score")


def mean_statistics(scores: "Iterable[float] | np.ndarray") -> np.ndarray:
    """The sums of a mean: each sample's score, and 1 -> float64[N, 2]."""
    column = np.array(list(scores), dtype=np.float64)
    return np.stack([column, np.ones_like(column)], axis=1)


def mean_of_sums(sums: np.ndarray) -> np.ndarray:
    """What `mean_statistics` sum up to: float64[..., 2] -> float64[...]."""
    return ratio_of_sums(sums)


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    """First sum by second: float64[..., 2] -> float64[...]; the first itself where the second is 0."""
    above, below = sums[..., 0], sums[..., 1]
    return above / np.where(below == 0, 1.0, below)


def best_of(compare: Callable[[str, str], float], prediction: str, texts: Iterable[str]) -> float:
    """The greatest ``compare(prediction, text)`` over the references of a sample."""
    return max(compare(prediction, text) for text in texts)
