"""Files that are whole or absent: written beside their place, synced, then renamed.

safetensors writes mode 0600 whatever the umask and does not sync, so both are mended here.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 20

LEFTOVER = re.compile(r"\.(?P<name>.+?)(?:\.(?P<pid>\d+)\.(?P<kind>part|old)|\.pruned)")
"""The hidden names that writing uses: ``.NAME.PID.part``, ``.NAME.PID.old``, and ``.NAME.pruned`` before removal."""


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; it takes the place of ``path`` only when the block ends well."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.chmod(beside, 0o666 & ~_umask())
        sync_file(beside)
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused because they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a path that is not UTF-8: escaped, it reads back as it was
        text = json.dumps(value, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors atomically, on the CPU, contiguous, with the umask's mode."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path) as beside:
        save_file(plain, beside, metadata={"format": "pt", **(metadata or {})})


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """Read a safetensors file to CPU tensors."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Every file below ``folder``, sorted by its path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder``; it appears under the final name only when the block ends well.

    Every file in it is synced and gets the umask's mode first. A folder that stands at the final name is replaced.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        for path in files_below(beside):
            os.chmod(path, 0o666 & ~_umask())
            sync_file(path)
        for path in [beside, *(p for p in beside.rglob("*") if p.is_dir())]:
            os.chmod(path, 0o777 & ~_umask())
            sync_folder(path)
        _swap_in(beside, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap_in(beside: Path, folder: Path) -> None:
    """Rename ``beside`` to ``folder``; what stood there is moved away first and removed last."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def sweep_leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Mend what a killed process left half done in ``folder``: call it where nothing is being written there.

    A ``.NAME.PID.old`` whose NAME is missing becomes NAME again (the kill fell between two renames); every other
    leftover is removed. Those of another process that still runs stay.

    Args:
        folder: where to look, not below it; it need not be there.
        name: only leftovers of this name.

    Returns:
        The leftovers that were dealt with, by their hidden names.
    """
    if not folder.is_dir():
        return []
    swept = []
    left = [(path, match) for path in folder.iterdir() if (match := LEFTOVER.fullmatch(path.name))]
    mine = [one for one in left if name in (None, one[1]["name"]) and not _is_running(one[1]["pid"])]
    for path, match in sorted(mine, key=_last_change, reverse=True):  # of several, the newest is renamed back
        final = folder / match["name"]
        if match["kind"] == "old" and not final.exists():
            os.replace(path, final)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        swept.append(path)
    if swept:
        sync_folder(folder)
    return swept


def _last_change(left: tuple[Path, re.Match[str]]) -> float:
    return left[0].lstat().st_mtime


def _is_running(pid: str | None) -> bool:
    """Whether another process of that number is there; one's own number is that of a process before this one."""
    if pid is None or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
