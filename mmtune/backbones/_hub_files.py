"""Where a backbone's files lie: a folder, ``builtin:NAME`` inside the package, or a hub repository at one commit.

Everything is fetched at the commit that the revision stood for and then read from the local folder, so all files
belong together and transformers has no reason to ask the hub, or its conversion bot, for anything.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtune.backbones._family import COMMIT, Description, Place, Section
from mmtune.ground.errors import BackboneError

COMPONENTS = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "qformer_tokenizer/tokenizer.json",
    "qformer_tokenizer/tokenizer_config.json",
    "qformer_tokenizer/special_tokens_map.json",
    "qformer_tokenizer/added_tokens.json",
    "qformer_tokenizer/vocab.txt",
)
"""Processor, tokenizer, chat-template and generation files of a repository: what a merged model takes over as is.
InstructBLIP's second tokenizer lies in a folder of its own."""

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
BUILTIN = "builtin:"


class UnreachableError(BackboneError):
    """It may well be there, but cannot be had from here."""


def locate(section: Section) -> tuple[Path, str | None]:
    """The folder with config.json, and the commit where the backbone comes from the hub.

    Raises:
        BackboneError: nothing is there, it may not be read, or the hub cannot be reached; the message says what to do.
    """
    if section.name.startswith(BUILTIN):
        return _builtin_folder(section), None
    folder = Path(section.name).expanduser()
    if folder.is_dir():
        return _local_folder(section, folder), None
    if section.name.startswith((".", "/", "~")) or section.name.count("/") > 1 or "\\" in section.name:
        raise BackboneError(f"backbone {section.name!r}: there is no such folder (looked for {folder.absolute()})")
    config = Path(_download(section, section.revision, "config.json"))
    commit = config.parent.name
    if not COMMIT.fullmatch(commit):
        raise BackboneError(f"backbone {section.name!r}: its files lie in {config.parent}, which is named by no commit")
    return config.parent, commit


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json, parsed.

    Raises:
        BackboneError: it is missing or is no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise BackboneError(f"backbone {name!r}: {folder} has no config.json; a model folder of transformers has one")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise BackboneError(f"{file}: holds a {type(config).__name__}, not an object")
    return config


def component_files(description: Description) -> list[Path]:
    """The backbone's own processor, tokenizer, chat-template and generation files, sorted by name.

    For a hub backbone they are fetched first (and the repository's code, where the section trusts it). A pair has
    none of its own: those of its encoders are fetched, and do not make one processor.

    Raises:
        BackboneError: the hub cannot be reached and the cache lacks them.
    """
    for place in description.places:
        if place.commit is not None:
            _fetch_components(place)
    if description.encoders:
        return []
    return sorted(path for name in COMPONENTS if (path := description.folder / name).is_file())


def weight_files(description: Description) -> list[Path]:
    """The files that hold the weights, sorted by name: safetensors, or ``.bin`` where only those exist and may be read.

    Those of a pair are its image encoder's, then its text encoder's.

    Raises:
        BackboneError: there are none, or only ``.bin`` files and ``allow_pickle`` is not set; a shard is missing.
    """
    return [file for place in description.places for file in weight_files_at(place)]


def weight_files_at(description: Place) -> list[Path]:
    """``weight_files`` of one repository or folder."""
    names = [SAFETENSORS, PICKLE] if description.section.allow_pickle else [SAFETENSORS]
    for name in names:
        if files := _weights_named(description, name):
            return files
    if description.commit is not None and _is_offline():
        raise UnreachableError(_unreachable(description.id, description.commit, offline=True))
    nothing = f"backbone {description.id!r} has no {' and no '.join(names)} in {description.folder}"
    if PICKLE in names:
        raise BackboneError(nothing)
    raise BackboneError(
        f"{nothing}. If it has {PICKLE}, set backbone.allow_pickle: true to read that with torch's "
        "weights-only unpickler"
    )


def _weights_named(description: Place, name: str) -> list[Path]:
    """The single file of that name, or the shards its index lists; empty where there is neither."""
    if single := _fetch(description, name):
        return [single]
    index = _fetch(description, f"{name}.index.json")
    if index is None:
        return []
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found = [_fetch(description, shard, required=True) for shard in shards]
    if missing := [shard for shard, path in zip(shards, found, strict=True) if path is None]:
        raise BackboneError(f"backbone {description.id!r}: {index.name} lists {', '.join(missing)}, which are missing")
    return [path for path in found if path is not None]


def _fetch(description: Place, name: str, *, required: bool = False) -> Path | None:
    """A file of the backbone, downloaded where need be; None where a folder has no such file, or a repository
    has none and it is not ``required``. Offline, what is not in the cache counts as absent."""
    if description.commit is None:
        path = description.folder / name
        return path if path.is_file() else None
    return _download(description.section, description.commit, name, required=required)


def _download(section: Section, revision: str | None, name: str, *, required: bool = True) -> Any:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _explained(section):
        try:
            return Path(huggingface_hub.hf_hub_download(section.name, name, revision=revision))
        except LocalEntryNotFoundError:
            if required or not _is_offline():
                raise
            return None
        except EntryNotFoundError as error:
            if not required:
                return None
            raise BackboneError(f"backbone {section.name!r}: the repository has no {name}") from error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _fetch_components(description: Place) -> None:
    import huggingface_hub

    patterns = list(COMPONENTS) + (["*.py"] if description.section.trust_remote_code else [])
    with _explained(description.section), _no_bar():
        huggingface_hub.snapshot_download(description.id, revision=description.commit, allow_patterns=patterns)


@contextmanager
def _no_bar() -> Iterator[None]:
    """No progress bar for a handful of small files; the one of the weights stays."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            enable_progress_bars()


@contextmanager
def _explained(section: Section) -> Iterator[None]:
    """Turn what the hub's client raises into what a person can do about it."""
    from huggingface_hub import constants, errors

    transport_error = getattr(errors, "HTTPError", errors.HfHubHTTPError)  # the HTTP library's own, whichever it is
    name, revision = section.name, section.revision or "main"
    page = f"{constants.ENDPOINT}/{name}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UnreachableError(
            f"backbone {name!r} is gated: accept its terms at {page} with your account, then log in with "
            f"`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BackboneError(
            f"backbone {name!r} is neither a folder here nor a repository at {page}: check the spelling "
            f"(owner/name); for a private repository log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BackboneError(
            f"backbone {name!r} has no revision {revision!r}: {page}/commits/main lists what there is"
        ) from error
    except errors.HFValidationError as error:
        raise BackboneError(f"backbone {name!r} is neither a folder here nor a hub id: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        offline = constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled)
        raise UnreachableError(_unreachable(name, revision, offline)) from error
    except (transport_error, errors.HfHubHTTPError) as error:
        raise BackboneError(f"backbone {name!r}: the hub did not answer as expected: {error}") from error


def _unreachable(name: str, revision: str, offline: bool) -> str:
    why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
    return (
        f"backbone {name!r} (revision {revision!r}) is not wholly in the local cache and {why}: run "
        f"`hf download {name}{'' if revision == 'main' else f' --revision {revision}'}` once with network"
        + (" and HF_HUB_OFFLINE unset" if offline else "")
        + ", or give a folder"
    )


def _builtin_folder(section: Section) -> Path:
    name = section.name.removeprefix(BUILTIN)
    _refuse_revision(section, "a builtin backbone")
    assets = Path(__file__).resolve().parents[1] / "assets"
    folder = assets / name.replace("-", "_")
    if not (folder / "config.json").is_file():
        known = sorted(path.parent.name.replace("_", "-") for path in assets.glob("*/config.json"))
        raise BackboneError(f"there is no builtin backbone {name!r}; there is {', '.join(known) or 'none'}")
    return folder


def _local_folder(section: Section, folder: Path) -> Path:
    _refuse_revision(section, f"the folder {folder.absolute()}")
    return folder


def _refuse_revision(section: Section, what: str) -> None:
    if section.revision is not None:
        raise BackboneError(
            f"backbone {section.name!r} is {what}, which has no revision {section.revision!r}: leave it out"
        )
