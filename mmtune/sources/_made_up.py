"""Made-up pictures, tones and captions: what every kind's ``write_tiny`` writes in its own columns and splits."""

import io
import itertools
import math
import struct
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmtune.ground.sound_reading import Sound, read_sound
from mmtune.sources._captions import CaptionRule
from mmtune.sources._splits import HashSplit

NUM_PICTURES = 24
NUM_CAPTIONS = 2
"""Captions of each picture, where the format has room for more than one."""

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (230, 200, 40),
    "violet": (140, 60, 190),
    "grey": (128, 128, 128),
}


LENGTHS = {"short": 0.3, "long": 0.8}
"""Word in a caption -> seconds of the tone."""

PEAKS = {"quiet": 2_000, "loud": 20_000, "medium": 7_000}
"""Word in a caption -> largest value of the tone, of 32,767."""

HEIGHTS = ("low", "mid", "high")


@dataclass(frozen=True)
class MadeUp:
    """One picture or tone of the made-up data.

    Attributes:
        number: from 0.
        split: where it belongs.
        attempt: how many names were tried before the hash put one into the split; 0 where nothing is hashed.
        group: the name that was hashed, "" where nothing is.
    """

    number: int
    split: str
    attempt: int = 0
    group: str = ""

    @property
    def name(self) -> str:
        """A file name without its ending."""
        return file_stem(self.number, self.attempt)


def file_stem(number: int, attempt: int) -> str:
    """A file name without its ending, another one for every attempt."""
    return f"tiny{number:02d}x{attempt}"


def group_name(number: int, attempt: int) -> str:
    """What a column that names the group holds."""
    return f"group {number}.{attempt}"


def make_up(
    names: Sequence[str], by_hash: HashSplit | None = None, group: Callable[[int, int], str] = file_stem
) -> list[MadeUp]:
    """Pictures for every split: a quarter each for validation and test, the rest for training.

    Args:
        names: the splits there are.
        by_hash: where a hash decides, pictures get names that it puts into the split they are for.
        group: the name that is hashed, of (number, attempt).
    """
    held_out = [name for name in names if name != "train"]
    found = []
    for number in range(NUM_PICTURES):
        place = number % 4 if "train" in names else number % len(names)
        split = held_out[place] if place < len(held_out) else "train"
        if by_hash is None:
            found.append(MadeUp(number, split))
            continue
        attempt = next(i for i in itertools.count() if by_hash.assign(group(number, i)) == split)
        found.append(MadeUp(number, split, attempt, group(number, attempt)))
    return found


def picture(number: int, attempt: int = 0, form: str = "PNG") -> bytes:
    """The file of a picture of 32 to 64 pixels a side: a spot on a ground. Other attempts give other bytes."""
    from PIL import Image, ImageDraw
    from PIL.PngImagePlugin import PngInfo

    width, height = 32 + number * 5 % 33, 32 + number * 11 % 33
    spot, ground = _colours(number)
    image = Image.new("RGB", (width, height), COLOURS[ground])
    x, y = number * 7 % (width // 2), number * 3 % (height // 2)
    ImageDraw.Draw(image).ellipse((x, y, x + width // 2, y + height // 2), COLOURS[spot])
    note = PngInfo()
    note.add_text("attempt", str(attempt))
    file = io.BytesIO()
    image.save(file, form, **({"pnginfo": note} if form == "PNG" else {}))
    return file.getvalue()


def tone(number: int, *, seconds: float = 0.5, rate: int = 16_000, peak: int = 12_000) -> bytes:
    """A WAV file with a tone of its own height, 16 bits, mono."""
    turn = 2 * math.pi * _hertz(number) / rate
    values = (round(peak * math.sin(turn * step)) for step in range(round(seconds * rate)))
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(b"".join(struct.pack("<h", value) for value in values))
    return file.getvalue()


def sound(number: int) -> bytes:
    """The WAV file of a tone as `captions` tell it: its height, its length and its loudness."""
    return tone(number, seconds=LENGTHS[_length(number)], peak=PEAKS[_loudness(number)])


def captions(number: int, modality: str = "image") -> list[str]:
    """Two captions of a picture, or of a sound."""
    if modality == "audio":
        height = HEIGHTS[number * len(HEIGHTS) // NUM_PICTURES % len(HEIGHTS)]
        words, pitch = f"{_loudness(number)} {_length(number)}", f"{_hertz(number):.0f} hertz"
        return [f"a {words} tone, {pitch}", f"{pitch}: {height}, {words.replace(' ', ', ')}"]
    spot, ground = _colours(number)
    return [f"a {spot} spot on {ground}, number {number}", f"number {number}: {ground} with a spot of {spot}"]


def questions(number: int, modality: str = "image") -> list[tuple[str, str]]:
    """Two questions about a picture, or a sound, each with its answer of one word."""
    if modality == "audio":
        return [("how loud is the tone?", _loudness(number)), ("how long is the tone?", _length(number))]
    spot, ground = _colours(number)
    return [("what colour is the spot?", spot), ("what colour is the ground?", ground)]


def cells(rule: CaptionRule, number: int, variant: int, modality: str = "image") -> dict[str, str]:
    """The columns that a caption rule reads, filled for one of the `NUM_CAPTIONS` captions."""
    text = captions(number, modality)[variant]
    if rule.pieces is None:
        return {rule.text: text}
    first, *others = rule.columns
    return {first: text, **{column: f"{column} {number}.{variant}" for column in others}}


def _hertz(number: int) -> float:
    return 220 * 2 ** (number / 12)


def _length(number: int) -> str:
    return list(LENGTHS)[number // 4 % len(LENGTHS)]  # each split has every fourth number


def _loudness(number: int) -> str:
    return list(PEAKS)[number % len(PEAKS)]


def _colours(number: int) -> tuple[str, str]:
    names = list(COLOURS)
    spot = number % len(names)
    return names[spot], names[(spot + 1 + number // len(names)) % len(names)]


@dataclass(frozen=True)
class Tone:
    """A tone that is made when it is read."""

    number: int

    @property
    def key(self) -> str:
        """Its number."""
        return f"tone {self.number}"

    where = key

    def read(self) -> Sound:
        """Half a second at a pitch of its own."""
        return read_sound(tone(self.number), self.where)
