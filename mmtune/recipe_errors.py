"""What is wrong with a recipe's shape and values, each problem with its place and what would be right.

Two passes: `find_shape_problems` walks the sections (unknown keys, kinds, missing keys), `find_value_problems`
translates what pydantic says about the values.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mmtune.adapters import refusal
from mmtune.ground.recipe_text import KeyPath, RecipeText, dotted
from mmtune.ground.sections import StrictSection
from mmtune.recipe_keys import SectionClass, explain_unknown_key, kind_of, sections_by_name, sections_in, suggest

SHAPE_ERRORS = {"extra_forbidden", "missing", "union_tag_invalid", "union_tag_not_found"}
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list such as [a, b]",
    "tuple_type": "a list such as [a, b]",
    "dict_type": "a mapping such as {key: value}",
    "model_type": "a section such as {key: value}",
    "model_attributes_type": "a section such as {key: value}",
    "none_required": "null",
}
LIMITS = {
    "greater_than": ("gt", "must be above {}"),
    "greater_than_equal": ("ge", "must be at least {}"),
    "less_than": ("lt", "must be below {}"),
    "less_than_equal": ("le", "must be at most {}"),
    "too_short": ("min_length", "needs at least {} of them"),
    "too_long": ("max_length", "may have at most {} of them"),
    "string_too_short": ("min_length", "needs at least {} characters"),
}
OLD_BOOLS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
LONGEST_SHOWN = 60  # characters of a value in a message


# --- shape: which keys there are


def find_shape_problems(text: RecipeText, root: SectionClass) -> None:
    """Report unknown keys, unknown or missing kinds, and missing keys."""
    _check_section(text, root, [root], text.values, ())


def _check_section(
    text: RecipeText, root: SectionClass, choices: Sequence[SectionClass], values: Any, path: KeyPath
) -> None:
    if not isinstance(values, dict) or not choices:
        return  # pydantic says what is wrong with the value
    by_kind = {kind_of(section): section for section in choices}
    fitting = list(choices)
    if any(by_kind):
        chosen = by_kind.get(str(values.get("kind")))
        if chosen is None:
            _report_kind(text, values, path, sorted(by_kind))
        else:
            fitting = [chosen]
    for name, value in values.items():
        fields = [section.model_fields[name] for section in fitting if name in section.model_fields]
        if not fields:
            _report_unknown(text, root, choices, fitting, (*path, name))
        inner = [section for field in fields for section in sections_in(field.annotation)]
        _check_section(text, root, list(dict.fromkeys(inner)), value, (*path, name))
        for field in fields:
            named = value if isinstance(value, dict) else {}
            for own_name, section in named.items():
                _check_section(text, root, sections_by_name(field.annotation), section, (*path, name, own_name))
    if len(fitting) == 1:
        _report_missing(text, fitting[0], values, path)


def _report_kind(text: RecipeText, values: dict[str, Any], path: KeyPath, kinds: list[str]) -> None:
    here = (*path, "kind")
    if "kind" not in values:
        text.report(here, f"is missing; write one of {', '.join(kinds)}")
        return
    if path == ("adapter",) and (reason := refusal(values["kind"])):
        text.report(here, reason)
        return
    near = suggest(str(values["kind"]), kinds)
    meant = f"did you mean {near[0]}? The kinds are" if near else "write one of"
    text.report(here, f"there is no kind {show(text, here, values['kind'])}; {meant} {', '.join(kinds)}")


def _report_unknown(
    text: RecipeText,
    root: SectionClass,
    choices: Sequence[SectionClass],
    fitting: Sequence[SectionClass],
    path: KeyPath,
) -> None:
    word = str(path[-1])
    level = dict.fromkeys(name for section in fitting for name in section.model_fields)
    of_all_kinds = dict.fromkeys(name for section in choices for name in section.model_fields)
    meant = word if word in of_all_kinds else next(iter(suggest(word, level) or suggest(word, of_all_kinds)), "")
    if meant and meant not in level:
        kinds = " and ".join(kind_of(section) for section in choices if meant in section.model_fields)
        start = "is" if meant == word else f"is no key of this section; {meant} would be"
        text.report(path, f"{start} a key of kind {kinds}, not of {kind_of(fitting[0])}; delete it")
        return
    names = [part for part in path if isinstance(part, str)]
    text.report(path, explain_unknown_key(root, names, level))


def _report_missing(text: RecipeText, section: SectionClass, values: dict[str, Any], path: KeyPath) -> None:
    for name, field in section.model_fields.items():
        if field.is_required() and name not in values and not (name == "kind" and kind_of(section)):
            text.report((*path, name), f"is missing; write {name}: {field.description or '...'}")


# --- values: what pydantic says about them


def find_value_problems(text: RecipeText, error: ValidationError) -> None:
    """Report what is wrong with the values, one problem per key however many ways there were to write it."""
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        if not (details["type"] in SHAPE_ERRORS and isinstance(details["input"], dict)):
            grouped.setdefault(_path_of(text.values, details), []).append(details)
    known = {problem.key for problem in text.problems}
    for path, group in grouped.items():
        inside = any(other[: len(path)] == path and len(other) > len(path) for other in grouped)
        if dotted(path) in known or (inside and path):
            continue  # said already, or the value has the right shape and something inside it is wrong
        text.report(path, _explain(text, path, group))


def _path_of(values: Any, details: ErrorDetails) -> KeyPath:
    """pydantic's location without the names of union members, which are no keys."""
    path: list[str | int] = []
    current = values
    for part in details["loc"]:
        in_mapping = isinstance(current, dict) and part in current
        in_list = isinstance(current, list) and isinstance(part, int) and part < len(current)
        if in_mapping or in_list:
            current = current[part]
            path.append(part)
    if details["type"] == "value_error" and isinstance(current, dict):
        # A rule over several keys of a section: it stands where the key stands that the message begins with.
        first = str(details["ctx"]["error"]).split(maxsplit=1)[0].rstrip(":,")
        path += [first] if first in current else []
    return tuple(path)


def _explain(text: RecipeText, path: KeyPath, group: Sequence[ErrorDetails]) -> str:
    value = group[0]["input"]
    shown = show(text, path, value)
    rules = [details for details in group if details["type"] not in EXPECTED and details["type"] != "literal_error"]
    if rules:
        return "; ".join(dict.fromkeys(_explain_rule(details, shown) for details in rules))
    words = [_expected(details, value) for details in group]
    hint = _hint(text, path, value, {details["type"] for details in group}, group)
    start = "is empty" if value is None else f"{shown} does not fit"
    return f"{start}; write {' or '.join(dict.fromkeys(words))}{hint}"


def _explain_rule(details: ErrorDetails, shown: str) -> str:
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "missing":  # of a list with a fixed number of entries
        return f"{shown} has too few entries"
    if details["type"] in LIMITS:
        name, words = LIMITS[details["type"]]
        return f"{shown} {words.format(details['ctx'][name])}"
    return f"{shown}: {details['msg'][:1].lower()}{details['msg'][1:]}"


def _expected(details: ErrorDetails, value: Any) -> str:
    if details["type"] == "literal_error":
        return "one of " + ", ".join(str(choice) for choice in _choices(details))
    if details["type"] == "model_type" and (first := _first_key(details["ctx"]["class_name"])):
        example = value if isinstance(value, (int, float)) and not isinstance(value, bool) else "..."
        return f"a section such as {{{first}: {example}}}"
    return EXPECTED[details["type"]]


def _first_key(class_name: str) -> str:
    """The first key of the section class of that name, "" where several have the name or it is no section of ours."""
    found, unseen = [], [StrictSection]
    while unseen:
        section = unseen.pop()
        unseen += section.__subclasses__()
        found += [section] if section.__name__ == class_name else []
    return next(iter(found[0].model_fields), "") if len(found) == 1 else ""


def _choices(details: ErrorDetails) -> list[str]:
    """The allowed values of a Literal out of pydantic's ``'a', 'b' or 'c'``."""
    listed = details["ctx"]["expected"].replace(" or ", ", ")
    return [choice.strip().strip("'") for choice in listed.split(", ")]


def _hint(text: RecipeText, path: KeyPath, value: Any, asked: set[str], group: Sequence[ErrorDetails]) -> str:
    if "bool_type" in asked and str(value).lower() in OLD_BOOLS:
        return f": {OLD_BOOLS[str(value).lower()]} instead of {value}, which is text in YAML 1.2"
    if "string_type" in asked and isinstance(value, (int, float)):
        return f": '{text.spelled.get(path, value)}' in quotes"
    if asked & {"int_type", "int_from_float"} and isinstance(value, float) and value == int(value):
        return f": {int(value)}"
    if asked & {"int_type", "float_type"} and isinstance(value, str) and _is_number(value):
        return f": {value.strip()} without quotes"
    if "float_type" in asked and isinstance(value, str) and value.endswith("%") and _is_number(value[:-1]):
        return f": {float(value[:-1]) / 100:g} instead of {value}"
    if asked & {"list_type", "tuple_type"} and isinstance(value, (str, int, float)):
        return f": [{value}]"
    choices = [choice for details in group if details["type"] == "literal_error" for choice in _choices(details)]
    near = suggest(str(value), choices)
    return f"; did you mean {near[0]}?" if near else ""


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def show(text: RecipeText, path: KeyPath, value: Any) -> str:
    """A value as the user wrote it, shortened."""
    shown = text.spelled.get(path) or repr(value)
    shown = shown if shown.isprintable() else repr(shown)
    return shown if len(shown) <= LONGEST_SHOWN else shown[: LONGEST_SHOWN - 3] + "..."
