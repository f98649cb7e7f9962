"""Floor 1, how good is it: one file per metric kind, the folder is the registry.

A metric is a module with a ``METRIC`` record and one pure function of the same name on numpy arrays. Retrieval metrics
work on *ranks* (`_ranking.py`), one per query, and are named by direction and key: ``text_to_image_recall@1``,
``audio_to_text_median_rank``. `_bootstrap.py` gives the interval of a difference, `_evaluate_metric.py` wraps a metric
as an ``evaluate.Metric`` on demand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import evaluate
    import numpy as np

MODALITIES = ("image", "audio")
"""What may be matched with text."""


def directions(modality: str) -> tuple[str, str]:
    """``("text_to_image", "image_to_text")`` for images: who asks for whom."""
    return f"text_to_{modality}", f"{modality}_to_text"


DIRECTIONS = directions("image")
"""The directions of images."""


@dataclass(frozen=True)
class MetricRecord:
    """What the rest of mmtune knows about a metric kind.

    Attributes:
        name: the kind, the file and the function.
        key: the word in score names: ``text_to_image_{key}``, with ``@{k}`` where the metric has cut-offs.
        higher_is_better: which way is good; ``best:`` in a recipe and the colours of a table follow it.
        inputs: names of the function's arguments, in order.
        function: the pure function itself.
        cutoffs: the values of ``k`` that are scored, empty for a metric without ``k``.
        per_query: for a metric that is a mean over queries, the values averaged: (ranks[Q], k or None) -> float64[Q].
        weighted: for any other metric, its value where query q counts w[b, q] times:
            (ranks[Q], weights int[B, Q]) -> float64[B]. Exactly one of ``per_query`` and ``weighted`` is set.
    """

    name: str
    key: str
    higher_is_better: bool
    inputs: tuple[str, ...]
    function: Callable[..., float]
    cutoffs: tuple[int, ...] = ()
    per_query: "Callable[[np.ndarray, int | None], np.ndarray] | None" = None
    weighted: "Callable[[np.ndarray, np.ndarray], np.ndarray] | None" = None


@dataclass(frozen=True)
class ScoreName:
    """One line of a score table, such as ``text_to_image_recall@5``."""

    name: str
    direction: str
    record: MetricRecord
    k: int | None

    def value(self, ranks: "np.ndarray") -> float:
        """The score of ranks float64[Q] of this direction's queries."""
        return self.record.function(ranks) if self.k is None else self.record.function(ranks, self.k)


def records() -> dict[str, MetricRecord]:
    """Every metric kind's record by its key, in the order of the score table."""
    from mmtune.ground.kind_folder import kinds

    found = [module.METRIC for module in kinds("metrics").values()]
    return {r.key: r for r in sorted(found, key=lambda r: (not r.cutoffs, r.key))}


def retrieval_scores(modality: str = "image") -> tuple[ScoreName, ...]:
    """Every score of a retrieval split, both directions: what ``scores.json`` has and ``train.best`` may name."""
    return tuple(
        ScoreName(f"{direction}_{record.key}" + ("" if k is None else f"@{k}"), direction, record, k)
        for direction in directions(modality)
        for record in records().values()
        for k in (record.cutoffs or (None,))
    )


def best_score(named: str | None, modality: str) -> str:
    """The score that chooses the best checkpoint: the one a recipe names, else recall@1 from text to the modality."""
    return named if named is not None else f"text_to_{modality}_recall@1"


def higher_is_better(name: str) -> bool:
    """Which way is good for a score such as ``text_to_image_recall@1``.

    Raises:
        RecipeError: no such score; the message names the nearest.
    """
    from mmtune.metrics._score_names import parse_score

    return parse_score(name).record.higher_is_better


def metric(name: str, **options: Any) -> "evaluate.Metric":
    """An ``evaluate.Metric`` that computes what the pure function of the same name computes.

    Args:
        name: ``text_to_image_recall`` (k is then an argument of ``compute``, 1 if left out),
            ``text_to_image_recall@5``, ``image_to_text_median_rank``, ``text_to_image_mrr`` ...
        options: passed to ``evaluate.Metric``, such as ``cache_dir`` or ``experiment_id``.

    Example::

        recall = mmtune.metric("text_to_image_recall")
        recall.compute(predictions=similarities, references=positives, k=5)   # {"text_to_image_recall": 0.71}

    ``predictions``: each query's similarity to every item, float[Q, N]; ``references``: for each query the indices
    of the items that are right.

    Raises:
        RecipeError: no such metric; the message names the nearest.
    """
    from mmtune.metrics._evaluate_metric import build

    return build(name, **options)
