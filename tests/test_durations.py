"""Durations: the grammar, what is refused, and how many steps they are."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from mmtune.ground.durations import Duration, Span, parse_span


class Holder(BaseModel):
    """What a recipe's section does with a duration."""

    length: Duration
    warmup: Duration = Span(5, "%")


@pytest.mark.parametrize(
    ("text", "amount", "unit", "written"),
    [
        ("500 steps", 500, "steps", "500 steps"),
        ("1 step", 1, "steps", "1 steps"),
        ("3 epochs", 3, "epochs", "3 epochs"),
        ("0.5 epoch", 0.5, "epochs", "0.5 epochs"),
        ("20000 samples", 20_000, "samples", "20000 samples"),
        ("1 sample", 1, "samples", "1 samples"),
        ("10%", 10, "%", "10%"),
        ("12.5 %", 12.5, "%", "12.5%"),
        ("  7steps ", 7, "steps", "7 steps"),
        ("0 steps", 0, "steps", "0 steps"),
        ("33.3333333%", 33.3333333, "%", "33.3333333%"),
        ("0.00001 epochs", 0.00001, "epochs", "0.00001 epochs"),
        ("2.0 steps", 2, "steps", "2 steps"),
        ("12345678 samples", 12_345_678, "samples", "12345678 samples"),
    ],
)
def test_the_grammar(text: str, amount: float, unit: str, written: str) -> None:
    span = parse_span(text)
    assert span == Span(amount, unit)
    assert str(span) == written
    assert parse_span(written) == span, "what is written reads back as it was"
    assert parse_span(span) is span


@pytest.mark.parametrize("number", [500, 0.1, 0])
def test_a_bare_number_is_told_its_units(number: float) -> None:
    with pytest.raises(ValueError, match=f"needs a unit: '{number} steps', '{number} epochs', '{number} samples' or"):
        parse_span(number)


@pytest.mark.parametrize(
    "text", ["", "steps", "500", "-1 steps", "5 stps", "1e3 steps", "5 %%", "10% steps", "5 Steps", "1,000 steps"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write '500 steps', '3 epochs', '20000 samples' or '10%'"):
        parse_span(text)


@pytest.mark.parametrize("value", [None, True, ["5 steps"], {"amount": 5, "unit": "steps"}])
def test_other_types_are_no_durations(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_span(value)


def test_steps_are_whole() -> None:
    with pytest.raises(ValueError, match=r"'2\.5 steps': steps are whole numbers"):
        parse_span("2.5 steps")
    assert parse_span("2.5 epochs").amount == 2.5


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7),
        ("3 epochs", 30),
        ("0.25 epochs", 3),
        ("0.3 epochs", 3),
        ("640 samples", 5),
        ("641 samples", 6),
        ("1 sample", 1),
        ("10%", 300),
        ("0%", 0),
        ("0 steps", 0),
        ("0.01%", 1),
        ("0.0000000000001%", 1),
        ("1.1%", 33),  # 3000 * 1.1 / 100 is 33.00000000000001 in float64
        ("0.07%", 3),
        ("100%", 3000),
    ],
)
def test_in_steps_rounds_up_and_never_by_a_rounding_error(text: str, steps: int) -> None:
    assert parse_span(text).in_steps(steps_per_epoch=10, batch=128, total_steps=3000) == steps


def test_whole_shares_are_exact_in_every_run_length() -> None:
    """Against integer arithmetic, for every tenth of a percent."""
    for tenths in range(1, 1001):
        for total in (1, 7, 500, 999, 3000, 123_456):
            exact = -(-total * tenths // 1000)
            assert parse_span(f"{tenths / 10}%").in_steps(steps_per_epoch=1, batch=1, total_steps=total) == exact


def test_a_share_needs_a_whole() -> None:
    with pytest.raises(ValueError, match="10% needs a run length to be a share of"):
        parse_span("10%").in_steps(steps_per_epoch=10, batch=128)


def test_as_a_field() -> None:
    holder = Holder.model_validate({"length": "3 epochs"})
    assert (holder.length, holder.warmup) == (Span(3, "epochs"), Span(5, "%"))
    assert holder.model_dump(mode="json") == {"length": "3 epochs", "warmup": "5%"}
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    with pytest.raises(ValidationError, match="needs a unit"):
        Holder.model_validate({"length": 3})


def test_editors_see_text_with_a_pattern() -> None:
    import re

    properties = Holder.model_json_schema()["properties"]
    assert properties["length"]["type"] == "string"
    for text, is_one in (("500 steps", True), ("12.5%", True), ("500", False), ("5 stps", False)):
        assert bool(re.search(properties["length"]["pattern"], text)) is is_one


def test_no_default_in_the_recipe_schema_is_taken_apart() -> None:
    from mmtune.recipe_schema import json_schema

    def nodes(value: Any) -> Any:
        yield value
        for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from nodes(below)

    dicts = [node for node in nodes(json_schema()) if isinstance(node, dict)]
    assert not [node for node in dicts if isinstance(node.get("default"), dict) and "amount" in node["default"]]
    assert {node["default"] for node in dicts if isinstance(node.get("default"), str)} >= {"5%", "25%", "10 steps"}
