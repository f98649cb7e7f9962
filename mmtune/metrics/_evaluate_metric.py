"""A metric as an ``evaluate.Metric``, built on demand and never fetched with ``evaluate.load``."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.metrics import AnswerScore, ScoreName
from mmtune.metrics._ranking import Positives, ranks_of_scores
from mmtune.metrics._score_names import parse_answer_score, parse_any_score

if TYPE_CHECKING:
    import datasets
    import evaluate

RETRIEVAL_INPUTS = """
predictions: for each query its similarity to every item, float[Q, N], higher is more similar.
references: for each query the indices of the items that are right, at least one.
k: cut-off, for metrics that have one; default: the one in the metric's name, else 1.
"""
ANSWER_INPUTS = """
predictions: one text per sample.
references: for each sample a list of texts, at least one; or one text for each.
k: cut-off, for metrics that have one; default: the one in the metric's name, else the metric's last.
"""


def build(name: str, **options: Any) -> "evaluate.Metric":
    """The ``evaluate.Metric`` called ``name``; see `mmtune.metrics.metric`.

    Raises:
        RecipeError: no such metric.
    """
    score = parse_any_score(name)
    import evaluate

    info = evaluate.MetricInfo(
        description=score.record.function.__doc__ or "",
        citation="",
        inputs_description=ANSWER_INPUTS if isinstance(score, AnswerScore) else RETRIEVAL_INPUTS,
        features=_answer_features() if isinstance(score, AnswerScore) else _retrieval_features(),
    )
    compute = _answer_computation(score) if isinstance(score, AnswerScore) else _retrieval_computation(score)

    class NamedMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return info

        def _compute(self, predictions: list[Any], references: list[Any], k: int | None = None) -> dict[str, float]:
            if k is not None and score.k is None:
                raise ValueError(f"{name} has no cut-off, but k={k} was given")
            return {name: compute(predictions, references, k)}

    NamedMetric.__name__ = name  # evaluate calls a metric by its class
    options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)
    return NamedMetric(**options)


def _retrieval_features() -> "datasets.Features":
    import datasets

    return datasets.Features(
        {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
    )


def _answer_features() -> "list[datasets.Features]":
    """Two forms, of which evaluate takes the one that fits: several references each, or one."""
    import datasets

    text = datasets.Value("string")
    return [
        datasets.Features({"predictions": text, "references": references})
        for references in (datasets.Sequence(text), text)
    ]


def _retrieval_computation(score: ScoreName) -> Callable[[list[Any], list[Any], int | None], float]:
    def compute(predictions: list[list[float]], references: list[list[int]], k: int | None) -> float:
        ranks = ranks_of_scores(np.asarray(predictions), Positives.from_lists(references))
        return (score if k is None else replace(score, k=k)).value(ranks)

    return compute


def _answer_computation(score: AnswerScore) -> Callable[[list[Any], list[Any], int | None], float]:
    def compute(predictions: list[str], references: list[str] | list[list[str]], k: int | None) -> float:
        chosen = score if k is None else parse_answer_score(f"{score.record.name}@{k}")
        return chosen.value(predictions, [[each] if isinstance(each, str) else each for each in references])

    return compute
