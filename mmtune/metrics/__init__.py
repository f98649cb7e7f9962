"""Floor 1, how good is it: one file per metric kind, the folder is the registry.

A metric is a module with a ``METRIC`` record and one pure function of the same name. Retrieval metrics (`MetricRecord`)
work on *ranks* (`_ranking.py`), one per query, and are named by direction and key: ``text_to_image_recall@1``,
``audio_to_text_median_rank``. Answer metrics (`AnswerMetric`) compare what a model said with what it should have said,
and are named as they are: ``cider_d``, ``coco_bleu@4``. `_bootstrap.py` gives the interval of a difference,
`_evaluate_metric.py` wraps a metric as an ``evaluate.Metric`` on demand.
"""

from collections.abc import Callable, Sequence
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


Predictions = Sequence[str]
"""What the model said, one text per sample."""
References = Sequence[Sequence[str]]
"""What it should have said, one or more texts per sample."""


@dataclass(frozen=True)
class AnswerMetric:
    """What the rest of mmtune knows about a metric of generated or chosen answers.

    All three functions take ``k`` as a further argument where the metric has cut-offs. N samples, S sums.

    Attributes:
        name: the file, the function and the score's name, with ``@{k}`` where the metric has cut-offs.
        higher_is_better: which way is good.
        function: the pure function: (predictions, references) -> float.
        statistics: what each sample adds to the score: (predictions, references) -> float64[N, S]. What is counted
            over the whole split (document frequencies, the most frequent label) is counted here, so that the
            bootstrap keeps it as it is.
        combine: the score of summed statistics: float64[..., S] -> float64[...];
            ``combine(statistics(p, r).sum(0)) == function(p, r)``.
        cutoffs: the values of ``k`` that are scored, empty for a metric without ``k``.
        top: the end of its scale, for pictures: 1 for shares, 10 for CIDEr, 100 for percentages.
    """

    name: str
    higher_is_better: bool
    function: Callable[..., float]
    statistics: "Callable[..., np.ndarray]"
    combine: "Callable[..., np.ndarray]"
    cutoffs: tuple[int, ...] = ()
    top: float = 1.0


@dataclass(frozen=True)
class AnswerScore:
    """One line of a score table of answers, such as ``coco_bleu@4``."""

    name: str
    record: AnswerMetric
    k: int | None

    @property
    def higher_is_better(self) -> bool:
        """Which way is good."""
        return self.record.higher_is_better

    def value(self, predictions: Predictions, references: References) -> float:
        """The score of a whole split."""
        return self.record.function(predictions, references, *self._k())

    def statistics(self, predictions: Predictions, references: References) -> "np.ndarray":
        """What each sample adds, float64[N, S]."""
        return self.record.statistics(predictions, references, *self._k())

    def combine(self, sums: "np.ndarray") -> "np.ndarray":
        """The score of sums of statistics: float64[..., S] -> float64[...]."""
        return self.record.combine(sums, *self._k())

    def per_sample(self, predictions: Predictions, references: References) -> "np.ndarray":
        """Each sample's own score, float64[N]; for a metric of a whole corpus, that of a corpus of this one sample."""
        return self.combine(self.statistics(predictions, references))

    def _k(self) -> tuple[int, ...]:
        return () if self.k is None else (self.k,)


def records() -> dict[str, MetricRecord]:
    """Every retrieval metric's record by its key, in the order of the score table."""
    from mmtune.ground.kind_folder import kinds

    found = [module.METRIC for module in kinds("metrics").values() if isinstance(module.METRIC, MetricRecord)]
    return {r.key: r for r in sorted(found, key=lambda r: (not r.cutoffs, r.key))}


def answer_metrics() -> dict[str, AnswerMetric]:
    """Every answer metric's record by its name, in the order of the names."""
    from mmtune.ground.kind_folder import kinds

    return {name: m.METRIC for name, m in kinds("metrics").items() if isinstance(m.METRIC, AnswerMetric)}


def answer_score_names() -> tuple[str, ...]:
    """Every score of answers there is: ``cider_d``, ``coco_bleu@1`` ... What a task scores is the task's to say."""
    return tuple(
        name if k is None else f"{name}@{k}"
        for name, record in answer_metrics().items()
        for k in (record.cutoffs or (None,))
    )


def answer_score(name: str) -> AnswerScore:
    """``coco_bleu@2`` -> its record and k; without ``@`` a metric with cut-offs means its last, as ``coco_bleu`` is @4.

    Raises:
        RecipeError: no such score; the message names the nearest.
    """
    from mmtune.metrics._score_names import parse_answer_score

    return parse_answer_score(name)


def retrieval_scores(modality: str = "image") -> tuple[ScoreName, ...]:
    """Every score of a retrieval split, both directions: what ``scores.json`` has and ``train.best`` may name."""
    return tuple(
        ScoreName(f"{direction}_{record.key}" + ("" if k is None else f"@{k}"), direction, record, k)
        for direction in directions(modality)
        for record in records().values()
        for k in (record.cutoffs or (None,))
    )


def higher_is_better(name: str) -> bool:
    """Which way is good for a score such as ``text_to_image_recall@1`` or ``wer``.

    Raises:
        RecipeError: no such score; the message names the nearest.
    """
    from mmtune.metrics._score_names import parse_any_score

    return parse_any_score(name).record.higher_is_better


def top_of(name: str) -> float:
    """The end of a score's scale; 1 for every retrieval score that is a share."""
    from mmtune.metrics._score_names import parse_any_score

    return float(getattr(parse_any_score(name).record, "top", 1.0))


def metric(name: str, **options: Any) -> "evaluate.Metric":
    """An ``evaluate.Metric`` that computes what the pure function of the same name computes.

    Args:
        name: ``text_to_image_recall`` (k is then an argument of ``compute``, 1 if left out),
            ``text_to_image_recall@5``, ``image_to_text_median_rank``, ``text_to_image_mrr`` ...
            ``cider_d``, ``coco_bleu`` (k is an argument of ``compute``, 4 if left out), ``coco_bleu@1``,
            ``vqa_accuracy``, ``exact_match`` ...
        options: passed to ``evaluate.Metric``, such as ``cache_dir`` or ``experiment_id``.

    Example::

        recall = mmtune.metric("text_to_image_recall")
        recall.compute(predictions=similarities, references=positives, k=5)   # {"text_to_image_recall": 0.71}
        cider = mmtune.metric("cider_d")
        cider.compute(predictions=["a cat on a mat"], references=[["a cat sits on a mat", "the cat"]])

    Retrieval: ``predictions`` is each query's similarity to every item, float[Q, N], ``references`` for each query
    the indices of the items that are right. Answers: ``predictions`` is one text per sample, ``references`` a list of
    texts for each, or one text for each.

    Raises:
        RecipeError: no such metric; the message names the nearest.
    """
    from mmtune.metrics._evaluate_metric import build

    return build(name, **options)
