"""Which files go to the hub: from a run, a checkpoint, a peft folder or a merged folder, by allow-list.

Everything else (optimizer, logs, quarantine, ranks with their captions, ``.env``) stays where it is. What we wrote
ourselves goes as a copy without paths of this machine; weights and the backbone's own files go as they are.
"""

import os
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mmtune.adapters import read_adapter_config
from mmtune.adapters._storage import ADAPTER_FOLDER, ADAPTER_WEIGHTS, TEMPERATURE_FILE, TRAINED_FILE
from mmtune.backbones._hub_files import COMPONENTS, SAFETENSORS
from mmtune.ground.errors import PushError
from mmtune.ground.file_patterns import missing_folder
from mmtune.ground.records import MEDIA_WORDS
from mmtune.ground.safe_files import file_hash, read_json, write_json
from mmtune.merge_building import REPORT, RUN_NOTE
from mmtune.model_loading import MODEL_FILES, RECIPE_FILE, Target, resolve
from mmtune.public_base import Base, base_of_merge, find_base

CONFIG, ADAPTER_CONFIG, CARD, SCORES = "config.json", "adapter_config.json", "README.md", "scores.json"
INDEX = f"{SAFETENSORS}.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

PUBLIC_SCORES = (
    *("split", "modality", "samples", *MEDIA_WORDS.values(), "texts", "bad", "base", "tuned", "delta", "interval95"),
    *("bootstrap", "checkpoint", "precision", "seed"),
)


@dataclass(frozen=True)
class PushFile:
    """A file that goes: its name there, where it lies here, and whether it is the backbone's own, untouched."""

    name: str
    path: Path
    copied: bool = False


@dataclass
class Package:
    """What goes to the hub, and what its card tells.

    Attributes:
        kind: ``adapter`` (stands on its base) or ``model`` (a plain model folder).
        folder: where the weights lie.
        card: where a card of the user's own would lie, and where a dry run leaves the card.
        files: what goes.
        base: what it stands on.
        family: the backbone's family, where it is known.
        checkpoint: name of the checkpoint that the weights are.
        recipe: the resolved recipe without paths of this machine.
        manifest: the run's manifest.
        scores: the public part of the scores of these weights.
        report: of a merge.
        notes: what was rewritten or is missing, for the user.
        left: names in ``folder`` that stay here.
    """

    kind: Literal["adapter", "model"]
    folder: Path
    card: Path
    base: Base
    files: list[PushFile] = field(default_factory=list)
    family: str | None = None
    checkpoint: str | None = None
    recipe: dict[str, Any] | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def left(self) -> list[str]:
        """Names in the folder that stay here."""
        gone = {file.path for file in self.files} | {file.path.parent for file in self.files} | {self.card}
        gone |= {self.folder / file.name for file in self.files}
        return sorted(path.name for path in self.folder.iterdir() if path not in gone)

    def has(self, name: str) -> bool:
        """Whether a file of that name goes."""
        return any(file.name == name for file in self.files)


def collect(source: str | Path, scratch: Path, base_model: str | None = None) -> Package:
    """Choose the files of a run, checkpoint, peft folder or merged folder; what is rewritten is written to ``scratch``.

    Raises:
        PushError: the source is none of these, or stands on a backbone that nobody else can load.
        CheckpointError: its checkpoint is damaged.
    """
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        wrong = missing_folder(str(source), MODEL_FILES) or f"there is no folder {source}"
        raise PushError(f"{wrong}; give a run, a merged folder, a checkpoint or a peft adapter")
    if (folder / REPORT).is_file():
        return _of_merged(folder, scratch, base_model)
    target = resolve(folder)
    if target.kind == "model":
        raise PushError(
            f"{source} is a plain model folder that no merge of mmtune wrote (it has no {REPORT}): there is nothing to "
            "say about it; `hf upload` sends any folder"
        )
    return _of_adapter(target, scratch, base_model)


def _of_adapter(target: Target, scratch: Path, base_model: str | None) -> Package:
    assert target.folder is not None
    folder = target.folder.absolute()
    card = folder / CARD
    if target.run is not None:
        run = target.run.absolute()
        card = run / (CARD if target.kind == "run" else f"README_{folder.name}.md")
    package = Package("adapter", folder, card, _base_of_adapter(target, base_model))
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, TRAINED_FILE, TEMPERATURE_FILE):
        places = [folder / ADAPTER_FOLDER / name, folder / name]
        package.files += [PushFile(name, path) for path in places if path.is_file()][:1]
    if not (package.has(ADAPTER_WEIGHTS) or package.has(TRAINED_FILE)):
        raise PushError(f"{folder} holds no {ADAPTER_WEIGHTS} and no {TRAINED_FILE}: there is nothing to push")
    name_base_in_config(package, scratch)
    if target.run is not None:
        _take_run(package, target.run.absolute(), scratch, named=target.kind == "checkpoint")
    return package


def _base_of_adapter(target: Target, base_model: str | None) -> Base:
    section = target.backbone
    merged = "push the merged model, which needs no base: `mmtune merge`, then `mmtune push` of its folder"
    if section.id is None:
        raise PushError(f"this adapter stands on two encoders, which others cannot load as one: {merged}")
    manifest = _read_manifest(target.run)
    noted = manifest.get("backbone", {}).get("commit", section.revision)  # None: a folder, wherever it is now
    from_hub = target.run is None or noted is not None
    started_in = Path(manifest.get("started_in", "."))
    base = find_base(section.id, section.revision, base_model, started_in, from_hub=from_hub)
    if base.id is None:
        raise PushError(
            f"this adapter stands on {section.id}, a folder of this machine: {merged}; or say where the same weights "
            "are on the hub (--base-model owner/name)"
        )
    return replace(base, dtype=section.dtype, quantize=section.quantize, trust_remote_code=section.trust_remote_code)


def name_base_in_config(package: Package, scratch: Path) -> None:
    """adapter_config.json with the public name and commit of the base instead of a folder of this machine."""
    found = next((file for file in package.files if file.name == ADAPTER_CONFIG), None)
    if found is None:
        return
    config = read_adapter_config(found.path.parent)
    named = {"base_model_name_or_path": package.base.id, "revision": package.base.revision}
    changed = [key for key, value in named.items() if config.get(key) != value]
    if not changed:
        return
    write_json(scratch / ADAPTER_CONFIG, {**config, **named})
    package.files[package.files.index(found)] = PushFile(ADAPTER_CONFIG, scratch / ADAPTER_CONFIG)
    at = f" at {package.base.revision}" if package.base.revision else ""
    package.notes.append(f"{ADAPTER_CONFIG}: {', '.join(changed)} rewritten; the base is {package.base.id}{at}")


def _of_merged(folder: Path, scratch: Path, base_model: str | None) -> Package:
    report = _read(folder / REPORT, "backbone", "merged", "scale")
    run = _run_of_merge(folder, report)
    backbone = report["backbone"]
    known = _read(run / RECIPE_FILE, "backbone")["backbone"]["id"] if run else None
    base = base_of_merge(backbone, known, base_model, Path(_read_manifest(run).get("started_in", ".")))
    base = replace(base, dtype=backbone["dtype"], quantize=backbone["quantize"])
    package = Package("model", folder, folder / CARD, base, family=backbone["family"], report=report)
    names = {CONFIG, SAFETENSORS, INDEX, REPORT, *COMPONENTS}
    deeper = [folder / name for name in COMPONENTS if "/" in name]
    for path in sorted([*folder.iterdir(), *deeper]):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (name in names or SHARD.fullmatch(name)):
            package.files.append(PushFile(name, path, copied=name in COMPONENTS or name == CONFIG))
    _check_whole(package)
    if run is not None:
        _take_run(package, run, scratch, named=False, chosen=Path(report["merged"]["folder"]).name)
    else:
        package.notes.append("the run that was merged is not here any more: the card has no recipe and no scores")
    if base.id is None and not base.pair:
        package.notes.append("the backbone was a folder of this machine: the card names no base model")
    return package


def _run_of_merge(folder: Path, report: dict[str, Any]) -> Path | None:
    """The run beside the folder, or where the merge left it, if what it holds is what was merged."""
    merged = report["merged"]
    if merged.get("run") is None:
        return None
    for run in (folder.parent, *_noted_runs(folder)):
        trained = run / merged["folder"]
        hashes = merged["sha256"].items()
        if (run / RECIPE_FILE).is_file() and all(
            (trained / name).is_file() and file_hash(trained / name) == sha for name, sha in hashes
        ):
            return run
    return None


def _noted_runs(folder: Path) -> list[Path]:
    """Where the note of the merge says that the run is: seen from the folder, and on this machine."""
    note = folder / RUN_NOTE
    lines = note.read_text(encoding="utf-8").splitlines() if note.is_file() else []
    return [Path(os.path.normpath(folder / line)) for line in lines if line]


def _check_whole(package: Package) -> None:
    index = package.folder / INDEX
    wanted = set(_read(index, "weight_map")["weight_map"].values()) if index.is_file() else {SAFETENSORS}
    if missing := sorted(name for name in {CONFIG, *wanted} if not package.has(name)):
        raise PushError(f"{package.folder} lacks {', '.join(missing)}: merge again")
    if "auto_map" in _read(package.folder / CONFIG):
        raise PushError(
            f"{package.folder / CONFIG} names Python code of the base's repository (auto_map), which does not go to "
            "the hub with the weights: push the adapter instead"
        )


def refuse_changed_weights(package: Package) -> None:
    """See that merged weights are those that the merge wrote and proved: the card tells of them.

    Raises:
        PushError: a file has another hash than the merge noted.
    """
    noted = (package.report or {}).get("weights", {})
    changed = [file for file in package.files if file.name in noted and file_hash(file.path) != noted[file.name]]
    if changed:
        names = ", ".join(file.name for file in changed)
        raise PushError(f"{package.folder}: {names} is not what the merge wrote (damaged or changed): merge again")


def pin_base(package: Package, revision: str | None, scratch: Path) -> None:
    """Say at which commit the base is the one that the weights were trained on."""
    package.base = replace(package.base, revision=revision)
    if package.recipe is not None:
        package.recipe["backbone"]["revision"] = revision
    if package.kind == "adapter":
        name_base_in_config(package, scratch)


def _read_manifest(run: Path | None) -> dict[str, Any]:
    return _read(run / "manifest.json") if run is not None and (run / "manifest.json").is_file() else {}


def _take_run(package: Package, run: Path, scratch: Path, *, named: bool, chosen: str | None = None) -> None:
    """The run's recipe, manifest and scores, without what is this machine's."""
    package.checkpoint = chosen = chosen or package.folder.name
    package.manifest = _read_manifest(run)
    package.family = package.manifest.get("backbone", {}).get("family", package.family)
    recipe = _read(run / RECIPE_FILE, "backbone", "output", "seed")
    shortened: list[str] = []
    package.recipe = _without_paths(recipe, "", shortened)
    package.recipe["backbone"]["id"] = package.base.id or package.recipe["backbone"]["id"]
    package.recipe["backbone"]["revision"] = package.base.revision or package.recipe["backbone"].get("revision")
    package.recipe["output"] = Path(recipe["output"]).name
    if shortened:
        package.notes.append(f"the recipe in the card names files without their folders: {', '.join(shortened)}")
    package.scores = _public_scores(package, run / f"scores{f'_{chosen}' if named else ''}.json", chosen, named)
    if package.scores is None:
        what = f"mmtune evaluate {_from_here(run)}" + (f" --checkpoint {chosen}" if named else "")
        package.notes.append(f"no scores of {chosen} on the test split: `{what}` makes them, and the card shows them")
        return
    write_json(scratch / SCORES, package.scores)
    package.files.append(PushFile(SCORES, scratch / SCORES))


def _from_here(run: Path) -> str:
    """The run as a shell takes it here; for the user's eyes, never for a file that is sent."""
    here = Path.cwd()
    return shlex.quote(str(run.relative_to(here) if run.is_relative_to(here) and run != here else run))


def _without_paths(value: Any, key: str, shortened: list[str]) -> Any:
    """Absolute paths, paths below the home folder and paths that lead upwards become their last name."""
    if isinstance(value, dict):
        return {name: _without_paths(each, f"{key}.{name}".lstrip("."), shortened) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each, f"{key}[{number}]", shortened) for number, each in enumerate(value)]
    if isinstance(value, str) and (value.startswith(("/", "~", "../")) or re.match(r"[A-Za-z]:\\|\\\\", value)):
        if key not in ("output", "backbone.id"):
            shortened.append(key)
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _public_scores(package: Package, path: Path, chosen: str, named: bool) -> dict[str, Any] | None:
    """scores.json of these weights without paths and captions; None where it belongs to others."""
    is_plain = package.report is None or package.report["scale"] == 1
    if not path.is_file() or not is_plain or (not named and package.manifest.get("scores") is None):
        return None
    scores = _read(path)
    if scores.get("checkpoint") != chosen or "tuned" not in scores:
        return None
    return {key: scores[key] for key in PUBLIC_SCORES if key in scores}


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object that has these keys.

    Raises:
        PushError: it is none.
    """
    try:
        values = read_json(path)
    except ValueError as error:
        raise PushError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict) or (missing := [key for key in keys if key not in values]):
        raise PushError(f"{path} is damaged: it has no {', '.join(missing) if isinstance(values, dict) else 'object'}")
    return values
