"""Base against tuned on one split: the numbers of ``scores.json``, the ranks behind them, and the table to read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.ground.records import MEDIA_WORDS
from mmtune.metrics import directions, retrieval_scores
from mmtune.metrics._bootstrap import NUM_RESAMPLES, difference_intervals
from mmtune.scored_split import SplitEmbeddings
from mmtune.scoring_loop import Scores

if TYPE_CHECKING:
    from rich.table import Table

INTERVAL_NOTE = "paired percentile bootstrap over groups joined by a shared {thing} or caption"


def check_same_queries(base: SplitEmbeddings, tuned: SplitEmbeddings) -> None:
    """See that both models answered the same questions.

    Raises:
        DataError: an image could be read for one of them and not for the other.
    """
    if (base.image_ids, base.texts) == (tuned.image_ids, tuned.texts):
        return
    odd = sorted({item.where for item in base.bad} ^ {item.where for item in tuned.bad})
    raise DataError(
        f"base and tuned saw different {MEDIA_WORDS[base.modality]}: {', '.join(odd[:5])} could be read once and not "
        "the other time; see that the files are not being changed, and evaluate again"
    )


def compare(split: SplitEmbeddings, base: Scores, tuned: Scores, *, seed: int) -> dict[str, Any]:
    """Scores of both, their difference and its 95 % interval (null where there is only one group to draw from)."""
    groups = dict(zip(directions(split.modality), (split.text_groups, split.image_groups), strict=True))
    intervals = difference_intervals(retrieval_scores(split.modality), base.ranks, tuned.ranks, groups, seed=seed)
    note = interval_note(split.modality)
    return {
        "base": base.values,
        "tuned": tuned.values,
        "delta": {name: tuned.values[name] - value for name, value in base.values.items()},
        "interval95": {name: None if found is None else list(found) for name, found in intervals.items()},
        "bootstrap": {"resamples": NUM_RESAMPLES, "groups": split.num_groups, "seed": seed, "method": note},
    }


def interval_note(modality: str) -> str:
    """How the intervals are made, in words."""
    return INTERVAL_NOTE.format(thing=MEDIA_WORDS[modality].removesuffix("s"))


def rank_rows(split: SplitEmbeddings, scores: Mapping[str, Scores]) -> Iterator[dict[str, Any]]:
    """One row per query: direction, the text or image asked for, its group, and its rank under each model."""
    asking: tuple[tuple[Sequence[str], np.ndarray], ...] = (
        (split.texts, split.text_groups),
        (split.image_ids, split.image_groups),
    )
    for direction, queries in zip(directions(split.modality), asking, strict=True):
        for n, (query, group) in enumerate(zip(*queries, strict=True)):
            ranks = {name: float(one.ranks[direction][n]) for name, one in scores.items()}
            yield {"direction": direction, "query": query, "group": int(group), **ranks}


def score_table(result: dict[str, Any]) -> "Table":
    """The result of an evaluation for a terminal: one line per score."""
    from rich.table import Table

    compared = "base" in result
    modality = result.get("modality", "image")
    words, names = MEDIA_WORDS[modality], retrieval_scores(modality)
    title = f"{result['split']} split: {result[words]:,} {words}, {result['texts']:,} texts"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("score", no_wrap=True)
    for column in ("base", "tuned", "change", "95 % interval") if compared else ("score of the model",):
        table.add_column(column, justify="right", no_wrap=True)
    for score in names:
        table.add_row(*_cells(result, score.name, score.record.higher_is_better, compared))
        if score == names[len(names) // 2 - 1]:
            table.add_section()
    if compared:
        table.caption = f"interval of the change: {interval_note(modality)}, {NUM_RESAMPLES:,} resamples"
    return table


def _cells(result: dict[str, Any], name: str, higher_is_better: bool, compared: bool) -> list[str]:
    if not compared:
        return [name, _number(name, result["scores"][name])]
    change, interval = result["delta"][name], result["interval95"][name]
    colour = "green" if (change > 0) == higher_is_better else "red"
    sure = interval is not None and (interval[0] > 0 or interval[1] < 0)
    shown = _number(name, change, signed=True)
    return [
        name,
        _number(name, result["base"][name]),
        _number(name, result["tuned"][name]),
        f"[{colour}]{shown}[/{colour}]" if sure else shown,
        "-" if interval is None else " .. ".join(_number(name, edge, signed=True) for edge in interval),
    ]


def _number(name: str, value: float, *, signed: bool = False) -> str:
    digits = ".1f" if name.endswith("median_rank") else ".3f"
    return format(value, ("+" if signed else "") + digits)
