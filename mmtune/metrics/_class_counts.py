"""How often each class was right, missed and wrongly said: what metrics over classes are made of."""

from collections.abc import Sequence

import numpy as np

from mmtune.metrics import Predictions, References


def true_labels(predictions: Predictions, references: References) -> list[str]:
    """The label that counts for each sample: the predicted one where it is among the right ones, else the first."""
    return [said if said in right else right[0] for said, right in zip(predictions, references, strict=True)]


def one_hot(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """float64[N, C], 1 where the label is the class."""
    return np.array([[float(label == name) for name in classes] for label in labels]).reshape(len(labels), -1)


def mean_where(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean of float64[..., C] over the classes that are there, bool[..., C]; nan where none is."""
    count = there.sum(axis=-1)
    total = np.where(there, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, 0 where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0))
