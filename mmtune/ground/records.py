"""The records that travel from a source to a loss. Nothing in them is decoded and nothing needs torch.

Shape letters used in this project: B samples, D embedding width, L text tokens, C/H/W image channels, height, width.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtune.ground.sound_reading import Sound


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


@dataclass(frozen=True)
class Sample:
    """One image or sound with every caption known for it.

    Attributes:
        id: stable and unique within the source; every random draw for the sample is a function of (seed, epoch, id).
        media: reference to the image or sound, not decoded.
        captions: what may be drawn as its text; at least one, none empty.
        also_true: further captions that describe the image but are never drawn for it; a text among ``captions`` or
            ``also_true`` is never a negative of the image.
        group: samples of one group are never split apart, and are resampled together by the bootstrap.
        columns: remaining table columns, as text.
        source: name of the source in a mix, "" where there is one source.
    """

    id: str
    media: MediaReference
    captions: tuple[str, ...]
    also_true: tuple[str, ...] = ()
    group: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class BadItem:
    """Something that was quarantined: ``where`` (file:line, path or sample id) and ``reason``, both `printable`."""

    where: str
    reason: str
    split: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "reason", printable(self.reason))


def a_type(value: object) -> str:
    """``a str``, ``an int``: what a message calls a value of the wrong type."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def printable(text: str) -> str:
    """Text that every file and terminal takes: ``\\udce9`` in letters where a file's name is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
