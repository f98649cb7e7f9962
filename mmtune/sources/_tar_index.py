"""What lies where in a tar file: one pass over its headers, then any member can be read alone. Nothing is extracted."""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mmtune.ground.errors import DataError
from mmtune.ground.image_reading import check_header, read_image
from mmtune.ground.records import ContentStamp, file_stamp, printable
from mmtune.sources._column_files import Stamp, stamp_of

if TYPE_CHECKING:
    from PIL.Image import Image

PICKLED = ("pyd", "pkl", "pickle", "pth", "pt")
"""Members that a loader of this format would unpickle, which runs whatever code their author wrote."""

TEXT_LIMIT = 2**20
"""Longest text member, in bytes: a caption, not a book."""

LOST = "what follows in it is lost: how many samples, nobody can tell"

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a shard: its full name, and the bytes it takes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Shard:
    """A shard that was gone through.

    Attributes:
        path: the file.
        stamp: what the file was then.
        members: key -> ending -> member; keys in the order of their first members.
        bad: (where, reason) of members that cannot be used, and of a damaged end.
        torn: keys of samples that the damaged end may have cost members.
        pickled: names of members left alone because only unpickling would read them.
    """

    path: str
    stamp: Stamp
    members: dict[str, dict[str, Member]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    torn: set[str] = field(default_factory=set)
    pickled: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TarImage:
    """A reference to an image in a shard.

    Attributes:
        path: the shard.
        stamp: what the shard was when it was gone through.
        name: the member's name.
        offset, size: the bytes it takes.
        key: shard and member, or the hash of the bytes where another shard has a member of that name.
    """

    path: str
    stamp: Stamp
    name: str
    offset: int
    size: int
    key: str

    @property
    def where(self) -> str:
        """``shard: member``."""
        return printable(f"{self.path}: {self.name}")

    def check(self) -> str | None:
        """Why the member is no image, as far as its header tells, or None; reads no more than the header."""
        try:
            with _opened(self.path, self.stamp) as file:
                return check_header(io.BufferedReader(_Span(file, self.offset, self.size)))
        except DataError as error:
            return str(error)

    def read(self) -> "Image":
        """The decoded RGB image.

        Raises:
            DataError: as `read_image`, or the shard has changed since it was gone through.
        """
        with _opened(self.path, self.stamp) as file:
            return read_image(read_span(file, self.offset, self.size), self.where)

    def content_stamp(self) -> ContentStamp | None:
        """Member and shard, with the shard's size and time."""
        place = f"{os.path.abspath(self.path)}: {self.name} at {self.offset}, {self.size} bytes"
        return file_stamp(self.path, place)

    def digest(self) -> str:
        """Hash of the member's bytes, hex."""
        with _opened(self.path, self.stamp) as file:
            return hashlib.blake2b(read_span(file, self.offset, self.size), digest_size=16).hexdigest()


def read_span(file: BinaryIO, offset: int, size: int) -> bytes:
    """The bytes of a member."""
    file.seek(offset)
    return file.read(size)


@contextmanager
def _opened(path: str, stamp: Stamp) -> Iterator[BinaryIO]:
    """The shard, if it is what it was."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != stamp:
            raise DataError(f"{path}: the shard changed: it is not what it was when the run began")
        yield file


class _Span(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.place = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        self.place = max(0, start + place)
        return self.place

    def readinto(self, buffer: Any) -> int:
        content = read_span(self.file, self.offset + self.place, max(0, min(len(buffer), self.size - self.place)))
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


def index_shard(path: Path) -> Shard:
    """Go through a shard's headers; the result is kept as long as the file stays the same.

    Raises:
        DataError: the shard is compressed or cannot be opened.
    """
    return _index(str(path), stamp_of(path))


@cache
def _index(path: str, stamp: Stamp) -> Shard:
    with open(path, "rb") as file:
        start = file.read(2)
    if start in _COMPRESSED:
        name = _COMPRESSED[start]
        raise DataError(
            f"{path} is compressed ({name}): a member of it cannot be read alone. Unpack it once to a plain .tar; "
            "images are compressed already, so little is lost"
        )
    shard = Shard(path, stamp)
    try:
        with tarfile.open(path, "r:") as tar:
            _collect(tar, shard)
    except (tarfile.TarError, ValueError) as error:
        _note_damage(shard, str(error))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return shard


def _collect(tar: tarfile.TarFile, shard: Shard) -> None:
    """Sort the members by key. A damaged header ends the pass, and so does one that leads backwards."""
    end, last = shard.stamp[0], -1
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps every header
        if info.size < 0 or info.offset <= last:
            _note_damage(shard, f"impossible header at byte {info.offset}")
            return
        last = info.offset
        _sort_in(info, end, shard)
    _check_tail(shard, tar.offset)


def _check_tail(shard: Shard, position: int) -> None:
    """tarfile takes a header of garbage for the end; a true end is blocks of zeros. Where there is nothing at all, some
    writers end so, and some shards were cut there: only the last sample can tell."""
    with open(shard.path, "rb") as file:
        file.seek(position)
        block = file.read(512)
    if block.strip(b"\0"):
        _note_damage(shard, f"no header at byte {position}")
    elif not block:
        shard.torn.update(list(shard.members)[-1:])


def _note_damage(shard: Shard, what: str) -> None:
    """One bad item, whatever it cost: what cannot be read cannot be counted."""
    shard.bad.append((shard.path, f"damaged shard: {what}; what comes before it is used, {LOST}"))
    shard.torn.update(list(shard.members)[-1:])


def _sort_in(info: tarfile.TarInfo, end: int, shard: Shard) -> None:
    where = f"{shard.path}: {printable(info.name)!r}"
    if not info.isfile():
        if not info.isdir():
            shard.bad.append((where, "not a plain file: links and devices in a shard are left alone"))
        return
    key, ending = split_name(info.name)
    if not ending or key.rpartition("/")[2] == "":
        return  # a README, a .DS_Store: part of no sample
    if ending.rpartition(".")[2] in PICKLED:
        shard.pickled.append(info.name)
        return
    problem = _name_problem(info.name)
    if problem is None and info.offset_data + info.size > end and not info.issparse():
        shard.members.setdefault(key, {})
        _note_damage(shard, f"it ends within '{info.name}'")
        return
    if problem is None and info.issparse():
        problem = "sparse member"
    there = shard.members.setdefault(key, {}) if problem is None else {}
    if problem is None and ending in there:
        problem = f"name occurs twice: '{info.name}' is in the shard already"
    if problem is not None:
        shard.bad.append((where, problem))
        return
    there[ending] = Member(info.name, info.offset_data, info.size)


def split_name(name: str) -> tuple[str, str]:
    """(key, ending in small letters): everything before and after the first dot of the last part of the name."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _name_problem(name: str) -> str | None:
    """Why a member's name cannot be a key."""
    if printable(name) != name:
        return "bad name: not UTF-8"
    if re.search(r"[\x00-\x1f\x7f-\x9f\\]", name):
        return "bad name: control characters or backslashes"
    if name.startswith("/") or ".." in name.split("/"):
        return "bad name: leads out of the shard"
    return None
