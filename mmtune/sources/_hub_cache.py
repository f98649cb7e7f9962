"""Where the files of a data set lie: a folder, what `datasets` prepared earlier, or the hub at one commit.

What is in the local cache is used without asking anybody, where the commit is known; the hub is asked for a commit, and
for files that are not there. No code of a repository is run: `datasets` itself has none to run any more.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mmtune.ground.errors import DataError
from mmtune.ground.file_patterns import missing_folder

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OF = re.compile(r"-(\d{5,})-of-(\d{5,})\.")
_READABLE = (".parquet", ".arrow")


@dataclass(frozen=True)
class Files:
    """The files of a data set.

    Attributes:
        splits: the data set's own name of a split -> its files, in order.
        source: for a log: the folder, or ``owner/name at commit ...``.
    """

    splits: Mapping[str, tuple[Path, ...]]
    source: str


def find_files(id: str, name: str | None, revision: str | None) -> Files:
    """The parquet or arrow files of a data set; downloads what is not there.

    Args:
        id: ``owner/name`` or a folder.
        name: configuration, where it has several.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        DataError: nothing is there, or the hub cannot be reached; the message says what to do.
    """
    folder = Path(id).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise DataError(f"data.revision: {folder} is a folder, which has no revision {revision!r}; leave it out")
        return Files(_files_of_folder(folder, name), str(folder))
    if wrong := missing_folder(id) or (f"there is no folder {id}" if "\\" in id else None):
        raise DataError(f"data.id: {wrong}")
    commit, why = _commit_of(id, revision)
    found = _prepared(id, name, commit) or _fetched(id, name, commit)
    return Files(found, f"{id} at commit {commit}" + (f" (the one in the cache: {why})" if why else ""))


# --- folders


def _files_of_folder(folder: Path, name: str | None) -> dict[str, tuple[Path, ...]]:
    """What ``save_to_disk`` wrote, or parquet and arrow files sorted as `datasets` sorts them."""
    saved = _saved_splits(folder)
    if saved is not None:
        if name is not None:
            raise DataError(f"data.name: {folder} was saved to disk and has no configurations; leave name out")
        return saved
    import datasets

    with _quiet():
        try:
            files = datasets.load_dataset_builder(str(folder.absolute()), name).config.data_files
        except FileNotFoundError as error:
            raise DataError(f"data.id: {folder} holds no data set: {error}") from error
        except ValueError as error:
            raise DataError(f"data.name: {folder}: {error}") from error
    found = {str(split): tuple(Path(path) for path in paths) for split, paths in (files or {}).items()}
    other = next((path for paths in found.values() for path in paths if path.suffix not in _READABLE), None)
    if other is not None:
        fitting = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "jsonl", ".tsv": "jsonl", ".tar": "webdataset"}
        kind = fitting.get(other.suffix, "image_folder")
        raise DataError(f"data.id: {folder} holds no parquet or arrow files but {other.name}; try kind: {kind}")
    return found


def _saved_splits(folder: Path) -> dict[str, tuple[Path, ...]] | None:
    """The files that ``save_to_disk`` wrote, None where it did not write this folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits")
        named = splits if isinstance(splits, list) else []
        return {str(split): _saved_files(folder / str(split)) for split in named}
    if (folder / "state.json").is_file():
        split = _json(folder / "state.json").get("_split") or "train"
        return {str(split): _saved_files(folder)}
    return None


def _saved_files(folder: Path) -> tuple[Path, ...]:
    listed = _json(folder / "state.json").get("_data_files")
    names = [each.get("filename") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    found = tuple(folder / str(name) for name in names)
    if missing := [str(path) for path in found if not path.is_file() or path.parent != folder]:
        raise DataError(f"data.id: {folder / 'state.json'} names files that are missing: {', '.join(missing[:5])}")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"data.id: {path} cannot be read: {error}") from error
    return values if isinstance(values, dict) else {}


# --- the hub


def is_offline() -> bool:
    """Whether the hub may not be asked at all."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _commit_of(id: str, revision: str | None) -> tuple[str, str]:
    """The commit that a revision stands for, by the hub's word; or by the cache's, and why the hub was not asked."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision, ""
    why = "HF_HUB_OFFLINE is set"
    if not is_offline():
        try:
            return _ask_commit(id, revision), ""
        except ConnectionError:
            why = "the hub cannot be reached"
    return _known_commit(id, revision, why), why


def _ask_commit(id: str, revision: str | None) -> str:
    """Raises ConnectionError where there is no answer."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    transport_error = getattr(errors, "HTTPError", errors.HfHubHTTPError)  # the HTTP library's own, whichever it is
    page = f"{constants.ENDPOINT}/datasets/{id}"
    try:
        return str(huggingface_hub.HfApi().dataset_info(id, revision=revision, timeout=30).sha)
    except errors.GatedRepoError as error:
        raise DataError(
            f"data.id: {id!r} is gated: accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"data.id: {id!r} is neither a folder here nor a data set at {page}: check the spelling (owner/name); for "
            "a private one log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(
            f"data.revision: {id!r} has no {revision!r}; {page}/commits/main lists what there is"
        ) from error
    except errors.HFValidationError as error:
        raise DataError(f"data.id: {id!r} is neither a folder here nor a hub id: {error}") from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise DataError(f"data.id: {id!r}: the hub did not answer as expected: {error}") from error
        raise ConnectionError(str(error)) from error
    except (transport_error, OSError) as error:
        raise ConnectionError(str(error)) from error


def _known_commit(id: str, revision: str | None, why: str) -> str:
    """What the caches know: the hub cache's ref, else the newest that `datasets` prepared.

    Raises:
        DataError: they know nothing, or not which commit a branch or tag is.
    """
    prepared = [folder for folder in _prepared_folders(id, None) if _COMMIT.fullmatch(folder.name)]
    refs = _hub_folder(id) / "refs" / (revision or "main")
    known = refs.read_text(encoding="utf-8").strip() if refs.is_file() else None
    snapshot = _hub_folder(id) / "snapshots" / (known or "none")
    there = known in {folder.name for folder in prepared} or any(snapshot.rglob("*.parquet"))
    if known is not None and (there or revision is not None or not prepared):
        return known
    if revision is None and prepared:
        return max(prepared, key=lambda folder: folder.stat().st_mtime).name
    if prepared:
        commits = ", ".join(sorted({folder.name for folder in prepared}))
        raise DataError(
            f"data.revision: {why}, so it is not known which commit {revision!r} of {id!r} is; write one of those "
            f"in the cache: {commits}"
        )
    raise DataError(_unreachable(id, why))


def _unreachable(id: str, why: str) -> str:
    return (
        f"data.id: {id!r} is not in the local cache and {why}: run `hf download --repo-type dataset {id}` once with "
        "network, or give a folder"
    )


def _hub_folder(id: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{id.replace('/', '--')}"


def _prepared_folders(id: str, name: str | None) -> list[Path]:
    """What `datasets` prepared of a data set: ``owner___name/configuration/version/commit``."""
    import datasets.config
    from datasets.naming import camelcase_to_snakecase

    owner, _, own = id.rpartition("/")
    folder = "___".join(filter(None, (owner, camelcase_to_snakecase(own))))
    root = Path(datasets.config.HF_DATASETS_CACHE) / folder
    found = root.glob(f"{name or '*'}/*/*")
    return sorted(path for path in found if (path / "dataset_info.json").is_file())


def _prepared(id: str, name: str | None, commit: str) -> dict[str, tuple[Path, ...]] | None:
    """Arrow files that `datasets` prepared from this very commit."""
    there = [folder for folder in _prepared_folders(id, name) if folder.name == commit]
    configurations = [folder.parts[-3] for folder in there]
    if name is None and len(there) > 1:
        there = [folder for folder in there if folder.parts[-3] == "default"]
        if not there:
            raise DataError(f"data.name: {id!r} has several configurations: {', '.join(configurations)}; write one")
    if not there:
        return None
    splits = _json(there[0] / "dataset_info.json").get("splits")
    found = {}
    for split in splits if isinstance(splits, dict) else {}:
        files = sorted(path for path in there[0].glob("*.arrow") if _is_of(path, str(split)))
        if not files or not _is_whole(files):
            return None
        found[str(split)] = tuple(files)
    return found or None


def _is_of(path: Path, split: str) -> bool:
    own = path.parts[-5].rpartition("___")[2]
    return bool(re.fullmatch(rf"{re.escape(own)}-{re.escape(split)}(-\d+-of-\d+)?\.arrow", path.name))


def _is_whole(files: "list[Path] | tuple[Path, ...]") -> bool:
    """Whether no file of a numbered series is missing."""
    for path in files:
        numbered = _OF.search(path.name)
        if numbered and sum(path.name[: numbered.start()] == other.name[: numbered.start()] for other in files) != int(
            numbered.group(2)
        ):
            return False
    return True


def _snapshot(id: str, name: str | None, commit: str) -> dict[str, tuple[Path, ...]] | None:
    """Parquet files that ``hf download`` fetched; looked at only where the hub cannot be asked: some may be missing."""
    folder = _hub_folder(id) / "snapshots" / commit
    if not any(folder.rglob("*.parquet")):
        return None
    found = _files_of_folder(folder, name)
    if broken := [split for split, files in found.items() if not _is_whole(files)]:
        raise DataError(f"data.id: {id!r} is in the local cache in part only: files of {', '.join(broken)} are missing")
    return found


def _fetched(id: str, name: str | None, commit: str) -> dict[str, tuple[Path, ...]]:
    """Let `datasets` download and prepare it; where the hub cannot be asked, what was downloaded by hand."""
    if is_offline():
        return _snapshot(id, name, commit) or _refuse(id, "HF_HUB_OFFLINE is set")
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        loaded = datasets.load_dataset(id, name, revision=commit)
    except RuntimeError as error:
        raise DataError(f"data.id: {id!r} is made by code of its own, which is not run: {error}") from error
    except ValueError as error:
        raise DataError(f"data.name: {id!r}: {error}") from error
    except (OSError, DatasetsError) as error:  # a connection's error is an OSError
        return _snapshot(id, name, commit) or _refuse(id, f"cannot be fetched: {error}")
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    found = {split: tuple(Path(each["filename"]) for each in part.cache_files) for split, part in splits.items()}
    if any(commit not in path.parts for files in found.values() for path in files):
        # Where the hub does not answer, `datasets` takes whatever commit it prepared last.
        return _snapshot(id, name, commit) or _refuse(id, f"the hub does not give commit {commit}")
    return {str(split): files for split, files in found.items()}


def _refuse(id: str, why: str) -> NoReturn:
    raise DataError(_unreachable(id, why))


@contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` writes lines about what it found."""
    from datasets.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
