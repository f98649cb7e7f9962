"""The hub's side of a push: what is there already, one commit with all files, and what went wrong in words."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.ground.errors import MmtuneError, PushError
from mmtune.ground.safe_files import file_hash
from mmtune.model_card import is_ours, is_unfilled
from mmtune.public_base import Base
from mmtune.push_files import ADAPTER_CONFIG, CARD, CONFIG, INDEX, SHARD, Package

WEIGHTS = {"model.safetensors", INDEX, "adapter_model.safetensors", "trained.safetensors", "temperature.safetensors"}
"""Files that change what is loaded: an old one beside new ones makes another model."""


@dataclass(frozen=True)
class Remote:
    """The repository as it is.

    Attributes:
        commit: its newest commit; None where there is no repository yet.
        private: whether only its owner sees it.
        names: its files.
        card: its README.md.
    """

    commit: str | None = None
    private: bool = False
    names: frozenset[str] = frozenset()
    card: str | None = None


def check_name(repo_id: str) -> None:
    """See that a repository's name is ``owner/name`` as the hub allows it.

    Raises:
        PushError: it is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PushError(f"repository {repo_id!r}: {error}") from None
    if "/" not in repo_id:
        raise PushError(f"repository {repo_id!r}: write owner/name, such as your-name/{repo_id}")


def check_access() -> None:
    """See that the hub may be asked and that there is a token; asks nothing.

    Raises:
        PushError: offline mode, or no token.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise PushError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or use --dry-run")
    if huggingface_hub.get_token() is None:
        raise PushError("no token for the hub: log in with `hf auth login`, or set HF_TOKEN to one that may write")


def look(repo_id: str) -> Remote:
    """What is in the repository now.

    Raises:
        PushError: the hub refuses or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    with explained(repo_id):
        try:
            info = huggingface_hub.model_info(repo_id)
        except errors.RepositoryNotFoundError as error:
            if _status(error) == 401:  # the hub says so of a bad token; what is private answers 404 to a good one
                _whoami()
            return Remote()
        names = frozenset(file.rfilename for file in info.siblings or ())
        return Remote(info.sha, bool(info.private), names, _read_card(repo_id, info.sha) if CARD in names else None)


def _whoami() -> None:
    import huggingface_hub

    huggingface_hub.whoami()


def _read_card(repo_id: str, commit: str | None) -> str:
    import huggingface_hub

    with tempfile.TemporaryDirectory() as folder:
        path = huggingface_hub.hf_hub_download(repo_id, CARD, revision=commit, cache_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")


def commit_of_base(base: Base, say: Callable[[str], object]) -> str | None:
    """The newest commit of the repository that the user names as base, which must hold the weights trained on.

    Args:
        base: its public name, and the folder here.
        say: is told where the two cannot be compared.

    Raises:
        PushError: it is not there, or holds other weights than the folder of this machine.
    """
    import huggingface_hub
    from huggingface_hub import errors

    assert base.id is not None
    with explained(base.id):
        try:
            info = huggingface_hub.model_info(base.id, files_metadata=True)
        except errors.RepositoryNotFoundError:
            raise PushError(
                f"base model {base.id}: there is no such repository, or the token does not see it"
            ) from None
    there = {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs is not None}
    here = [path for path in base.folder.glob("*.safetensors") if path.name in there] if base.folder else []
    if other := sorted(path.name for path in here if file_hash(path) != there[path.name]):
        raise PushError(
            f"base model {base.id} holds other weights ({', '.join(other)}) than {base.folder}, which this stands on"
        )
    if not here:
        say(
            f"base model {base.id}: nobody compared its weights with those trained on (no safetensors file of the same "
            "name there and here); see that they are the same"
        )
    return info.sha


def stale_files(remote: Remote, package: Package, repo_id: str, *, private: bool, own_card: bool) -> list[str]:
    """Earlier weights of ours that the new commit has to remove.

    Args:
        remote: the repository.
        package: what goes.
        repo_id: for the messages.
        private: whether it is meant to be private.
        own_card: the card that goes was written by the user.

    Raises:
        PushError: something there would be lost or mixed up: a card that a person wrote, a model of another kind,
            weights that we did not push; or the repository is public although private was asked for.
    """
    problems = []
    if remote.commit is not None and private and not remote.private:
        problems.append(f"{repo_id} is public already: make it private in its settings, or leave out --private")
    ours = remote.card is not None and is_ours(remote.card)
    if remote.card is not None and not (own_card or ours or is_unfilled(remote.card)):
        problems.append(
            f"{CARD} in {repo_id} was written or changed by a person and would be overwritten: delete it there, or "
            f"save it as {package.card}, then that one goes"
        )
    other = ADAPTER_CONFIG if package.kind == "model" else CONFIG
    if other in remote.names and not package.has(other):
        holds = "an adapter" if package.kind == "model" else "a whole model"
        problems.append(f"{repo_id} holds {holds} ({other}), which would be mixed up with this: use another repository")
    old = sorted(name for name in remote.names if name in WEIGHTS or SHARD.fullmatch(name))
    if old and not problems and not (ours or own_card):
        problems.append(f"{repo_id} has weights that this did not write ({', '.join(old)}): use another repository")
    if problems:
        raise PushError("\n".join(problems))
    return [name for name in old if not package.has(name)]


def upload(repo_id: str, package: Package, remote: Remote, stale: list[str], *, private: bool, message: str) -> Any:
    """Make the repository where need be, and put all files into it with one commit; gives the commit's facts.

    Raises:
        PushError: the hub refuses or cannot be reached; the repository is then as it was, or empty if it is new.
    """
    import huggingface_hub

    add: list[Any] = [huggingface_hub.CommitOperationAdd(file.name, str(file.path)) for file in package.files]
    remove = [huggingface_hub.CommitOperationDelete(name, is_folder=False) for name in stale]
    with explained(repo_id):
        if remote.commit is None:
            # without private the owner's own default holds, which may be private too
            huggingface_hub.create_repo(repo_id, private=private or None, exist_ok=True)
        return huggingface_hub.create_commit(
            repo_id, [*add, *remove], commit_message=message, parent_commit=remote.commit
        )


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn what the hub's client raises into what a person can do about it."""
    from huggingface_hub import errors

    transport_error = getattr(errors, "HTTPError", errors.HfHubHTTPError)
    try:
        yield
    except MmtuneError:
        raise
    except errors.OfflineModeIsEnabled:
        raise PushError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or use --dry-run") from None
    except (errors.HfHubHTTPError, transport_error, RuntimeError, ValueError, OSError) as error:
        raise PushError(_in_words(error, repo_id)) from error


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, whatever it was wrapped in."""
    seen: BaseException | None = error
    while seen is not None:
        if (response := getattr(seen, "response", None)) is not None:
            return int(response.status_code)
        seen = seen.__cause__
    return None


def _in_words(error: BaseException, repo_id: str) -> str:
    from huggingface_hub import constants

    again = "nothing of this push is visible there; the same command can be run again"
    status = _status(error)
    owner = repo_id.partition("/")[0]
    if status == 401:
        return f"{constants.ENDPOINT} does not accept the token: log in with `hf auth login`, or set HF_TOKEN anew"
    if status == 403:
        return f"the token may not write to {repo_id}: it needs write permission for {owner}; {again}"
    if status == 404:
        return f"{repo_id} is not there any more, or the token does not see it; {again}"
    if status in (409, 412):
        return f"{repo_id} was changed by someone else during the push; {again}"
    if status is not None:
        return f"{constants.ENDPOINT} answered {status} for {repo_id}: {_first_line(error)}; {again}"
    if "metadata in README.md" in str(error):
        return f"the hub does not accept the card's metadata: {error}"
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    return f"{constants.ENDPOINT} cannot be reached ({type(root).__name__}: {_first_line(root)}); {again}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
