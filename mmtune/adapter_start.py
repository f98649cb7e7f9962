"""``adapter.start_from``: a run that begins with the values of an earlier adapter, and says so in its manifest.

Only the values are taken: the optimizer, the schedule, data positions and counts start fresh. What the base is, for
scores and for ``merge --scale``, stays the untouched backbone. The earlier folder is read once, before step 0; a run
that goes on from its own checkpoint does not need it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from mmtune.adapters import Adapted
    from mmtune.model_loading import Target
    from mmtune.recipe_schema import Recipe


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
    if not folder.is_dir():
        raise CheckpointError(f"adapter.start_from: there is no folder {folder}")
    found = resolve(folder)
    if found.folder is None:
        raise CheckpointError(f"adapter.start_from: {folder} is a whole model; name it as backbone.id to begin there")
    notes = _check_backbone(adapted, found, folder)
    _check_kind(recipe, found, folder)
    try:
        notes += load_earlier(adapted, found.folder, from_peft=found.kind == "adapter")
    except CheckpointError as error:
        lines = "\n  ".join(str(error).splitlines())
        raise CheckpointError(f"adapter.start_from: {folder} does not fit this recipe's adapter:\n  {lines}") from error
    adapted.started_from = _record(adapted, found, name)
    return [f"starting from {found.folder}", *(f"start_from: {note}" for note in notes)]


def _refuse_own_run(folder: Path, output: Path) -> None:
    if folder.resolve().is_relative_to(output.resolve()):
        raise RecipeError(
            f"adapter.start_from: {folder} is in this run's own folder: name another output, or go on with the run by "
            "starting it again"
        )


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
    if found.recipe is not None and found.recipe.adapter.kind != recipe.adapter.kind:
        raise CheckpointError(
            f"adapter.start_from: {folder} was trained with adapter.kind {found.recipe.adapter.kind}, this recipe says "
            f"{recipe.adapter.kind}; to train another adapter on top, merge the first and name it as backbone.id"
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
