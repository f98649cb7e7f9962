"""How to see a recipe key at work; the ``effects_*`` files hold one entry per key of the schema."""

from typing import NamedTuple

from key_worlds import Look


class Effect(NamedTuple):
    """How to see a key at work: a base recipe, two settings of the key, and where to look."""

    look: Look
    base: str
    before: list[str]
    after: list[str]
    aspect: str = ""


def key(look: Look, base: str, before: str, after: str, aspect: str = "", more: tuple[str, ...] = ()) -> Effect:
    """Both settings as one override each ("" for the base recipe's own), ``more`` in both."""
    settings = [[text, *more] if text else list(more) for text in (before, after)]
    return Effect(look, base, settings[0], settings[1], aspect)
