"""``kind: glyphs``, the embedded data set: characters of the fonts that matplotlib ships, and their Unicode names.

One character drawn by one font is one sample; its caption is the character's name. The splits are fixed: 80 % of the
alike classes train, 8 % validate and 12 % test, by hash, so a drawing of the test split is never seen in training
under another name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mmtune.glyphs.characters import FONTS, Glyph, caption_of, list_glyphs, map_alike, split_of
from mmtune.glyphs.drawing import drawing_version
from mmtune.glyphs.looks import draw_look
from mmtune.ground.errors import DataError
from mmtune.ground.records import ContentStamp, Sample
from mmtune.ground.seeding import fraction_for
from mmtune.sources import OpenedSplit, SourceSection

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "validation", "test")

TINY_CHARACTERS = 6
"""Characters of every split in a tiny world: with one font each still more pictures than a small batch."""
Look = Literal["clean", "camera", "hollow"]
Family = Literal["sans", "serif", "mono", "stix"]


class Section(SourceSection):
    """Characters and their names, drawn on the spot; needs no download.

    As Python: ``Section(kind="glyphs", look="camera")``. As YAML: ``data: {kind: glyphs, look: camera}``.
    """

    kind: Literal["glyphs"] = Field(description="characters of matplotlib's fonts with their Unicode names")
    look: Look = Field(
        "camera",
        description="clean: black print on white, what builtin:glyph-clip was pretrained on; "
        "camera: ink on paper, photographed; hollow: outlines drawn by hand",
    )
    fonts: list[Family] = Field(
        ["sans", "serif", "mono", "stix"],
        min_length=1,
        description="font families that draw (DejaVu Sans, Serif and Mono, STIX General), each in four styles",
    )
    seed: int = Field(0, ge=0, description="seed of the look: another seed photographs the same characters anew")
    characters: int | None = Field(
        None, ge=1, description="use about this many characters of every split, chosen by hash; null: all"
    )


@dataclass(frozen=True)
class GlyphReference:
    """A picture that is drawn when it is read.

    Attributes:
        glyph: the character and its font.
        look: how it is shown, a key of `mmtune.glyphs.looks.LOOKS`.
        seed: seed of the look.
    """

    glyph: Glyph
    look: str
    seed: int

    @property
    def key(self) -> str:
        """Identity of the picture: character, font, look and seed."""
        return f"{self.glyph.key}/{self.look}/{self.seed}"

    @property
    def where(self) -> str:
        """For a report: ``U+0058 in DejaVuSans-Bold (camera, seed 0)``."""
        code_point, font = self.glyph.key.split("/")
        return f"{code_point} in {font} ({self.look}, seed {self.seed})"

    def content_stamp(self) -> ContentStamp:
        """Its identity, and that of the code and the fonts that draw it."""
        return f"glyph {self.key} {drawing_version()}", 0, 0, 0

    def read(self) -> "Image":
        """Draw it: 64 x 64 pixels, mode RGB."""
        return draw_look(self.glyph, self.look, self.seed)


def split_names(section: Section) -> tuple[str, ...]:
    """``train``, ``validation`` and ``test``, whatever the section says."""
    return SPLITS


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """All pictures of one split, ordered by font and code point; nothing is drawn yet and nothing can be bad.

    ``seed`` (of the run) is not used: the pictures follow ``section.seed``, so two runs see the same data.

    Raises:
        DataError: there is no such split, or matplotlib's fonts are not installed.
    """
    if split not in SPLITS:
        raise DataError(f"glyphs has no split {split!r}; it has {', '.join(SPLITS)}")
    try:
        glyphs = [glyph for glyph in list_glyphs() if split_of(glyph.alike) == split]
    except ModuleNotFoundError as error:
        raise DataError(str(error)) from error
    fonts = {font for family in section.fonts for font in FONTS[family]}
    chosen = _choose_alike({glyph.alike for glyph in glyphs if glyph.font in fonts}, section.characters)
    kept = (glyph for glyph in glyphs if glyph.font in fonts and glyph.alike in chosen)
    samples = tuple(_make_sample(glyph, section) for glyph in kept)
    return OpenedSplit(samples=samples, num_seen=len(samples))


def _make_sample(glyph: Glyph, section: Section) -> Sample:
    """The record of one picture; names of characters drawn alike are true of it too."""
    others = (character for character in map_alike()[glyph.alike] if character != glyph.character)
    return Sample(
        id=glyph.key,
        media=GlyphReference(glyph, section.look, section.seed),
        captions=(caption_of(glyph.character),),
        also_true=tuple(caption_of(character) for character in others),
        group=glyph.alike,
    )


def _choose_alike(classes: Iterable[str], num_characters: int | None) -> set[str]:
    """Whole alike classes in the order of their hash until they hold `num_characters` characters; None takes all."""
    ordered = sorted(classes, key=lambda alike: fraction_for(alike, "limit"))
    if num_characters is None:
        return set(ordered)
    chosen: set[str] = set()
    count = 0
    for alike in ordered:
        if count >= num_characters:
            break
        chosen.add(alike)
        count += len(map_alike()[alike])
    return chosen


def write_tiny(section: Section, folder: Path) -> Section:
    """Nothing is written: the same pictures of a few characters."""
    return section.model_copy(update={"characters": TINY_CHARACTERS})
