"""An image or a sound as it is shown, before anybody has read it.

Who encodes it may not need its pixels: what a frozen trunk made of it may be known already. So what travels to a family
that can tell (``trunk_feeding``) is the reference with the change that is due; every other family gets what was read.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmtune.ground.image_augmentation import AugmentSection, augment
from mmtune.ground.records import MediaReference, Turn
from mmtune.ground.seeding import generator_for


@dataclass(frozen=True)
class ShownMedia:
    """A reference, and how it is changed when it is read.

    Attributes:
        reference: what is shown.
        change: the random changes of training images; None: it is shown as it is.
        draw: what the change is drawn by: the arguments of ``generator_for``.
    """

    reference: MediaReference
    change: AugmentSection | None = None
    draw: tuple[Any, ...] = ()

    @property
    def view(self) -> str | None:
        """What of its pixels the reference does not tell: "" where nothing; None where they are new every time."""
        if self.change is None or self.change.is_idle:
            return ""
        if self.change.views is None:
            return None
        return f"{self.change.model_dump_json()} {self.draw}"

    def read(self) -> Any:
        """The image (RGB) or the sound, changed.

        Raises:
            DataError: it cannot be read.
        """
        return self.changed(self.reference.read())

    def changed(self, media: Any) -> Any:
        """What was read, as it is shown."""
        if self.change is None or self.change.is_idle:
            return media
        return augment(media, self.change, generator_for(*self.draw))


def show(media: MediaReference, change: AugmentSection, seed: int, turn: int, sample: str, choice: int | None) -> Any:
    """A training image as a turn shows it, changed at random by (seed, turn, sample, choice).

    With ``views`` there are so many of each image, the same for all its captions and questions.
    """
    if change.views is not None:
        name = os.path.basename(media.key)  # not its folder: data may move
        return ShownMedia(media, change, (seed, "view", turn % change.views, name))
    return ShownMedia(media, change, (seed, "augment", turn, sample, choice))


def opened(family: Any, shown: ShownMedia) -> Any:
    """What a family is given: the pixels, or the reference where it reads for itself.

    Raises:
        DataError: it cannot be read.
    """
    return shown if getattr(family, "reads", False) else shown.read()


def read_images(family: Any, turns: Iterable[Turn]) -> list[Any]:
    """The images of all turns, in their order, as the family takes them.

    Raises:
        DataError: one cannot be read.
    """
    return [opened(family, ShownMedia(one)) for turn in turns for one in turn.media]


def content_hash(media: Any) -> bytes:
    """16 bytes that tell what was read: of an image its mode, size and pixels, of a sound its rate and waveform."""
    digest = hashlib.blake2b(digest_size=16)
    if hasattr(media, "tobytes"):
        digest.update(f"{media.mode} {media.size}".encode())
        digest.update(media.tobytes())
    else:
        digest.update(f"sound {media.rate}".encode())
        digest.update(media.waveform.tobytes())
    return digest.digest()
