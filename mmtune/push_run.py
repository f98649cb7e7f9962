"""The story of ``push``: what a run trained, or a merged folder, in; a repository on the hub with a card out."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.ground.errors import PushError

if TYPE_CHECKING:
    from mmtune.push_files import Package


@dataclass(frozen=True)
class PushReport:
    """What was sent, or would be.

    Attributes:
        repo_id: where to.
        url: of the repository; of the commit where one was made.
        commit: the repository's newest commit; None after a dry run.
        dry_run: nothing was asked of the hub.
        kind: ``adapter`` or ``model``.
        files: name and size in bytes of every file.
        card: where the card can be read here; None where it was only sent.
        removed: earlier weights of ours that the commit removes.
        notes: what was rewritten, is missing or is unknown.
        left: names beside the files that stay here.
    """

    repo_id: str
    url: str
    commit: str | None
    dry_run: bool
    kind: str
    files: tuple[tuple[str, int], ...]
    card: Path | None
    removed: tuple[str, ...]
    notes: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        head = "would go" if self.dry_run else "are"
        lines = [f"{len(self.files)} files {head} in {self.repo_id} ({self.kind}):"]
        lines += [f"  {size:>14,} bytes  {name}" for name, size in self.files]
        lines += [f"removed there: {name}" for name in self.removed]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"stay here: {', '.join(self.left)}"] if self.left else []
        lines += [f"the card: {self.card} (edit it, and your text goes instead)"] if self.card else []
        lines += ["nothing was sent"] if self.dry_run else [self.url]
        return "\n".join(lines)


def push(
    source: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    checkpoint: str | None = None,
    base_model: str | None = None,
    message: str | None = None,
) -> PushReport:
    """Send an adapter or a merged model to the hub with a card, by allow-list, in one commit.

    Args:
        source: run folder (its best checkpoint's adapter), merged folder, checkpoint folder or peft folder.
        repo_id: ``owner/name``; made where it is not there. Files of others in it are left alone.
        private: a new repository is seen by its owner only; one that is public is refused.
        dry_run: ask the hub nothing; write the card beside the source and say what would go.
        checkpoint: a checkpoint of the run, such as ``step-000120``.
        base_model: the backbone's name on the hub, where the run knows it as a folder only.
        message: of the commit.

    Raises:
        PushError: a file holds a secret or a path of this machine, the repository holds something else, no token, no
            permission, no network. Nothing of the push is visible on the hub then, and it can be run again.
        CheckpointError: the checkpoint is damaged or not there.
    """
    from mmtune import hub_upload as hub
    from mmtune.evaluation_setup import name_checkpoint
    from mmtune.public_base import read_licence
    from mmtune.push_files import collect, pin_base, refuse_changed_weights

    for name in (repo_id, base_model):
        if name is not None:
            hub.check_name(name)
    if not dry_run:
        hub.check_access()
    with tempfile.TemporaryDirectory(prefix="mmtune-push-") as scratch:
        folder = source if checkpoint is None else str(name_checkpoint(source, checkpoint))
        package = collect(folder, Path(scratch), base_model)
        if base_model is not None and not dry_run:
            pin_base(package, hub.commit_of_base(package.base, package.notes.append), Path(scratch))
        own_card = _add_card(package, repo_id, read_licence(package.base, online=not dry_run), Path(scratch))
        _refuse_leaks(package, repo_id, message or "")
        refuse_changed_weights(package)
        if dry_run:
            return _report(package, repo_id, card=_keep_card(package, own_card))
        remote = hub.look(repo_id)
        stale = hub.stale_files(remote, package, repo_id, private=private, own_card=own_card)
        done = hub.upload(
            repo_id, package, remote, stale, private=private, message=message or f"{package.kind} made with mmtune"
        )
        return _report(package, repo_id, url=str(done.commit_url), commit=done.oid, removed=stale)


def _add_card(package: "Package", repo_id: str, licence: dict[str, str], scratch: Path) -> bool:
    """Put the user's own card among the files, else one filled from the run; says whether it is the user's."""
    from mmtune.model_card import is_ours, is_unfilled, write_card
    from mmtune.push_files import CARD, PushFile

    there = package.card.read_text(encoding="utf-8", errors="replace") if package.card.is_file() else ""
    if there.strip() and not is_ours(there) and not is_unfilled(there):
        package.files.append(PushFile(CARD, package.card))
        package.notes.append(f"{CARD} is your own, {package.card}")
        return True
    if not licence:
        package.notes.append("the base model's licence is unknown: the card says so")
    if package.kind == "adapter" and not package.has("adapter_model.safetensors"):
        package.notes.append(
            "plain tensors, no peft adapter: the card shows how to load them; a merged folder is simpler"
        )
    (scratch / CARD).write_text(write_card(package, repo_id, licence), encoding="utf-8")
    package.files.append(PushFile(CARD, scratch / CARD))
    return False


def _refuse_leaks(package: "Package", repo_id: str, message: str) -> None:
    """Read every file that would go, and the commit's message.

    Raises:
        PushError: one holds a secret or a trace of this machine.
    """
    from mmtune.leak_scan import find_leaks, find_leaks_in_text, leaks_message, this_machine

    started_in = package.manifest.get("started_in")
    known = [Path(started_in) if started_in else None, package.base.folder]
    folders = [package.folder, package.card.parent, *(folder for folder in known if folder)]
    machine = this_machine(folders, public=[repo_id, package.base.id or ""])
    leaks = find_leaks_in_text("the commit's message", message, machine)
    for file in package.files:
        leaks += find_leaks(file.name, file.path, machine, copied=file.copied)
    if leaks:
        raise PushError(leaks_message(leaks, repo_id))


def _keep_card(package: "Package", own_card: bool) -> Path:
    """Leave the card where the user can read and change it."""
    from mmtune.ground.safe_files import write_text
    from mmtune.push_files import CARD

    if not own_card:
        card = next(file.path for file in package.files if file.name == CARD)
        write_text(package.card, card.read_text(encoding="utf-8"))
    return package.card


def _report(
    package: "Package",
    repo_id: str,
    *,
    card: Path | None = None,
    url: str = "",
    commit: str | None = None,
    removed: list[str] | None = None,
) -> PushReport:
    files = tuple((file.name, file.path.stat().st_size) for file in sorted(package.files, key=lambda each: each.name))
    return PushReport(
        repo_id=repo_id,
        url=url,
        commit=commit,
        dry_run=card is not None,
        kind=package.kind,
        files=files,
        card=card,
        removed=tuple(removed or ()),
        notes=tuple(package.notes),
        left=tuple(package.left),
    )
