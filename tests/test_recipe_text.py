"""Recipe text: YAML 1.2 with a place per key, and no silent conversion."""

from pathlib import Path
from typing import Any

import pytest

from mmtune.ground.errors import RecipeError
from mmtune.ground.recipe_text import RecipeText, dotted, parse_recipe_text, read_recipe_text


def values_of(text: str) -> dict[str, Any]:
    recipe = parse_recipe_text(text, "x.yaml")
    assert not recipe.problems, recipe.problems
    return recipe.values


def problems_of(text: str) -> list[str]:
    return [str(problem) for problem in parse_recipe_text(text, "x.yaml").problems]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("12", 12),
        ("-3", -3),
        ("+7", 7),
        ("0", 0),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("2026-01-01", "2026-01-01"),
        ("5%", "5%"),
        ("500 steps", "500 steps"),
        ("a:b", "a:b"),
        ("'010'", "010"),
        ('"1_000"', "1_000"),
        ("'12:30'", "12:30"),
        ("'null'", "null"),
        ("1.2.3", "1.2.3"),
        ("0.0", 0.0),
        ("[1, two, 3.5]", [1, "two", 3.5]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("|\n  two\n  lines", "two\nlines\n"),
    ],
)
def test_values(written: str, value: Any) -> None:
    read = values_of(f"key: {written}\n")["key"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("010", "010 is 8 in YAML 1.1 and 10 in 1.2; write 10, or '010' in quotes"),
        ("-007", "write -7"),
        ("089", "089 is text in YAML 1.1"),
        ("1_000", "1_000 is text in YAML 1.2; write 1000"),
        ("1_0.5", "write 10.5"),
        ("12:30:45", "is a number to the base 60 in YAML 1.1"),
        ("1:30", "is a number to the base 60"),
        ("0b101", "write 5"),
        (".inf", "is not a finite number"),
        ("-.Inf", "is not a finite number"),
        (".nan", "is not a finite number"),
        ("1e999", "is not a finite number"),
        ("!!str 3", "the tag tag:yaml.org,2002:str is not part of a recipe"),
        ("&a 3", "anchors and aliases are not part of a recipe"),
        ("*a", "anchors and aliases are not part of a recipe"),
    ],
)
def test_traps_are_errors_that_say_what_to_write(written: str, said: str) -> None:
    found = problems_of(f"first: 1\nsection:\n  key: {written}\n")
    assert len(found) == 1
    assert found[0].startswith("x.yaml:3: section.key: ") and said in found[0]


def test_places_in_block_and_flow_and_lists() -> None:
    text = "a: 1\nb: {c: 1,\n    d: [x,\n      y], e: {f: 2\n  , g: 3}}\nh:\n  - i\n  - {j: 1}\n"
    places = parse_recipe_text(text, "x.yaml").places
    assert {dotted(path): int(place.rpartition(":")[2]) for path, place in places.items()} == {
        "a": 1,
        "b": 2,
        "b.c": 2,
        "b.d": 3,
        "b.d[0]": 3,
        "b.d[1]": 4,
        "b.e": 4,
        "b.e.f": 4,
        "b.e.g": 5,
        "h": 6,
        "h[0]": 7,
        "h[1]": 8,
        "h[1].j": 8,
    }


def test_a_missing_key_is_placed_at_its_section() -> None:
    recipe = parse_recipe_text("a: 1\nb:\n  c: 2\n", "x.yaml")
    assert recipe.place_of(("b", "missing")) == "x.yaml:2"
    assert recipe.place_of(("missing",)) == "x.yaml:1"


def test_duplicate_keys_name_both_lines() -> None:
    found = problems_of("a: 1\nb: {c: 1, d: 2,\n  c: {x: 010}}\na:\n  - 3\n")
    assert "x.yaml:3: b.c: stands twice, first at x.yaml:2; keep one of the two" in found
    assert "x.yaml:4: a: stands twice, first at x.yaml:1; keep one of the two" in found
    assert parse_recipe_text("a: 1\nb: {a: 1}\n", "x.yaml").problems == []


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a:\n\tb: 1\n", 2, "a tab stands here"),
        ("a: 1\nb:\t2\n", 2, "a tab stands here"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected ',' or ']'"),
        ("a: 1\nb: x: y\n", 2, "a second `: ` on one line"),
        ("a: 'x\n", 2, "is not closed"),
        ("a: @x\n", 1, "put the text in quotes"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("- a\n", 1, "a recipe is a mapping of sections"),
        ("", 1, "a recipe is a mapping of sections"),
        ("a: \x07\n", 1, "is not YAML"),
        ("a: 1\n<<: {b: 2}\n", 2, "a key must be a word"),
        ("a: 1\n? [b]\n: 2\n", 2, "a key must be a word"),
        ("a: " + "[" * 40 + "]" * 40, 1, "is nested too deeply"),
    ],
)
def test_text_that_is_no_recipe(text: str, line: int, said: str) -> None:
    found = problems_of(text)
    assert any(problem.startswith(f"x.yaml:{line}: ") and said in problem for problem in found), found


def test_a_yaml_directive_does_not_bring_the_old_rules_back() -> None:
    assert values_of("%YAML 1.1\n---\na: no\nb: 1e3\n") == {"a": "no", "b": 1000.0}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such recipe"):
        read_recipe_text(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="mmtune recipes copy none"):
        read_recipe_text(tmp_path / "none")
    (tmp_path / "mine.yaml").write_text("a: 1")
    with pytest.raises(RecipeError, match=r"did you mean .*mine\.yaml\?"):
        read_recipe_text(tmp_path / "mine")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe_text(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: 1\nb: é\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml:2: is not UTF-8"):
        read_recipe_text(path)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 010\r\n")
    recipe = read_recipe_text(path)
    assert recipe.values == {"a": 1, "b": None}
    assert str(recipe.problems[0]).startswith(f"{path}:2: b: 010")


# --- overrides


def overridden(tmp_path: Path, *overrides: str) -> RecipeText:
    path = tmp_path / "x.yaml"
    path.write_text("a: {b: 1, c: [1, 2], d: {e: 1}}\nn: null\n")
    return read_recipe_text(path, overrides)


def test_overrides_are_yaml(tmp_path: Path) -> None:
    recipe = overridden(tmp_path, "a.b=1e-3", "a.c=[x, 3]", "a.d={f: 5%}", "new.section.key=true", "n=500 steps")
    assert recipe.problems == []
    assert recipe.values == {
        "a": {"b": 1e-3, "c": ["x", 3], "d": {"f": "5%"}},
        "n": "500 steps",
        "new": {"section": {"key": True}},
    }
    assert recipe.place_of(("a", "b")) == recipe.place_of(("a", "d", "f")) == "command line"
    assert recipe.place_of(("new",)) == "command line" and recipe.place_of(("a", "x")).endswith("x.yaml:1")
    assert ("a", "d", "e") not in recipe.places


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("a.b", "'a.b' is not an override; write section.key=value"),
        ("=3", "is not an override"),
        ("a..b=3", "is not an override"),
        ("a.b=", "a.b: has no value; write a.b=null to unset it"),
        ("a.c.0=3", "a.c is a list and is set as a whole; write a.c=[a, b]"),
        ("a.b.c=3", "a.b.c: a.b is 1 and has no keys"),
        ("n.c=3", "n.c: n is empty and has no keys"),
        ("a.b=010", "a.b: 010 is 8 in YAML 1.1"),
        ("a.b=[1", "a.b: "),
        ("a.b={x: 1, x: 2}", "a.b.x: stands twice, first at command line"),
    ],
)
def test_overrides_that_mean_nothing(tmp_path: Path, override: str, said: str) -> None:
    found = [str(problem) for problem in overridden(tmp_path, override).problems]
    assert len(found) == 1
    assert found[0].startswith("command line: ") and said in found[0]


def test_an_override_given_twice_is_an_error(tmp_path: Path) -> None:
    found = [str(problem) for problem in overridden(tmp_path, "a.b=2", "a.b=3").problems]
    assert found == ["command line: a.b: is overridden twice; keep one of the two"]
