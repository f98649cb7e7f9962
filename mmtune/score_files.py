"""What an evaluation leaves behind: ``scores.json``, ``ranks.jsonl``, the manifest's copy, and the two pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.ground.safe_files import write_json, write_text
from mmtune.run_folder import update_manifest
from mmtune.run_report import draw_curves
from mmtune.score_comparison import rank_rows
from mmtune.scored_split import SplitEmbeddings
from mmtune.scoring_loop import Scores

MANIFEST_KEYS = ("split", "samples", "base", "tuned", "delta", "interval95")


def write_files(
    folder: Path,
    suffix: str,
    result: dict[str, Any],
    embeds: Mapping[str, SplitEmbeddings],
    scores: Mapping[str, Scores],
) -> list[Path]:
    """Write an evaluation's files and return their paths.

    Args:
        folder: where; a run folder gets ``curves.png`` and, for its main scores, a copy in ``manifest.json`` too.
        suffix: stands before the files' endings; "" for the scores of the chosen checkpoint on the test split.
        result: the contents of ``scores.json``.
        embeds: ``base`` and, where something was tuned, ``tuned``.
        scores: the same, scored.
    """
    from mmtune.retrieval_picture import draw_retrievals

    scores_file, ranks_file = folder / f"scores{suffix}.json", folder / f"ranks{suffix}.jsonl"
    rows = rank_rows(embeds["base"], scores)
    write_text(ranks_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    picture = draw_retrievals(folder / f"retrievals{suffix}.png", embeds, seed=result["seed"])
    write_json(scores_file, result)
    written = [scores_file, ranks_file, picture]
    if (folder / "manifest.json").is_file() and not suffix and "tuned" in result:
        update_manifest(folder, scores={key: result[key] for key in MANIFEST_KEYS})
        written.append(draw_curves(folder))
    return written
