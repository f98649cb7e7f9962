"""The story of ``evaluate``: a model in, its scores beside those of its untouched backbone out."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from mmtune.recipe_schema import Recipe


def evaluate(
    target: "str | Path | Recipe",
    *,
    recipe: "Recipe | None" = None,
    split: str = "test",
    checkpoint: str | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Score a model, print a table and say which files were written; arguments and result as `score`."""
    from rich.console import Console

    from mmtune.answer_exam import answer_table
    from mmtune.score_comparison import score_table

    result = score(target, recipe=recipe, split=split, checkpoint=checkpoint, output=output)
    console = Console()
    console.print(score_table(result) if "texts" in result else answer_table(result))
    for name in result["files"]:
        console.print(f"wrote {name}", highlight=False, soft_wrap=True)
    return result


def score(
    target: "str | Path | Recipe",
    *,
    recipe: "Recipe | None" = None,
    split: str = "test",
    checkpoint: str | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Score a model on one split of the data, a tuned one beside its base.

    *Base* is the backbone freshly loaded, before anything is attached to it; both are scored by the same code on the
    same images and texts, or answer the same questions. A run's checkpoint is chosen by its validation score, and
    nothing of the test split has a say in it.

    Args:
        target: run folder, checkpoint folder, folder of a peft adapter, model folder, hub id, ``builtin:NAME``, or a
            recipe (its run).
        recipe: where the data comes from; default: the run's own recipe.
        split: which split.
        checkpoint: a checkpoint of the run, such as ``step-000120``; default: the best by validation, else the last.
        output: folder for the files; default: the run's, unless ``recipe`` brings other data; else nothing is written.

    Returns:
        What ``scores.json`` holds: ``split``, ``samples``, ``base``, ``tuned``, ``delta``, ``interval95`` and how they
        came about; for a model without a base of its own ``scores`` instead of these four. ``files`` lists what was
        written: ``scores.json``, ``curves.png``, and for retrieval ``ranks.jsonl`` (one line per query) and
        ``retrievals.png``, for other tasks ``answers.jsonl`` (one line per sample) and ``answers.png``; their names
        carry the split where it is not ``test`` and the checkpoint where one was named.

    Raises:
        RecipeError: no recipe says where the data is.
        DataError: the split is missing, empty, or too much of it is bad.
        CheckpointError, BackboneError: the model cannot be used; the message says why.
    """
    from mmtune.evaluation_setup import choose_folder, choose_suffix, device, feed_exam, name_checkpoint, show_progress
    from mmtune.model_loading import attach_target, load_base, resolve
    from mmtune.train_data import open_checked

    started = time.perf_counter()
    found = resolve(name_checkpoint(target, checkpoint))
    chosen = recipe or found.recipe
    if chosen is None:
        known = Path(str(target)).expanduser().is_dir() or str(target).startswith("builtin:")
        what = f"{target}" if known else f"there is no folder {target} here, and a model of the hub"
        raise RecipeError(f"{what} does not say where its data is: give a recipe (--recipe recipes/x.yaml)")
    exam = open_exam(chosen, open_checked(chosen, split), split)
    backbone = load_base(found, device=device())
    with feed_exam(backbone, found, chosen) as trunk:
        with show_progress() as progress:
            taken = {"base": exam.take(backbone, progress)}
        if found.folder is not None:
            trunk.drop_touched(attach_target(backbone, found))
            with show_progress() as progress:
                taken["tuned"] = exam.take(backbone, progress)
    result = exam.describe(found, backbone, taken["base"])
    result["target"] = target if isinstance(target, str) else str(found.run or target)
    if found.folder is None:
        result["scores"] = exam.values(taken["base"])
    else:
        result |= exam.compare(taken["base"], taken["tuned"])
    result["seconds"] = round(time.perf_counter() - started, 1)
    folder = choose_folder(found, recipe, output)
    files = [] if folder is None else exam.write_files(folder, choose_suffix(found, split), result, taken)
    return {**result, "files": [str(path) for path in files]}


def open_exam(recipe: "Recipe", opened: Any, split: str) -> Any:
    """What a split asks of a model, by the recipe's task: an ``AnswerExam`` or a ``RetrievalExam``."""
    from mmtune.answer_exam import AnswerExam
    from mmtune.retrieval_exam import RetrievalExam

    return (RetrievalExam if recipe.task.kind == "retrieval" else AnswerExam)(recipe, opened, split)
