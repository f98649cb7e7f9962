"""Recipe text to plain values, with the place of every key: YAML 1.2, and nothing is converted silently.

What YAML 1.1 and 1.2 read differently (``010``, ``1_000``, ``1:30``) is an error that says what to write; ``1e-4`` is a
number; ``yes`` and ``no`` are text, and the schema says what to write where true or false is asked for.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from mmtune.ground.errors import RecipeError

KeyPath = tuple[str | int, ...]
COMMAND_LINE = "command line"
MAX_DEPTH = 20  # levels of nesting; a recipe has five

NULL = re.compile(r"(~|null|Null|NULL|)\Z")
BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")
INT = re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
OLD_OCTAL = re.compile(r"[-+]?0[0-9]+\Z")
OLD_UNDERSCORE = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?\Z")
OLD_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?\Z")
OLD_BINARY = re.compile(r"[-+]?0b[01_]+\Z")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: ``where`` ("file:line" or "command line"), the dotted key, and what would be right."""

    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.what) if part)


@dataclass
class RecipeText:
    """What a recipe file and its overrides say.

    Attributes:
        name: the file, as the user called it.
        values: plain dicts, lists, str, int, float, bool and None.
        places: key path -> "file:line" or "command line".
        spelled: key path of a scalar -> its characters in the file (``1.20`` where the value is 1.2).
        problems: what is wrong with the text itself.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    spelled: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place_of(self, path: KeyPath) -> str:
        """Where the key stands, or the nearest section above it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, f"{self.name}:1")

    def report(self, path: KeyPath, what: str, place: str = "") -> None:
        """Note a problem with the key at ``path``."""
        self.problems.append(Problem(place or self.place_of(path), dotted(path), what))


def dotted(path: KeyPath) -> str:
    """``("adapter", "parts", 1)`` -> ``adapter.parts[1]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return text if text.isprintable() else repr(text)


def read_recipe_text(path: str | Path, overrides: Sequence[str] = ()) -> RecipeText:
    """Read a recipe file and lay ``section.key=value`` overrides over it.

    Raises:
        RecipeError: there is no such file, or it is not text.
    """
    source = Path(path)
    try:
        raw = source.read_bytes()
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe{_where_it_may_be(source)}") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: is not UTF-8 text; save the recipe as UTF-8") from error
    recipe = parse_recipe_text(text, str(path))
    for override in overrides:
        _lay_over(recipe, override)
    return recipe


def _where_it_may_be(path: Path) -> str:
    beside = path.with_name(f"{path.name}.yaml")
    if beside.is_file():
        return f"; did you mean {beside}?"
    return f"; one of `mmtune recipes list` is copied first: mmtune recipes copy {path.stem}"


def parse_recipe_text(text: str, name: str) -> RecipeText:
    """Values, places and problems of a recipe's text; what is wrong is in ``problems``, nothing is raised."""
    builder = _Builder(RecipeText(name), text)
    values = builder.build()
    if isinstance(values, dict):
        builder.recipe.values = values
    elif not builder.recipe.problems:
        builder.recipe.report((), "a recipe is a mapping of sections such as `backbone: {id: ...}`, and this is not")
    return builder.recipe


class _Builder:
    """Plain values out of one document's YAML events; ``fixed_place`` replaces line numbers for overrides."""

    def __init__(self, recipe: RecipeText, text: str, fixed_place: str = "") -> None:
        self.recipe = recipe
        self.fixed_place = fixed_place
        self.events: Iterator[Any] = iter(YAML(typ="rt", pure=True).parse(text))

    def build(self, path: KeyPath = ()) -> Any:
        """The document's value, or None where the text is not YAML."""
        try:
            value = self._document(path)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.recipe.report(path, _explain(error), self._place(mark.line if mark else 0))
            return None
        except YAMLError as error:  # characters that YAML forbids
            self.recipe.report(path, f"is not YAML: {str(error).splitlines()[0]}", self._place(0))
            return None
        return value

    def _document(self, path: KeyPath) -> Any:
        value: Any = None
        num_documents = 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    what = "a second document begins here; a recipe is one document, so delete `---`"
                    self.recipe.report(path, what, self._place(event.start_mark.line))
                    return value
            elif isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent, AliasEvent)):
                value = self._value(event, path)
        return value

    def _place(self, line: int) -> str:
        return self.fixed_place or f"{self.recipe.name}:{line + 1}"

    def _value(self, event: Any, path: KeyPath) -> Any:
        place = self._place(event.start_mark.line)
        if path:
            self.recipe.places.setdefault(path, place)
        if isinstance(event, AliasEvent) or event.anchor:
            self.recipe.report(path, "anchors and aliases are not part of a recipe; write the value out", place)
        elif event.tag:
            self.recipe.report(path, f"the tag {event.tag} is not part of a recipe; quote what is text", place)
        if isinstance(event, MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path)
        if isinstance(event, AliasEvent):
            return None
        return self._scalar(event, path, place)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for event in self.events:
            if isinstance(event, MappingEndEvent):
                break
            place = self._place(event.start_mark.line)
            if not isinstance(event, ScalarEvent) or event.value == "<<":
                self.recipe.report(path, "a key must be a word; write every key out", place)
                self._value(event, (*path, "?"))
                self._value(next(self.events), (*path, "?"))
                continue
            here = (*path, str(event.value))
            if event.value in values:
                first = self.recipe.place_of(here)
                self.recipe.report(here, f"stands twice, first at {first}; keep one of the two", place)
                self._value(next(self.events), (*path, "?", event.value))
                continue
            self.recipe.places[here] = place
            values[event.value] = self._nested(next(self.events), here)
        return values

    def _sequence(self, path: KeyPath) -> list[Any]:
        values: list[Any] = []
        for event in self.events:
            if isinstance(event, SequenceEndEvent):
                break
            values.append(self._nested(event, (*path, len(values))))
        return values

    def _nested(self, event: Any, path: KeyPath) -> Any:
        if len(path) > MAX_DEPTH:
            raise MarkedYAMLError(problem="is nested too deeply", problem_mark=event.start_mark)
        return self._value(event, path)

    def _scalar(self, event: Any, path: KeyPath, place: str) -> Any:
        text = str(event.value)
        if event.style is not None:
            return text
        self.recipe.spelled[path] = text
        trap = _trap(text)
        if trap:
            self.recipe.report(path, trap, place)
            return None
        return _resolve(text)


def _resolve(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2."""
    if NULL.match(text):
        return None
    if BOOL.match(text):
        return text.lower() == "true"
    if INT.match(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    return float(text) if FLOAT.match(text) else text


def _trap(text: str) -> str:
    """What is wrong with a plain scalar that YAML 1.1 and 1.2 read differently, or that is no usable number."""
    as_text = f"or '{text}' in quotes if it is text"
    if OLD_OCTAL.match(text):
        return f"{text} is {_old_octal(text)} in YAML 1.1 and {int(text)} in 1.2; write {int(text)}, {as_text}"
    if OLD_UNDERSCORE.match(text):
        return f"{text} is text in YAML 1.2; write {text.replace('_', '')}, {as_text}"
    if OLD_SEXAGESIMAL.match(text):
        return f"{text} is a number to the base 60 in YAML 1.1; write the plain number, {as_text}"
    if OLD_BINARY.match(text):
        return f"{text} is text in YAML 1.2; write {int(text.replace('_', ''), 2)}, {as_text}"
    if NOT_FINITE.match(text) or (FLOAT.match(text) and not math.isfinite(float(text))):
        return f"{text} is not a finite number; write a number, {as_text}"
    return ""


def _old_octal(text: str) -> str:
    return str(int(text, 8)) if re.fullmatch(r"[-+]?[0-7]+", text) else "text"


def _explain(error: MarkedYAMLError) -> str:
    """ruamel's message in words that say what to write."""
    problem = error.problem or "is not YAML"
    if "expected '<document start>'" in problem:
        return "text that begins with { or [ needs quotes of its own: data.caption='\"{title} by {brand}\"'"
    if "'\\t'" in problem:
        return "a tab stands here; YAML is indented with spaces"
    if "cannot start any token" in problem:
        return f"{problem}; put the text in quotes"
    if "mapping values are not allowed" in problem:
        return "a second `: ` on one line; put text that holds a colon in quotes, or check the indentation"
    if "unexpected end of stream" in problem or "<stream end>" in problem:
        return f"{problem}; a quote or bracket is not closed"
    return f"{problem}; check brackets, commas and indentation from here upwards"


def _lay_over(recipe: RecipeText, override: str) -> None:
    """Replace one value; the key's place becomes the command line."""
    key, equals, text = override.partition("=")
    path: KeyPath = tuple(key.strip().split("."))
    if not equals or not all(path):
        recipe.report((), f"{override!r} is not an override; write section.key=value", COMMAND_LINE)
        return
    if recipe.places.get(path) == COMMAND_LINE:
        recipe.report(path, "is overridden twice; keep one of the two", COMMAND_LINE)
        return
    if not text.strip():
        recipe.report(path, f"has no value; write {key}=null to unset it", COMMAND_LINE)
        return
    section = _section_for(recipe, path)
    if section is None:
        return
    for known in [p for p in recipe.places if p[: len(path)] == path]:
        del recipe.places[known]
        recipe.spelled.pop(known, None)
    recipe.places[path] = COMMAND_LINE
    section[str(path[-1])] = _Builder(recipe, text, COMMAND_LINE).build(path)


def _section_for(recipe: RecipeText, path: KeyPath) -> dict[str, Any] | None:
    """The mapping that holds ``path``'s last key, made where the file leaves it out."""
    values: Any = recipe.values
    for depth, part in enumerate(path[:-1], start=1):
        here = path[:depth]
        values = values.setdefault(str(part), {})
        recipe.places.setdefault(here, COMMAND_LINE)
        if isinstance(values, list):
            whole = f"{dotted(here)}=[a, b]"
            recipe.report(path, f"{dotted(here)} is a list and is set as a whole; write {whole}", COMMAND_LINE)
            return None
        if not isinstance(values, dict):
            what = "empty" if values is None else repr(values)
            recipe.report(path, f"{dotted(here)} is {what} and has no keys; set it as a whole", COMMAND_LINE)
            return None
    return values
