"""Samples and their tokens on a terminal; where there are no colours, marks say what colours would."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmtune.ground.records import BadItem
from mmtune.sample_views import SampleView, Viewing
from mmtune.token_spans import WORDS, Kind, Stream, visible

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.text import Text

STYLES: dict[Kind, str] = {
    "trained": "bold green",
    "masked": "bright_black",
    "image": "black on cyan",
    "read": "",
    "padding": "dim strike",
}
FAINT = "bright_black"
OPENS, CLOSES = "«", "»"
"""Stand around what is trained on, colours or not."""
COLUMNS = 28
"""Letters that a picture is wide; a letter shows two pixels, one above the other."""
MOST_PICTURES = 3
MOST_BAD = 20


def print_viewing(viewing: Viewing, recipe: Any, split: str, console: "Console | None" = None) -> None:
    """Everything: a legend, each sample, what they have in common, and what is bad."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)
    if viewing.samples:
        console.print(legend(viewing.kinds))
    for number, view in enumerate(viewing.samples, start=1):
        print_sample(console, view, number)
    console.rule(style=FAINT)
    many = f"{len(viewing.samples)} of {viewing.num_items:,} items of split {split}, drawn by seed {recipe.seed}"
    for line in (many, *viewing.summary(), *bad_lines(viewing.bad)):
        console.print(Text(visible(line)))


def print_sample(console: "Console", view: SampleView, number: int) -> None:
    """One sample: picture, tokens, targets and numbers."""
    from rich.text import Text

    console.rule(Text(visible(f"{number}. {view.id}")), align="left", style=FAINT)
    console.print(Text(visible(view.where), FAINT))
    if console.color_system in ("truecolor", "256"):
        for picture in view.pictures[:MOST_PICTURES]:
            console.print(draw(picture))
    for stream in view.streams:
        if len(view.streams) > 1:
            console.print(Text(f"{stream.name}:", "italic"))
        console.print(coloured(stream))
        for target in stream.targets:
            console.print(Text.assemble("  must be said: ", (visible(target), STYLES["trained"])))
    for judged in view.judged:
        console.print(Text.assemble("  must come out: ", (visible(judged), STYLES["trained"])))
    console.print(Text(view.facts, FAINT))


def legend(kinds: "list[Kind]") -> "Text":
    """What the colours and marks mean."""
    from rich.text import Text

    words = {**WORDS, "trained": f"{OPENS}{WORDS['trained']}{CLOSES}", "image": f"[{WORDS['image']} x number]"}
    return Text("   ").join(Text(words[kind], STYLES[kind]) for kind in kinds)


def coloured(stream: Stream) -> "Text":
    """The tokens of a text in their colours, with marks around each stretch that is trained on."""
    from rich.text import Text

    text, inside = Text(), False
    for token in stream.tokens:
        if (token.kind == "trained") != inside:
            text.append(CLOSES if inside else OPENS, STYLES["trained"])
            inside = not inside
        text.append(token.shown, STYLES[token.kind])
    return text.append(CLOSES, STYLES["trained"]) if inside else text


def draw(picture: "Image") -> "Text":
    """A picture of half blocks, each two pixels."""
    from rich.text import Text

    rows = max(2, 2 * round(COLUMNS * picture.height / picture.width / 2))
    small = picture.convert("RGB").resize((COLUMNS, rows))
    lines = Text()
    for row in range(0, rows, 2):
        for column in range(COLUMNS):
            above, below = (small.getpixel((column, row + half)) for half in (0, 1))
            lines.append("▀", f"rgb({_numbers(above)}) on rgb({_numbers(below)})")
        lines.append("\n" if row < rows - 2 else "")
    return lines


def _numbers(colour: Any) -> str:
    return ",".join(map(str, colour))


def bad_lines(bad: list[BadItem]) -> Iterator[str]:
    """What is bad and why; of many the first."""
    for item in bad[:MOST_BAD]:
        yield f"bad: {item.where}: {item.reason}"
    if len(bad) > MOST_BAD:
        yield f"and {len(bad) - MOST_BAD:,} more are bad"
