"""A retrieval metric as an ``evaluate.Metric``, built on demand and never fetched with ``evaluate.load``."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.metrics._ranking import Positives, ranks_of_scores
from mmtune.metrics._score_names import parse_score

if TYPE_CHECKING:
    import evaluate

INPUTS = """
predictions: for each query its similarity to every item, float[Q, N], higher is more similar.
references: for each query the indices of the items that are right, at least one.
k: cut-off, for metrics that have one; default: the one in the metric's name, else 1.
"""


def build(name: str, **options: Any) -> "evaluate.Metric":
    """The ``evaluate.Metric`` called ``name``; see `mmtune.metrics.metric`.

    Raises:
        RecipeError: no such metric.
    """
    score = parse_score(name)
    import datasets
    import evaluate

    features = datasets.Features(
        {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
    )

    class RetrievalMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            description = score.record.function.__doc__ or ""
            return evaluate.MetricInfo(
                description=description, citation="", inputs_description=INPUTS, features=features
            )

        def _compute(
            self, predictions: list[list[float]], references: list[list[int]], k: int | None = None
        ) -> dict[str, float]:
            if k is not None and score.k is None:
                raise ValueError(f"{name} has no cut-off, but k={k} was given")
            ranks = ranks_of_scores(np.asarray(predictions), Positives.from_lists(references))
            if score.k is None:
                return {name: score.record.function(ranks)}
            return {name: score.record.function(ranks, score.k if k is None else k)}

    RetrievalMetric.__name__ = name  # evaluate calls a metric by its class
    options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)
    return RetrievalMetric(**options)
