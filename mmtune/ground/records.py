"""The records that travel from a source to a loss. Nothing in them is decoded and nothing needs torch.

Shape letters used in this project: B samples, D embedding width, L text tokens, C/H/W image channels, height, width.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtune.ground.sound_reading import Sound


ContentStamp = tuple[str, int, int, int]
"""(name, bytes, nanoseconds of the last change of the content, and of anything): as long as all stay, so does what is
read there. Unpacking and copying may keep the first time; nothing keeps the second."""

MEDIA_WORDS = {"image": "images", "audio": "sounds"}
"""Modality -> what several of them are called in messages and files."""


class MediaReference(Protocol):
    """Where an image or a sound is, not the thing itself: picklable, small, read in the loader's workers."""

    @property
    def key(self) -> str:
        """Identity: two references with one key are the same image or sound (positives of each other)."""
        ...

    @property
    def where(self) -> str:
        """What a report shows a person: a path, or how it was drawn."""
        ...

    def read(self) -> "Image | Sound":
        """Decode to an RGB image, or to a sound.

        Raises:
            DataError: it is missing, damaged, too large or of a format that is not allowed.
        """
        ...


@dataclass(frozen=True)
class FileReference:
    """What references to files share: nothing is opened before they are read.

    Attributes:
        path: as the user wrote it.
        key: the resolved path, so that one file under two names (links, ``./``) is one image or sound.
    """

    path: str
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", os.path.realpath(self.path))

    @property
    def where(self) -> str:
        """The path, for people."""
        return printable(self.path)

    def content_stamp(self) -> "ContentStamp | None":
        """The path with the file's size and time; None where there is no such file."""
        return file_stamp(self.key)


@dataclass(frozen=True)
class NoMedia:
    """Stands where a sample has no image: a conversation in words alone. It belongs to its own sample and no other.

    Attributes:
        key: the sample's id.
        where: its file and line.
    """

    key: str
    where: str

    def read(self) -> "Image | Sound":
        """Nothing can be read.

        Raises:
            DataError: always.
        """
        from mmtune.ground.errors import DataError

        raise DataError(f"{self.where}: there is no image")


@dataclass(frozen=True)
class Turn:
    """What one side says in a conversation.

    Attributes:
        role: who speaks.
        content: pieces of text and references to images, in their order.
    """

    role: Literal["system", "user", "assistant"]
    content: "tuple[str | MediaReference, ...]"

    @property
    def text(self) -> str:
        """Its words, without the images."""
        return "".join(piece for piece in self.content if isinstance(piece, str))

    @property
    def media(self) -> "tuple[MediaReference, ...]":
        """Its images, in their order."""
        return tuple(piece for piece in self.content if not isinstance(piece, str))


@dataclass(frozen=True)
class Sample:
    """One image or sound with everything known of it: captions, a question with its answers, or a conversation.

    Attributes:
        id: stable and unique within the source; every random draw for the sample is a function of (seed, epoch, id).
        media: reference to the image or sound, not decoded.
        captions: what may be drawn as its text; none empty; at least one for tasks that show captions.
        also_true: further captions that describe the image but are never drawn for it; a text among ``captions`` or
            ``also_true`` is never a negative of the image.
        group: samples of one group are never split apart, and are resampled together by the bootstrap.
        columns: remaining table columns, as text.
        source: name of the source in a mix, "" where there is one source.
        question: what is asked about the image, "" where nothing is.
        answers: what people answered, one each; equal answers are kept, they are votes.
        label: whether ``captions[0]`` is true of the image; None where nobody says.
        turns: a conversation about the image, or several images; it ends with what the assistant says.
    """

    id: str
    media: MediaReference
    captions: tuple[str, ...] = ()
    also_true: tuple[str, ...] = ()
    group: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    question: str = ""
    answers: tuple[str, ...] = ()
    label: bool | None = None
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class BadItem:
    """Something that was quarantined: ``where`` (file:line, path or sample id) and ``reason``, both `printable`."""

    where: str
    reason: str
    split: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "reason", printable(self.reason))


def file_stamp(path: str, name: str = "") -> ContentStamp | None:
    """What tells whether a file is still the same, under ``name`` or its own path; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return name or path, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def a_type(value: object) -> str:
    """``a str``, ``an int``: what a message calls a value of the wrong type."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def printable(text: str) -> str:
    """Text that every file and terminal takes: ``\\udce9`` in letters where a file's name is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
