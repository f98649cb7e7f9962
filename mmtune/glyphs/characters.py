"""Which characters, in which fonts, under which name, and which of them are drawn alike.

A picture says which character it shows only as far as the font does: Latin X, Greek Chi and Cyrillic Ha are one
drawing. Characters that share a drawing somewhere form one *alike class*. A class is never cut by a split, and its
members are never each other's negatives.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from mmtune.glyphs.drawing import draw_clean, find_font_folder
from mmtune.ground.seeding import fraction_for

# Only fonts whose code points say what is drawn. The others that matplotlib ships put placeholders (LastResortHE) or
# unrelated shapes (cm*, STIXNonUni*, STIXSiz*) at ordinary code points.
FONTS: dict[str, tuple[str, ...]] = {
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "mono": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    "stix": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
INVISIBLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}  # Unicode categories that have no picture of their own
SPLIT_ENDS = {"train": 0.80, "validation": 0.88, "test": 1.0}  # share of the alike classes, cumulated


@dataclass(frozen=True)
class Glyph:
    """One character as one font draws it.

    Attributes:
        character: the character, a string of length 1.
        font: name of the font file without its ending.
        alike: id of the alike class, the smallest code point in it (`U+0058`).
    """

    character: str
    font: str
    alike: str

    @property
    def key(self) -> str:
        """Identity of the picture, such as `U+0058/DejaVuSans-Bold`."""
        return f"{format_code_point(self.character)}/{self.font}"


def format_code_point(character: str) -> str:
    """`U+0058` for X."""
    return f"U+{ord(character):04X}"


def caption_of(character: str) -> str:
    """The Unicode name in lower case: `greek capital letter chi`."""
    return unicodedata.name(character).lower()


def split_of(alike: str) -> str:
    """`train`, `validation` or `test`, a pure function of the alike class."""
    fraction = fraction_for(alike, "glyphs")
    return next(split for split, end in SPLIT_ENDS.items() if fraction < end)


@functools.lru_cache(maxsize=1)
def list_glyphs() -> tuple[Glyph, ...]:
    """Every picture there is (about 54,000), in the order of fonts and code points; takes a few seconds once."""
    drawn: dict[bytes, list[str]] = defaultdict(list)
    found: list[tuple[str, str]] = []
    for font in (name for family in FONTS.values() for name in family):
        missing = draw_clean("\uffff", font).tobytes()  # a noncharacter: shows what the font draws for what it lacks
        for character in _read_characters(font):
            picture = draw_clean(character, font)
            pixels = picture.tobytes()
            if picture.getextrema() == (255, 255) or pixels == missing:
                continue
            found.append((character, font))
            # Keyed by the picture alone: STIX draws `mathematical bold capital a` like the A of its bold font.
            drawn[hashlib.blake2b(pixels, digest_size=16).digest()].append(character)
    leader = join_alike(drawn.values())
    return tuple(Glyph(character, font, format_code_point(leader[character])) for character, font in found)


@functools.lru_cache(maxsize=1)
def map_alike() -> dict[str, tuple[str, ...]]:
    """Id of the alike class -> its characters by code point."""
    members: dict[str, set[str]] = defaultdict(set)
    for glyph in list_glyphs():
        members[glyph.alike].add(glyph.character)
    return {alike: tuple(sorted(characters)) for alike, characters in members.items()}


def join_alike(sets: Iterable[Iterable[str]]) -> dict[str, str]:
    """Union-find over sets of characters that share a drawing: character -> smallest character of its class."""
    parent: dict[str, str] = {}

    def find(character: str) -> str:
        parent.setdefault(character, character)
        while parent[character] != character:
            parent[character] = parent[parent[character]]
            character = parent[character]
        return character

    for characters in sets:
        first, *others = (find(character) for character in characters)
        for other in others:
            low, high = sorted((find(first), find(other)))
            parent[high] = low  # the smaller one leads, so the id does not depend on the order of the fonts
    return {character: find(character) for character in parent}


def _read_characters(font: str) -> list[str]:
    """Characters that the font maps, by code point, without controls, spaces and nameless ones."""
    from fontTools.ttLib import TTFont

    with TTFont(find_font_folder() / f"{font}.ttf", lazy=True) as file:
        code_points = sorted(file.getBestCmap())
    named = (chr(point) for point in code_points if unicodedata.name(chr(point), ""))
    return [character for character in named if unicodedata.category(character) not in INVISIBLE]
