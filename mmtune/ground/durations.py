"""Durations in the user's unit, steps in the code. The grammar is written once, here.

``500 steps`` | ``3 epochs`` | ``20000 samples`` | ``10%`` (of the whole run) | a bare integer is an error that says so.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import GetPydanticSchema
from pydantic_core import core_schema

PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|samples?|%)\s*$"


@dataclass(frozen=True)
class Span:
    """An amount of training in the unit the user wrote."""

    amount: float
    unit: str

    def __str__(self) -> str:
        whole = self.amount == int(self.amount)
        amount = str(int(self.amount)) if whole else f"{Decimal(repr(self.amount)):f}"
        return f"{amount}%" if self.unit == "%" else f"{amount} {self.unit}"

    def in_steps(self, *, steps_per_epoch: int, batch: int, total_steps: int | None = None) -> int:
        """Optimizer steps, rounded up, at least one where the amount is above zero.

        Args:
            steps_per_epoch: optimizer steps in one pass over the data.
            batch: samples per optimizer step, all ranks together.
            total_steps: length of the run; needed for percentages only.

        Raises:
            ValueError: a percentage without ``total_steps``.
        """
        if self.unit == "%":
            if total_steps is None:
                raise ValueError(f"{self} needs a run length to be a share of")
            exact = total_steps * self.amount / 100
        else:
            exact = self.amount * {"steps": 1.0, "epochs": float(steps_per_epoch), "samples": 1.0 / batch}[self.unit]
        return max(math.ceil(round(exact, 9)), 1 if exact > 0 else 0)


def parse_span(text: Any) -> Span:
    """Read a duration.

    Raises:
        ValueError: with the grammar and, for a bare number, what it could have meant.
    """
    if isinstance(text, Span):
        return text
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise ValueError(f"a duration needs a unit: '{text} steps', '{text} epochs', '{text} samples' or '{text}%'")
    match = re.match(PATTERN, text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write '500 steps', '3 epochs', '20000 samples' or '10%'")
    amount, unit = float(match[1]), match[2]
    if unit != "%":
        unit = unit.rstrip("s") + "s"
    if unit == "steps" and amount != int(amount):
        raise ValueError(f"{text!r}: steps are whole numbers")
    return Span(amount, unit)


def _schema(_source: Any, _handler: Any) -> core_schema.CoreSchema:
    described = core_schema.str_schema(pattern=PATTERN)
    return core_schema.no_info_plain_validator_function(
        parse_span,
        json_schema_input_schema=described,
        serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=described),
    )


Duration = Annotated[Span, GetPydanticSchema(_schema)]
"""The type of a recipe field that is a duration."""
