"""From whatever names a model to the model: a run, a checkpoint, a peft adapter, a model folder, a hub id, builtin:."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmtune.ground.errors import CheckpointError
from mmtune.ground.file_patterns import missing_folder
from mmtune.ground.safe_files import read_json

if TYPE_CHECKING:
    from mmtune.adapters import Adapted
    from mmtune.backbones import Backbone
    from mmtune.backbones import Section as BackboneSection
    from mmtune.recipe_schema import Recipe

RECIPE_FILE = "recipe.resolved.json"
MODEL_FILES = (RECIPE_FILE, "adapter_config.json", "config.json")
"""What tells a folder that a model can be loaded from."""


@dataclass(frozen=True)
class Target:
    """What a name stands for.

    Attributes:
        kind: ``run``, ``checkpoint``, ``adapter`` (a folder that peft wrote) or ``model`` (nothing to attach).
        backbone: the backbone it stands on, at the commit that was trained on.
        folder: the checkpoint or adapter folder; None for a model.
        run: the run folder it belongs to, if any.
        recipe: the run's recipe, if any.
        weight_hash: what the run noted of the backbone's weights, if any.
    """

    kind: Literal["run", "checkpoint", "adapter", "model"]
    backbone: "BackboneSection"
    folder: Path | None = None
    run: Path | None = None
    recipe: "Recipe | None" = None
    weight_hash: str | None = None


def resolve(target: "str | Path | Recipe") -> Target:
    """Find out what a name stands for; a recipe stands for its run folder.

    Raises:
        CheckpointError: a folder that is none of these, or a run without a usable checkpoint.
    """
    from mmtune.backbones import Section
    from mmtune.recipe_schema import Recipe
    from mmtune.run_checkpoint import choose_checkpoint, problems

    if isinstance(target, Recipe):
        target = target.output
    folder = Path(target).expanduser()
    if not folder.is_dir():
        refuse_mistyped(str(target))
        return Target("model", Section(id=str(target)))
    if (folder / RECIPE_FILE).is_file():
        return _of_run("run", folder, choose_checkpoint(folder))
    run = folder.parent.parent
    if folder.parent.name == "checkpoints" and (run / RECIPE_FILE).is_file():
        if found := problems(folder):
            raise CheckpointError(f"{folder} cannot be used: {'; '.join(found)}")
        return _of_run("checkpoint", run, folder)
    if (folder / "adapter_config.json").is_file():
        return _of_adapter(folder)
    if (folder / "config.json").is_file():
        return Target("model", Section(id=str(folder)))
    raise CheckpointError(
        f"{folder} is neither a run ({RECIPE_FILE}), a checkpoint of one, a peft adapter (adapter_config.json) "
        "nor a model folder (config.json)"
    )


def refuse_mistyped(name: str) -> None:
    """A name that is surely meant as a folder must not be looked for on the hub.

    Raises:
        CheckpointError: it is no folder, but surely meant as one (`missing_folder`).
    """
    if not name.startswith("builtin:") and (wrong := missing_folder(name, MODEL_FILES)):
        raise CheckpointError(wrong)


def _of_run(kind: Literal["run", "checkpoint"], run: Path, checkpoint: Path) -> Target:
    from mmtune.backbones import at_commits
    from mmtune.recipe_paths import anchored
    from mmtune.recipe_schema import recipe_from_json

    recipe = recipe_from_json(read_json(run / RECIPE_FILE), str(run / RECIPE_FILE))
    manifest = read_json(run / "manifest.json") if (run / "manifest.json").is_file() else {}
    noted = manifest.get("backbone") or {}
    recipe = anchored(recipe, Path(manifest.get("started_in", ".")))
    section = at_commits(recipe.backbone, noted)
    return Target(kind, section, checkpoint, run, recipe, noted.get("weight_hash"))


def _of_adapter(folder: Path) -> Target:
    from mmtune.adapters import read_adapter_config
    from mmtune.backbones import Section

    config = read_adapter_config(folder)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder / 'adapter_config.json'} names no base_model_name_or_path to stand on")
    return Target("adapter", Section(id=base, revision=config.get("revision")), folder)


def load_base(target: Target, *, device: str = "cpu", full: bool = False, plain: bool = False) -> "Backbone":
    """The backbone a target stands on, freshly loaded, without its adapter.

    Args:
        target: from ``resolve``.
        device: where it goes.
        full: the original weights even where the run quantized them.
        plain: float32 throughout, quantized layers dequantized: what an adapter can be merged into.

    Raises:
        BackboneError: it does not load.
        CheckpointError: its weights are not those the run was trained on.
    """
    from mmtune.backbones import load
    from mmtune.tasks import abilities_of

    ability = abilities_of(target.recipe.task) if target.recipe is not None else ""
    section = target.backbone.model_copy(update={"quantize": None}) if full else target.backbone
    if section.quantize is not None:
        backbone = load(section, device=device, dequantize=plain, ability=ability)
    else:
        backbone = load(section, device=device, dtype="float32" if plain else None, ability=ability)
    if target.weight_hash not in (None, backbone.weight_hash):
        raise CheckpointError(
            f"the weights of {section.name} have changed since {target.run} was trained on them "
            f"(sha256 {backbone.weight_hash[:12]}, then {str(target.weight_hash)[:12]}); an adapter fits no others"
        )
    return backbone


def attach_target(backbone: "Backbone", target: Target) -> "Adapted":
    """Put what a target trained into its backbone, in place.

    Raises:
        CheckpointError: it does not fit.
    """
    from mmtune.adapters import attach, attach_foreign, restore
    from mmtune.run_checkpoint import GONE

    assert target.folder is not None, "a model has nothing to attach"
    if target.recipe is None:
        return attach_foreign(backbone, target.folder)
    adapted = attach(backbone, target.recipe.adapter, seed=target.recipe.seed, to_restore=True)
    try:
        restore(adapted, target.folder)
    except CheckpointError:
        if target.folder.is_dir():
            raise
        raise CheckpointError(f"{target.folder}: {GONE}; try again, or wait for the end of that run") from None
    backbone.model.eval().requires_grad_(False)
    return adapted


def load_model(target: "str | Path | Recipe", *, device: str = "cpu") -> "Backbone":
    """The model a name stands for, ready to embed, with its processor.

    Args:
        target: run folder (its best checkpoint), checkpoint folder, folder of a peft adapter, model folder, hub id,
            ``builtin:NAME``, or a recipe (its run).
        device: where it goes.

    Raises:
        CheckpointError, BackboneError: what is there cannot be used; the message says why.
    """
    found = resolve(target)
    backbone = load_base(found, device=device)
    if found.folder is not None:
        attach_target(backbone, found)
    return backbone


def model_identity(backbone: "Backbone", target: Target) -> dict[str, str]:
    """What everything that a model says is a function of: its weights, how they are held, and what was trained."""
    from mmtune.ground.safe_files import file_hash, files_below

    files = files_below(target.folder) if target.folder is not None else []
    trained = [f"{path.name}:{file_hash(path)}" for path in files if not path.name.startswith(("optimizer", "state"))]
    words = {"dtype", "quantize", "double_quantization", "compute_dtype", "image", "image_processing"}
    held = backbone.section.model_dump(include=words)
    return {"weights": f"{backbone.weight_hash} {held}", "adapter": " ".join(trained)}


def load(target: "str | Path | Recipe", *, device: str = "cpu") -> Any:
    """``mmtune.load("runs/x")``: an object with ``model`` and ``processor`` (a ``Backbone``), adapter attached.

    Raises:
        CheckpointError, BackboneError: what is there cannot be used; the message says why.
    """
    return load_model(target, device=device)
