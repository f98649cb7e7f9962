"""One row to the turns of a conversation: OpenAI's ``messages``, ShareGPT and LLaVA's JSON, told apart by keys."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from mmtune.ground.records import MediaReference, Turn, a_type
from mmtune.sources._named_files import BadRow

Role = Literal["system", "user", "assistant"]

ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
TURN_KEYS = ("messages", "conversations")
OWN_KEYS = frozenset({*TURN_KEYS, "system", "image", "images"})
"""Keys of a row that are read here; the others stay columns."""

WEIGHT_KEYS = ("weight", "loss", "loss_weight")
"""Keys of a turn by which other trainers leave it out of the loss, 0 or false."""

PLACEHOLDER = "<image>"

_BREAK_AFTER = re.compile(r"\A[ \t]*\n")
_BREAK_BEFORE = re.compile(r"\n[ \t]*\Z")


@dataclass(frozen=True)
class Picture:
    """An image in a turn: its own path or address, or None for the row's next one."""

    path: str | None = None


Piece = str | Picture


def turns_of(values: Mapping[str, Any], image_of: Callable[[str], MediaReference]) -> tuple[tuple[Turn, ...], bool]:
    """The conversation of a row, and whether turns of one side in a row were joined (by a line break).

    The line break with which these formats set an image apart from the text is left out, as is white space around a
    turn: chat templates bring their own.

    Args:
        values: the row.
        image_of: the reference that a path or an address stands for.

    Raises:
        BadRow: everything that is wrong with it, with the number of the turn.
    """
    problems: list[str] = []
    drafts: list[tuple[Role, list[Piece]]] = []
    for number, entry in _entries(values):
        try:
            drafts.append(_draft(entry, number))
        except BadRow as problem:
            problems.append(str(problem))
    drafts = [(role, pieces) for role, pieces in drafts if pieces or role != "system"]
    joined = _joined(drafts)
    if not problems:
        problems += _out_of_order([role for role, _ in joined])
    paths = _row_images(values)
    problems += _miscounted(sum(piece == Picture() for _, pieces in drafts for piece in pieces), len(paths))
    if problems:
        raise BadRow("; ".join(problems))
    waiting = iter(paths)
    turns = []
    for role, pieces in joined:
        content = (one if isinstance(one, str) else image_of(one.path or next(waiting)) for one in pieces)
        turns.append(Turn(role, tuple(content)))
    return tuple(turns), len(joined) < len(drafts)


def _entries(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(what a message calls it, entry) of every turn; a ``system`` beside the turns comes first."""
    key = next((key for key in TURN_KEYS if values.get(key) is not None), None)
    if key is None:
        there = ", ".join(list(values)[:10]) or "nothing"
        raise BadRow(f"no conversation: the row has {there}; write a list of turns under {' or '.join(TURN_KEYS)}")
    listed = values[key]
    if not isinstance(listed, list):
        raise BadRow(f"no list of turns: '{key}' holds {a_type(listed)}")
    if not listed:
        raise BadRow(f"no turns: '{key}' is an empty list")
    entries = [(f"turn {number}", entry) for number, entry in enumerate(listed, start=1)]
    system = values.get("system")
    return entries if system is None else [("system", {"role": "system", "content": system}), *entries]


def _draft(entry: Any, number: str) -> tuple[Role, list[Piece]]:
    """Role and tidied pieces of one turn."""
    if not isinstance(entry, dict):
        raise BadRow(f"not a turn: {number} is {a_type(entry)}, not an object with role and content")
    said = entry["role"] if "role" in entry else entry.get("from")
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise BadRow(f"unknown role: {number} is by {said!r}; write one of {', '.join(ROLES)}")
    unlearned = next((key for key in WEIGHT_KEYS if entry.get(key) not in (None, 1)), None)
    if role == "assistant" and unlearned:
        raise BadRow(
            f"turn with a weight of its own: {number} has {unlearned} {entry[unlearned]!r}; all that the assistant "
            "says is learned alike: put what should not be learned into the user's turn, or end the row before it"
        )
    pieces = _tidied(_pieces(entry["content"] if "content" in entry else entry.get("value"), number))
    if not pieces and role != "system":
        raise BadRow(f"empty {'answer' if role == 'assistant' else 'turn'}: {number} ({said}) says nothing")
    if role != "user" and any(isinstance(piece, Picture) for piece in pieces):
        raise BadRow(f"image in a wrong turn: {number} is by {said!r}; images and {PLACEHOLDER} stand in user turns")
    return role, pieces


def _pieces(content: Any, number: str) -> list[Piece]:
    if content is None:
        return []
    if isinstance(content, str):
        return _split(content)
    if not isinstance(content, list):
        raise BadRow(f"content is not text: {number} holds {a_type(content)}; write a text, or a list of parts")
    found: list[Piece] = []
    for part in content:
        found += _split(part) if isinstance(part, str) else _part(part, number)
    return found


def _part(part: Any, number: str) -> list[Piece]:
    """``{"type": "text", ...}``, ``{"type": "image", ...}`` or ``{"type": "image_url", ...}``."""
    form = part.get("type") if isinstance(part, dict) else None
    if form == "text" and isinstance(part.get("text"), str):
        return _split(part["text"])
    if form in ("image", "image_url"):
        named = next((part[key] for key in ("image", "image_url", "path", "url") if part.get(key) is not None), None)
        return [Picture(None if named is None else path_of(named, number))]
    what = repr(form) if isinstance(form, str) else a_type(part)
    raise BadRow(f"unknown content: {number} has a part {what}; write type text (with text), image or image_url")


def path_of(named: Any, where: str) -> str:
    """The path or address that ``"a.png"``, ``{"url": "a.png"}`` and ``{"path": "a.png"}`` stand for.

    Raises:
        BadRow: it is neither.
    """
    path = next((named[key] for key in ("url", "path") if key in named), None) if isinstance(named, dict) else named
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise BadRow(f"image is no path: {where} holds {a_type(named)}; write its path")
    return path.strip()


def _split(text: str) -> list[Piece]:
    """A text with its placeholders taken out."""
    texts = text.replace("\r\n", "\n").split(PLACEHOLDER)
    found: list[Piece] = [texts[0]]
    for rest in texts[1:]:
        found += [Picture(), rest]
    return found


def _tidied(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring texts are one; no line break between image and text, no white space around all."""
    found: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    for place, piece in enumerate(found):
        if isinstance(piece, str):
            piece = piece.lstrip() if place == 0 else _BREAK_AFTER.sub("", piece)
            found[place] = piece.rstrip() if place == len(found) - 1 else _BREAK_BEFORE.sub("", piece)
    return [piece for piece in found if piece != ""]


def _joined(drafts: Sequence[tuple[Role, list[Piece]]]) -> list[tuple[Role, list[Piece]]]:
    """Turns of one side in a row as one: most chat templates take no others."""
    joined: list[tuple[Role, list[Piece]]] = []
    for role, turns in groupby(drafts, key=lambda one: one[0]):
        first, *others = (pieces for _, pieces in turns)
        pieces = list(first)
        for more in others:
            pieces += ["\n", *more] if isinstance(pieces[-1], str) and isinstance(more[0], str) else more
        joined.append((role, _tidied(pieces) if others else pieces))
    return joined


def _out_of_order(roles: Sequence[Role]) -> list[str]:
    """A system turn, if there is one, then user and assistant in turn, the assistant last."""
    spoken = list(roles[1:] if roles[:1] == ["system"] else roles)
    problems = []
    if "system" in spoken:
        problems.append("system turn in the middle: it may only stand first")
    if spoken[:1] != ["user"]:
        problems.append("nobody asked: the first turn after the system's is the user's")
    if not roles or roles[-1] != "assistant":
        last = f"is the {roles[-1]}'s" if roles else "is missing"
        problems.append(f"no answer to learn: the last turn {last}; it must be the assistant's (assistant or gpt)")
    return problems


def _row_images(values: Mapping[str, Any]) -> list[str]:
    """The row's ``image`` or ``images``: one or a list, each a path, an address or ``{"path": ...}``."""
    if other := next((key for key in ("video", "videos", "audio", "audios") if values.get(key)), None):
        raise BadRow(f"no images: the row has {other}, and images alone are read: its words are about what nobody sees")
    given = {key: values[key] for key in ("image", "images") if values.get(key) not in (None, "", [])}
    if len(given) == 2:
        raise BadRow("both image and images: the row has both; keep one of them")
    return [
        path_of(each, f"'{key}'")
        for key, named in given.items()
        for each in (named if isinstance(named, list) else [named])
    ]


def _miscounted(num_places: int, num_images: int) -> list[str]:
    if num_places == num_images:
        return []
    images = f"{num_images} image{'' if num_images == 1 else 's'} in image or images"
    if not num_places:
        return [f"missing image placeholder: {images}; write {PLACEHOLDER} in the user's text where each stands"]
    which = "more" if num_places > num_images else "fewer"
    return [f"{which} placeholders than images: {num_places} {PLACEHOLDER} and {images}; write one for each image"]


def count_joined(flags: Sequence[bool]) -> list[str]:
    """A note on how many conversations had turns joined; none where none had."""
    num = Counter(flags)[True]
    return [f"{num} conversations have turns of one side in a row; they were joined by a line break"] if num else []
