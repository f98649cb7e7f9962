"""Reading a score's name: direction, metric, cut-off."""

import difflib
import re

from mmtune.ground.errors import RecipeError
from mmtune.metrics import (
    MODALITIES,
    AnswerScore,
    ScoreName,
    answer_metrics,
    answer_score_names,
    directions,
    records,
    retrieval_scores,
)


def parse_answer_score(name: str) -> AnswerScore:
    """``coco_bleu@2`` -> its record and k, which must be one of the metric's cut-offs; none means the last of them.

    Raises:
        RecipeError: no such score; the message names the nearest.
    """
    found = _answer(name)
    if found is None:
        raise RecipeError(_unknown(name, _near_answer()))
    return found


def parse_any_score(name: str) -> ScoreName | AnswerScore:
    """A score of either sort.

    Raises:
        RecipeError: no such score; the message names the nearest, and the scores of the sort that the name looks like.
    """
    found = _answer(name) or _retrieval(name)
    if found is None:
        near = _near_retrieval(name) if "_to_" in name else _near_answer()
        raise RecipeError(_unknown(name, near))
    return found


def _retrieval(name: str) -> ScoreName | None:
    known = "|".join(direction for modality in MODALITIES for direction in directions(modality))
    match = re.fullmatch(rf"({known})_([a-z_]+?)(?:@([1-9][0-9]*))?", name)
    record = records().get(match[2]) if match else None
    if match is None or record is None or (match[3] and not record.cutoffs):
        return None
    k = int(match[3] or 1) if record.cutoffs else None
    return ScoreName(name, match[1], record, k)


def _answer(name: str) -> AnswerScore | None:
    kind, at, cutoff = name.partition("@")
    record = answer_metrics().get(kind)
    if record is None or (at and cutoff not in map(str, record.cutoffs)):
        return None
    if not record.cutoffs:
        return AnswerScore(name, record, None)
    return AnswerScore(name, record, int(cutoff) if at else record.cutoffs[-1])


def _near_retrieval(name: str) -> tuple[list[str], list[str]]:
    """The scores to list, and the names without cut-off that may also have been meant."""
    modality = "audio" if "audio" in name else "image"
    known = [score.name for score in retrieval_scores(modality)]
    return known, [f"{direction}_{key}" for direction in directions(modality) for key in records()]


def _near_answer() -> tuple[list[str], list[str]]:
    return list(answer_score_names()), [name for name, record in answer_metrics().items() if record.cutoffs]


def _unknown(name: str, near: tuple[list[str], list[str]]) -> str:
    known, kinds = near
    cut = re.fullmatch(r"bleu[@_-]?([1-4])", name.lower())
    nearest = [f"coco_bleu@{cut[1]}"] if cut else difflib.get_close_matches(name.lower(), [*known, *kinds], 1, 0.6)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"{name!r} is not a score.{hint} There are: {', '.join(known)}."
