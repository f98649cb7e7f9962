"""Which layers of a tower: the grammar of ``layers``, written once. No torch here: recipes are checked with it.

``all`` | ``last 4`` | ``first 4`` | ``3-7`` | ``3`` | a list of the latter two (``["0-2", 11]``); layers count from 0.
"""

import re
from collections.abc import Sequence

GRAMMAR = "'all', 'last 4', 'first 4', '3-7' (layers 3 to 7, counted from 0), or a list such as ['0-2', 11]"

Choice = str | list[str | int]
"""One choice of layers as the recipe writes it."""


def check_choice(choice: Choice) -> None:
    """Check the grammar of one choice, not the tower it is for.

    Raises:
        ValueError: with the grammar.
    """
    if choice == "all" or (isinstance(choice, str) and re.fullmatch(r"(last|first) +[1-9]\d*", choice)):
        return
    items = [choice] if isinstance(choice, str) else choice
    if not items:
        raise ValueError(f"an empty list of layers adapts nothing; write {GRAMMAR}")
    for item in items:
        _bounds(item)


def _bounds(item: str | int) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?: *- *(\d+))?", str(item).strip())
    if match is None:
        raise ValueError(f"{item!r} is not a choice of layers: write {GRAMMAR}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"{item!r} runs backwards: write '{last}-{first}'")
    return first, last


def choose_layers(choice: Choice, num_layers: int) -> list[int]:
    """Layer numbers of one tower, ascending.

    Raises:
        ValueError: the choice reaches beyond the tower; the message says how many layers there are.
    """
    check_choice(choice)
    if choice == "all":
        return list(range(num_layers))
    if isinstance(choice, str) and choice.startswith(("last", "first")):
        end, count = choice.split()
        if int(count) > num_layers:
            raise ValueError(f"{choice!r} asks for more than the {num_layers} layers there are")
        return list(range(int(count))) if end == "first" else list(range(num_layers - int(count), num_layers))
    items: Sequence[str | int] = [choice] if isinstance(choice, str) else choice
    chosen: set[int] = set()
    for item in items:
        first, last = _bounds(item)
        if last >= num_layers:
            raise ValueError(f"{item!r} is beyond the tower: it has {num_layers} layers, 0 to {num_layers - 1}")
        chosen.update(range(first, last + 1))
    return sorted(chosen)
