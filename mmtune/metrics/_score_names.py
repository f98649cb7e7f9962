"""Reading a score's name: direction, metric, cut-off."""

import difflib
import re

from mmtune.ground.errors import RecipeError
from mmtune.metrics import MODALITIES, ScoreName, directions, records, retrieval_scores


def parse_score(name: str) -> ScoreName:
    """``text_to_image_recall@5`` -> its record and k; any whole k >= 1 is allowed, none means k = 1.

    Raises:
        RecipeError: no such score; the message names the nearest.
    """
    known = "|".join(direction for modality in MODALITIES for direction in directions(modality))
    match = re.fullmatch(rf"({known})_([a-z_]+?)(?:@([1-9][0-9]*))?", name)
    record = records().get(match[2]) if match else None
    if match is None or record is None or (match[3] and not record.cutoffs):
        raise RecipeError(_unknown(name))
    k = int(match[3] or 1) if record.cutoffs else None
    return ScoreName(name, match[1], record, k)


def _unknown(name: str) -> str:
    modality = "audio" if "audio" in name else "image"
    known = [score.name for score in retrieval_scores(modality)]
    families = [f"{direction}_{key}" for direction in directions(modality) for key in records()]
    near = difflib.get_close_matches(name, [*known, *families], n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is not a score.{hint} There are: {', '.join(known)}."
