"""What stands between a target and its scores: which files, which device, which precision, how much may be bad."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import CheckpointError, DataError
from mmtune.ground.records import BadItem
from mmtune.scored_split import SplitEmbeddings
from mmtune.scoring_loop import EncodedBatches, Progress, embed_split

if TYPE_CHECKING:
    from rich.progress import TaskID

    from mmtune.backbones import Backbone
    from mmtune.model_loading import Target
    from mmtune.recipe_schema import Recipe
    from mmtune.sources import OpenedSplit
    from mmtune.trunk_cache import TrunkCache


def name_checkpoint(target: "str | Path | Recipe", checkpoint: str | None) -> "str | Path | Recipe":
    """The checkpoint folder that is meant.

    Raises:
        CheckpointError: the run has no checkpoint of that name; the message lists those it has.
    """
    if checkpoint is None:
        return target
    from mmtune.model_loading import refuse_mistyped
    from mmtune.run_checkpoint import checkpoints

    run = Path(target if isinstance(target, str | Path) else target.output)
    if not run.is_dir():
        refuse_mistyped(str(run))
    folder = run / "checkpoints" / checkpoint
    if not folder.is_dir():
        there = ", ".join(path.name for path in checkpoints(run)) or "none"
        raise CheckpointError(f"{run} has no checkpoint {checkpoint!r}; it has {there}")
    return folder


def choose_folder(found: "Target", recipe: "Recipe | None", output: str | Path | None) -> Path | None:
    """Where the files go: a run's own scores are never replaced by scores on other data."""
    if output is not None:
        return Path(output)
    return found.run if recipe is None or recipe == found.recipe else None


def choose_suffix(found: "Target", split: str) -> str:
    """What tells other scores of a run from the scores of its chosen checkpoint on the test split."""
    named = f"_{found.folder.name}" if found.kind == "checkpoint" and found.folder else ""
    return ("" if split == "test" else f"_{split}") + named


def device() -> str:
    """Where models are scored: the GPU where there is one and the CPU was not asked for."""
    import torch

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    return "cuda" if torch.cuda.is_available() and not on_cpu else "cpu"


def choose_precision(recipe: "Recipe", where: str) -> str:
    """The forward pass's arithmetic: the recipe's, except that a CPU cannot do fp16 and gets fp32 (it is recorded)."""
    import torch

    wish = recipe.train.precision
    if wish == "auto":
        return "bf16" if where == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return "fp32" if wish == "fp16" and where == "cpu" else wish


def embed_opened(
    backbone: "Backbone",
    opened: "OpenedSplit",
    recipe: "Recipe",
    split: str,
    keep: EncodedBatches,
    progress: Progress | None = None,
) -> SplitEmbeddings:
    """The split as this model sees it; ``keep`` saves the next model the decoding.

    Raises:
        DataError: with the images that failed to decode, too much of the split is bad.
    """
    from mmtune.train_data import EVALUATION_BATCH

    where = device()
    embedded = embed_split(
        backbone,
        opened.samples,
        device=where,
        batch=EVALUATION_BATCH,
        workers=recipe.train.workers,
        precision=choose_precision(recipe, where),
        split=split,
        keep=keep,
        progress=progress,
    )
    enforce_limit(opened, embedded.bad, recipe, split)
    return embedded


@contextmanager
def feed_exam(backbone: "Backbone", found: "Target", recipe: "Recipe") -> "Iterator[TrunkCache]":
    """In this block a run's base and its tuned model are fed what their common trunk made of inputs before.

    Args:
        backbone: freshly loaded, nothing attached.
        found: whose manifest says where the trunks end; a model that is no run has none.
        recipe: says whether and where states are kept.
    """
    from mmtune.ground.kind_folder import kind
    from mmtune.ground.safe_files import read_json
    from mmtune.tasks import ability_for
    from mmtune.trunk_setup import ask_for_trunk, feed_scoring

    manifest = found.run / "manifest.json" if found.run is not None else None
    same_task = found.recipe is not None and found.recipe.task.kind == recipe.task.kind
    record = {}
    if manifest is not None and manifest.is_file() and same_task:
        record = read_json(manifest).get("trunk", {})
    where, ability = device(), ability_for(kind("tasks", recipe.task), backbone.traits) or ""
    asked = ask_for_trunk(recipe, ability, choose_precision(recipe, where), where, print_line)
    trunk = feed_scoring(backbone, asked, record)
    try:
        for line in trunk.lines:
            print_line(line)
        yield trunk
        for line in trunk.savings(0):
            print_line(line)
    finally:
        trunk.close()


def print_line(line: str) -> None:
    """What is said of the cache while scoring goes to standard error."""
    print(line, file=sys.stderr, flush=True)


def enforce_limit(opened: "OpenedSplit", failed: "Sequence[BadItem]", recipe: "Recipe", split: str) -> None:
    """Stop where too much of a split is bad, what failed just now included.

    Raises:
        DataError: more than ``max_bad_fraction`` of it.
    """
    bad, limit = (*opened.bad, *failed), recipe.data.max_bad_fraction
    if len(bad) > limit * opened.num_seen:
        shown = "".join(f"\n  {item.where}: {item.reason}" for item in bad[:10])
        raise DataError(
            f"data: {len(bad)} of {opened.num_seen} items of split {split!r} are bad, more than "
            f"max_bad_fraction={limit:g} allows:{shown}"
        )


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar per pass over the split on a terminal, silent elsewhere."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(kind: str, done: int, total: int) -> None:
            if kind not in tasks:
                tasks[kind] = bars.add_task(kind, total=total)
            bars.update(tasks[kind], completed=done)

        yield report


def describe(
    found: "Target",
    backbone: "Backbone",
    opened: "OpenedSplit",
    embedded: SplitEmbeddings,
    recipe: "Recipe",
    split: str,
) -> dict[str, Any]:
    """What a reader needs to know about how the scores came about."""
    from mmtune.ground.records import MEDIA_WORDS

    shown = {image.key for image in embedded.images}
    bad = (*opened.bad, *embedded.bad)
    return {
        "split": split,
        "samples": sum(sample.media.key in shown for sample in opened.samples),
        "modality": embedded.modality,
        MEDIA_WORDS[embedded.modality]: len(embedded.images),
        "texts": len(embedded.texts),
        "bad": len(bad),
        "quarantined": [asdict(item) for item in bad],
        "checkpoint": found.folder.name if found.run and found.folder else None,
        "backbone": backbone.record(),
        "data": recipe.data.model_dump(mode="json"),
        "precision": choose_precision(recipe, device()),
        "seed": recipe.seed,
    }
