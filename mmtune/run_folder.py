"""The run folder: whether to start, go on, train longer or refuse; and the manifest that every other command reads."""

import fcntl
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import CheckpointError, RecipeError
from mmtune.ground.process_group import barrier, broadcast_object, is_main
from mmtune.ground.safe_files import read_json, sweep_leftovers, write_json, write_text
from mmtune.run_checkpoint import checkpoints, newest_valid

if TYPE_CHECKING:
    from mmtune.backbones import Section as BackboneSection
    from mmtune.recipe_schema import Recipe

FORMAT = 1
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "safetensors",
    "pillow",
)
RESOLVED = "recipe.resolved.json"
LOCK = ".lock"
IN_USE = "another process is training in this folder: wait for it or end it"


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Attributes:
        checkpoint: where to go on from, or None for a fresh start.
        finished: there is nothing left to do.
        notes: lines for the log.
        made: the folder is new.
    """

    checkpoint: Path | None = None
    finished: bool = False
    notes: tuple[str, ...] = ()
    made: bool = False


def open_run(recipe: "Recipe", *, resume: str = "auto", restart: bool = False) -> Start:
    """Decide how the run of ``recipe`` begins and make its folder; every rank gets the same answer.

    Args:
        recipe: what is about to run.
        resume: ``auto`` goes on where the folder holds the same recipe; ``never`` refuses a folder that is in use.
        restart: move an old run aside and begin anew.

    Raises:
        RecipeError: the folder holds another recipe's run; the message lists the keys that differ.
        CheckpointError: the folder has checkpoints, and none is whole.
    """
    decision: Start | str = ""
    if is_main():
        try:
            decision = _decide(recipe, resume, restart)
        except (RecipeError, CheckpointError) as error:
            decision = f"{type(error).__name__}:{error}"
    decision = broadcast_object(decision)
    barrier()
    if isinstance(decision, str):
        name, message = decision.split(":", 1)
        raise (RecipeError if name == "RecipeError" else CheckpointError)(message)
    return decision


OWN_FILES = {"run.log", "quarantine.jsonl", "metrics.jsonl", LOCK}
"""What a start that failed before its first step leaves; such a folder is free."""


def _decide(recipe: "Recipe", resume: str, restart: bool) -> Start:
    run = Path(recipe.output)
    holds_run = (run / RESOLVED).exists()
    if foreign := foreign_files(run):
        raise RecipeError(
            f"output: {run} holds no run of this tool but other files ({', '.join(foreign[:3])}): give another folder"
        )
    notes: list[str] = []
    if restart and holds_run:
        with locked(run):
            aside = _move_aside(run)
        notes.append(f"the old run is kept as {aside}")
        holds_run = False
    if not holds_run:
        made = not run.exists()
        run.mkdir(parents=True, exist_ok=True)
        return Start(notes=tuple(notes), made=made)
    if resume == "never":
        raise RecipeError(
            f"{run} holds a run already and --resume never was given: use --restart to move it aside, "
            "or another output folder"
        )
    return _go_on(recipe, run)


def foreign_files(run: Path) -> list[str]:
    """What keeps a run from beginning in a folder: names of files that are no run's; empty where it holds one."""
    if not run.exists() or (run / RESOLVED).exists():
        return []
    return sorted({path.name for path in run.iterdir()} - OWN_FILES) if run.is_dir() else [run.name]


def _go_on(recipe: "Recipe", run: Path) -> Start:
    old = _resolved(run / RESOLVED)
    differing = differing_keys(old, recipe.model_dump(mode="json"))
    finished = (run / "manifest.json").exists() and read_json(run / "manifest.json").get("status") == "finished"
    if not finished and not checkpoints(run):
        changed = f" with other {', '.join(sorted(differing))}" if differing else ""
        return Start(notes=(f"{run}: an earlier start wrote no checkpoint; beginning anew{changed}",))
    if differing - {"train.length"}:
        lines = "".join(f"\n  {key}" for key in sorted(differing))
        raise RecipeError(
            f"{run} holds a run of another recipe; these keys differ:{lines}\n"
            "Use --restart to move that run aside, or set another output."
        )
    sweep_leftovers(run / "checkpoints")
    folder, passed_over = newest_valid(run)
    if folder is None:
        reasons = "".join(f"\n  {line}" for line in passed_over) or "\n  they were removed"
        raise CheckpointError(f"{run}: no checkpoint of this run is whole:{reasons}\nUse --restart to begin anew.")
    if finished and not differing:
        return Start(folder, True, (f"{run} is finished: nothing to do (--restart begins anew)",))
    notes = [*passed_over, f"going on from {folder.name}"]
    if differing:
        notes.append(f"train.length changed from {old['train']['length']} to {recipe.train.length}")
    return Start(folder, False, tuple(notes))


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder: a second process that wants to train in it is refused.

    The lock belongs to this process alone and goes with it, also when it is killed.

    Raises:
        RecipeError: another process holds it.
    """
    if not is_main():
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with open(run / LOCK, "a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f"{run}: {IN_USE}") from None
        if not os.fstat(file.fileno()).st_nlink:  # its holder failed and cleared the folder as this one opened it
            raise RecipeError(f"{run}: {IN_USE}")
        yield


def is_locked(run: Path) -> bool:
    """Whether another process trains in a folder; a lock file that nobody holds is of no account.

    Not for a process that holds the lock: closing the file here would end it.
    """
    if not (run / LOCK).is_file():
        return False
    with open(run / LOCK, "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def clear_if_unused(run: Path, start: Start) -> None:
    """Remove the folder that a run made and never began in, on the main rank only; the caller holds the lock.

    It stays where anything else lies in it.
    """
    if not (start.made and is_main()) or {path.name for path in run.iterdir()} - {LOCK}:
        return
    (run / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # something was put there just now
        run.rmdir()


TRUNK_CACHE = "train.trunk_cache"
PLACES = {"output", *(f"{TRUNK_CACHE}.{key}" for key in ("mode", "limit_gb", "folder"))}
"""Keys that say where things lie and change no number: a run may go on with others."""


def _resolved(file: Path) -> dict[str, Any]:
    """What a run was started with, keys that came later at their defaults; as it stands where it is no recipe now."""
    from mmtune.recipe_schema import recipe_from_json, resolved_json

    old: dict[str, Any] = read_json(file)
    try:
        return resolved_json(recipe_from_json(old, str(file)))
    except RecipeError:
        return old


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys whose values differ and matter; those of `PLACES` may, since a run folder can be moved."""
    found = set()
    for key in {*old, *new}:
        dotted = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differing_keys(before, after, f"{dotted}.")
        elif dotted == TRUNK_CACHE:
            found |= {f"{TRUNK_CACHE}.dtype"} if _states_dtype(before) != _states_dtype(after) else set()
        elif before != after and dotted not in PLACES:
            found.add(dotted)
    return found


def _states_dtype(cache: Any) -> str:
    """What ``train.trunk_cache`` keeps states in; a mode alone, and a recipe from before there was one, is exact."""
    return str(cache["dtype"]) if isinstance(cache, dict) else "float32"


def write_recipe(run: Path, recipe: "Recipe") -> None:
    """``recipe.resolved.json``, on the main rank only; reading it back gives an equal recipe."""
    if is_main():
        write_json(run / RESOLVED, recipe.model_dump(mode="json"))


def _move_aside(run: Path) -> Path:
    number = 1
    while (aside := run.with_name(f"{run.name}.old-{number}")).exists():
        number += 1
    shutil.move(run, aside)
    return aside


def versions() -> dict[str, str]:
    """The versions that a run depends on."""
    found = {
        "python": platform.python_version(),
        "mmtune": importlib.metadata.version("mmtune") if _installed() else "source",
    }
    return {**found, **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _installed() -> bool:
    try:
        importlib.metadata.version("mmtune")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def update_manifest(run: Path, **values: Any) -> None:
    """Set keys of ``manifest.json``, on the main rank only."""
    if not is_main():
        return
    path = run / "manifest.json"
    manifest = read_json(path) if path.exists() else {"format": FORMAT}
    write_json(path, {**manifest, **values})


def forget_manifest(run: Path) -> None:
    """Remove what an earlier start noted that wrote no checkpoint, on the main rank only; the caller holds the lock."""
    if is_main():
        (run / "manifest.json").unlink(missing_ok=True)


def write_quarantine(run: Path, bad: "list[Any]") -> None:
    """``quarantine.jsonl``: one line per bad item with where, reason and split; the file is there even when empty."""
    import json
    from dataclasses import asdict

    if is_main():
        write_text(run / "quarantine.jsonl", "".join(json.dumps(asdict(item)) + "\n" for item in bad))


def same_revision(section: "BackboneSection", run: Path) -> "BackboneSection":
    """The backbone section with the commits that the run began with: a branch may have moved since."""
    from mmtune.backbones import at_commits

    manifest = run / "manifest.json"
    return at_commits(section, read_json(manifest)["backbone"]) if manifest.exists() else section
