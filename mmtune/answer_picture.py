"""``answers.png``: a few samples of a split, drawn at random, with what each model says about them."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.ground.seeding import generator_for
from mmtune.run_report import FAINT, STYLE, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mmtune.answer_scoring import Answers

COLUMNS, HEAD, LETTERS, LINE = 4, 0.4, 30, 0.085
"""Samples in a row; height of the head in image widths; letters and height of a line of text under an image."""
INCHES = 2.1
"""One image's width."""


def draw_answers(path: Path, taken: "Mapping[str, Answers]", *, seed: int, num_samples: int = 8) -> Path:
    """Draw samples with what was asked, what would have been right, and what each model said.

    The samples are drawn by ``seed``, not chosen, so that the picture is a fair sample.

    Args:
        path: the PNG to write.
        taken: model name, such as ``base`` and ``tuned`` -> its answers; one split for all.
        seed: of the draw.
        num_samples: how many.

    Returns:
        ``path``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    first = next(iter(taken.values()))
    number = min(num_samples, len(first.samples))
    places = generator_for(seed, "answers").choice(len(first.samples), size=number, replace=False)
    texts = [_lines(taken, place) for place in places]
    columns = min(COLUMNS, number)
    rows = [range(start, min(start + columns, number)) for start in range(0, number, columns)]
    heights = [1.06 + LINE * max(len(texts[place]) for place in row) + 0.15 for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(INCHES * columns, INCHES * (HEAD + sum(heights))), dpi=96)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        note = f"{number} of {len(first.samples):,} samples, drawn at random"
        axes.text(0.05, 0.22, note, fontsize=8.5, color=FAINT)
        top = HEAD
        for row, height in zip(rows, heights, strict=True):
            for column, place in enumerate(row):
                _draw_sample(axes, column, top, first.samples[places[place]], texts[place])
            top += height
        axes.set(xlim=(0, columns), ylim=(top, 0), aspect="equal")
        save_picture(figure, path)
    return path


def _lines(taken: "Mapping[str, Answers]", place: int) -> list[tuple[str, str]]:
    """(text, colour) of every line under a sample."""
    first = next(iter(taken.values()))
    right = sorted(set(first.references[place]))
    more = f" (or {len(right) - 1} more)" if len(right) > 1 else ""
    said = [("asked", first.asked[place], "#6b7280")] if first.asked[place] else []
    said.append(("right", right[0] + more, "#1a9850"))
    said += [(name, one.predictions[place] or "(nothing)", "#222222") for name, one in taken.items()]
    lines: list[tuple[str, str]] = []
    for name, text, colour in said:
        wrapped = textwrap.wrap(f"{name}: {text}", LETTERS, max_lines=4, placeholder=" ...") or [f"{name}:"]
        lines += [(line, colour) for line in wrapped]
    return lines


def _draw_sample(axes: "Axes", left: float, top: float, sample: Any, lines: list[tuple[str, str]]) -> None:
    extent = (left + 0.04, left + 0.96, top + 0.96, top + 0.04)
    try:
        picture = np.asarray(sample.media.read().convert("RGB"))
    except DataError:
        axes.text(left + 0.5, top + 0.5, "no image", ha="center", va="center", fontsize=8, color=FAINT)
    else:
        axes.imshow(_square(picture), extent=extent, interpolation="nearest" if len(picture) < 96 else "antialiased")
    for number, (text, colour) in enumerate(lines):
        axes.text(left + 0.04, top + 1.04 + LINE * number, text, fontsize=7.5, color=colour, va="top", parse_math=False)


def _square(picture: np.ndarray) -> np.ndarray:
    """The picture in the middle of a white square."""
    height, width = picture.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
