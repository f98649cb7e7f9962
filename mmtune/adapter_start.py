"""``adapter.start_from``: a run that begins with the values of an earlier adapter, and says so in its manifest.

Only the values are taken: the optimizer, the schedule, data positions and counts start fresh. What the base is, for
scores and for ``merge --scale``, stays the untouched backbone. The earlier folder is read once, before step 0; a run
that goes on from its own checkpoint does not need it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.adapters._lora_start import starts_in_weights
from mmtune.ground.errors import CheckpointError, RecipeError
from mmtune.ground.file_patterns import missing_folder
from mmtune.run_checkpoint import checkpoints

if TYPE_CHECKING:
    from mmtune.adapters import Adapted
    from mmtune.model_loading import Target
    from mmtune.recipe_schema import Recipe


def refuse_missing_start(recipe: "Recipe", *, restart: bool = False) -> None:
    """See that ``adapter.start_from`` is there at all, before anything slow is imported.

    A run that goes on from its own checkpoint does not need it.

    Args:
        recipe: what is about to run.
        restart: an old run is moved aside, so that none is gone on with.

    Raises:
        RecipeError: there is no such folder, or it is not one to start from.
    """
    name = recipe.adapter.start_from
    if name is not None and (restart or not checkpoints(Path(recipe.output))):
        _refuse_own_run(Path(name).expanduser(), Path(recipe.output))
        _refuse_missing(name)


def start_adapter(adapted: "Adapted", recipe: "Recipe") -> list[str]:
    """Load what ``adapter.start_from`` names into a freshly attached adapter; nothing happens where it names nothing.

    ``adapted.started_from`` is then what a manifest keeps of it.

    Returns:
        Lines for the log.

    Raises:
        RecipeError: the folder would be moved aside or written by this very run.
        CheckpointError: it is no adapter, or not one of this backbone and recipe; the message lists what differs.
    """
    from mmtune.adapters import load_earlier
    from mmtune.model_loading import resolve

    name = recipe.adapter.start_from
    if name is None:
        return []
    folder = Path(name).expanduser()
    _refuse_own_run(folder, Path(recipe.output))
    _refuse_missing(name)
    try:
        found = resolve(folder)
    except CheckpointError as error:
        raise CheckpointError(f"adapter.start_from: {error}") from error
    if found.folder is None:
        raise CheckpointError(f"adapter.start_from: {folder} is a whole model; name it as backbone.id to begin there")
    notes = _check_backbone(adapted, found, folder)
    _check_kind(recipe, found, folder)
    try:
        notes += load_earlier(adapted, found.folder, from_peft=found.kind == "adapter")
    except CheckpointError as error:
        why = _other_start(recipe, found) or ":\n  " + "\n  ".join(str(error).splitlines())
        raise CheckpointError(f"adapter.start_from: {folder} does not fit this recipe's adapter{why}") from error
    adapted.started_from = _record(adapted, found, name)
    return [f"starting from {found.folder}", *(f"start_from: {note}" for note in notes)]


def _refuse_own_run(folder: Path, output: Path) -> None:
    if folder.resolve().is_relative_to(output.resolve()):
        raise RecipeError(
            f"adapter.start_from: {folder} is in this run's own folder: name another output, or go on with the run by "
            "starting it again"
        )


def _refuse_missing(name: str) -> None:
    """See that a name is a folder, and not the one that a run's checkpoints lie in.

    Raises:
        RecipeError: it is not; the message names what may have been meant.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise RecipeError(
            f"adapter.start_from: {folder} is a file; name a run, or the folder of a checkpoint or adapter"
        )
    if not folder.is_dir():
        raise RecipeError(f"adapter.start_from: {missing_folder(name) or f'there is no folder {name}'}")
    if folder.name == "checkpoints" and (inside := checkpoints(folder.parent)):
        raise RecipeError(
            f"adapter.start_from: {folder} holds checkpoints and is none: name one, such as {inside[-1]}, or the run "
            f"{folder.parent}"
        )


def _other_start(recipe: "Recipe", found: "Target") -> str:
    """The one reason why nothing fits where the earlier run's start was of another sort; empty where it was not."""
    if found.recipe is None:
        return ""
    was, now = (getattr(each.adapter, "init", "default") for each in (found.recipe, recipe))
    ranks = [getattr(each.adapter, "rank", None) for each in (found.recipe, recipe)]
    rank = f", and adapter.rank: {ranks[0]}" if ranks[0] != ranks[1] else ""
    wrong = starts_in_weights(was) and not starts_in_weights(now)
    return f": that run had init: {was}: write adapter.init: {was}{rank}" if wrong else ""


def _check_backbone(adapted: "Adapted", found: "Target", folder: Path) -> list[str]:
    """See that the earlier adapter was trained on these weights; of a peft folder only the name is known.

    Raises:
        CheckpointError: other weights, or none noted.
    """
    backbone = adapted.backbone
    if found.kind == "adapter":
        same = found.backbone.name == backbone.section.name
        made = f"made for {found.backbone.name}, whose weights it does not note"
        return [] if same else [f"{made}; names and shapes fit {backbone.section.name}"]
    if found.weight_hash != backbone.weight_hash:
        noted = f"sha256 {found.weight_hash[:12]}" if found.weight_hash else "its manifest.json notes no hash"
        raise CheckpointError(
            f"adapter.start_from: {folder} was trained on {found.backbone.name} ({noted}), and the weights of this "
            f"recipe's {backbone.section.name} are others (sha256 {backbone.weight_hash[:12]}); an adapter fits no "
            "others"
        )
    if found.backbone.quantize != backbone.section.quantize:
        was, now = found.backbone.quantize or "full precision", backbone.section.quantize or "full precision"
        return [f"trained beside weights in {was}, goes on beside {now}"]
    return []


def _check_kind(recipe: "Recipe", found: "Target", folder: Path) -> None:
    """See that the earlier run trained what this one will train; a peft folder is judged by its config.

    Raises:
        CheckpointError: another kind, or a plain LoRA half of which would be fixed here.
    """
    if found.recipe is None:
        return
    if found.recipe.adapter.kind != recipe.adapter.kind:
        raise CheckpointError(
            f"adapter.start_from: {folder} was trained with adapter.kind {found.recipe.adapter.kind}, this recipe says "
            f"{recipe.adapter.kind}; to train another adapter on top, merge the first and name it as backbone.id"
        )
    was, now = (getattr(each.adapter, "init", "default") for each in (found.recipe, recipe))
    if starts_in_weights(now) and not starts_in_weights(was):
        raise CheckpointError(
            f"adapter.start_from: {folder} does not fit this recipe's adapter: it is a plain LoRA (init: {was}), and "
            f"init: {now} would fix half of its ranks as a start; write init: default, and the rank that it has"
        )


def _record(adapted: "Adapted", found: "Target", name: str) -> dict[str, Any]:
    """What a manifest keeps: the name as written, what it stood for, and the hashes of what was read."""
    from mmtune.adapters import stored_files
    from mmtune.ground.safe_files import file_hash

    assert found.folder is not None
    paths = [Path(path).name if found.kind == "adapter" else path for path in stored_files(adapted)]
    return {
        "name": name,
        "kind": found.kind,
        "checkpoint": found.folder.name if found.run else None,
        "weight_hash": found.weight_hash,
        "sha256": {path: file_hash(found.folder / path) for path in paths if (found.folder / path).is_file()},
    }
