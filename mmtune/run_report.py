"""``curves.png``: how a run went, from ``metrics.jsonl``, and what came of it, from ``scores.json``."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.records import MEDIA_WORDS
from mmtune.ground.safe_files import read_json, whole_file
from mmtune.metrics import MODALITIES, directions, top_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, SOFT = "#24292f", "#57606a", "#d0d7de"
BASE, TUNED, SECOND = "#9aa4b0", "#1f6feb", "#d9822b"
STYLE = {
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def draw_curves(run: Path) -> Path:
    """Draw ``curves.png`` of a run folder: loss, learning rate, validation, speed; and base against tuned once scored.

    Returns:
        the picture's path; panels without data say so.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = read_rows(run / "metrics.jsonl")
    scores = read_json(run / "scores.json") if (run / "scores.json").is_file() else None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 9.2 if scores else 5.8), dpi=120, layout="constrained")
        grid = figure.add_gridspec(3 if scores else 2, 2, height_ratios=[1, 1, 1.25][: 3 if scores else 2])
        steps = [row for row in rows if "loss" in row]
        _draw_loss(figure.add_subplot(grid[0, 0]), steps)
        _draw_validation(figure.add_subplot(grid[0, 1]), [row for row in rows if "validation" in row], _best(run))
        _draw_learning_rate(figure.add_subplot(grid[1, 0]), steps)
        _draw_speed(figure.add_subplot(grid[1, 1]), steps)
        if scores:
            _draw_scores(figure.add_subplot(grid[2, :]), scores)
        figure.suptitle(run.resolve().name, x=0.01, ha="left", fontsize=12, fontweight="bold")
        save_picture(figure, run / "curves.png")
    return run / "curves.png"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; a last line that a kill cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for n, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if n < len(lines) - 1:
                raise
    return rows


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    with whole_file(path) as beside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+")  # words in scripts that the font lacks: boxes, no noise
        figure.savefig(beside, format="png", metadata={"Software": None})


def legend_above(axes: "Axes", handles: Sequence[Any] = (), *, columns: int = 4, rows: int = 1) -> None:
    """The legend between title and axes, where it covers nothing.

    Args:
        axes: with their title set.
        handles: what to explain; by default what was drawn with a label.
        columns: entries side by side.
        rows: room for so many at least, so that titles side by side are level.
    """
    handles = handles or axes.get_legend_handles_labels()[0]
    where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1, "borderpad": 0.3}
    axes.legend(handles=handles, ncols=columns, fontsize=8, handlelength=1.4, columnspacing=1.4, **where)
    axes.set_title(axes.get_title(loc="left"), pad=7 + 13 * max(rows, -(-len(handles) // columns)))


def _bound_share(axes: "Axes", highest: float) -> None:
    """An axis for numbers from 0 to 1, or beyond (error rates): room for words above the highest, and no tick there."""
    top = max(1.0, highest)
    axes.set_ylim(0, 1.15 * (highest if highest > 1e-6 else 1.0))
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= top])
    axes.spines["left"].set_bounds(0, min(top, axes.get_ylim()[1]))


def _best(run: Path) -> tuple[str, int] | None:
    """The score that chose the best checkpoint, and the step it was taken at."""
    if not (run / "manifest.json").is_file():
        return None
    manifest = read_json(run / "manifest.json")
    name, chosen = next(iter(manifest.get("validation") or {}), None), manifest.get("best_checkpoint")
    return (name, int(chosen.split("-")[1])) if name and chosen else None


def _panel(axes: "Axes", title: str, rows: Sequence[Any]) -> bool:
    """Title a panel whose x axis is steps; False, and a word in it, where there is nothing to draw."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.margins(x=0.02)
    if rows:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.set_xlabel("step")
        return True
    axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color=BASE)
    axes.set_axis_off()
    return False


def _draw_loss(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    if not _panel(axes, "training loss", rows):
        return
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    smooth = _smoothed(losses)
    axes.plot(steps, losses, color=TUNED, alpha=0.3, linewidth=1, marker="." if len(rows) < 30 else None, label="loss")
    axes.plot(steps, smooth, color=TUNED, linewidth=1.8, label="smoothed")
    legend_above(axes, rows=2)
    _label(axes, f"{smooth[-1]:.3f}", steps[-1], smooth[-1], at_end=True)


def _label(axes: "Axes", text: str, x: float, y: float, *, at_end: bool) -> None:
    """A word above a point, on paper, so that a line below it stays readable."""
    paper = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    side = "right" if at_end else "left"
    axes.annotate(text, (x, y), (0, 9), textcoords="offset points", ha=side, fontsize=8.5, bbox=paper, zorder=5)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Running mean over about a tenth of the run, and at least three values."""
    smooth: list[float] = []
    for n, value in enumerate(values):
        share = max(1 / (n + 1), min(1 / 3, 10 / len(values)))
        smooth.append(value if not smooth else smooth[-1] * (1 - share) + value * share)
    return smooth


def _draw_validation(axes: "Axes", rows: list[dict[str, Any]], best: tuple[str, int] | None) -> None:
    if not _panel(axes, "validation", rows):
        return
    steps = [row["step"] for row in rows]
    names = _validation_lines(rows, best[0] if best else None)
    main = next(iter(names))
    for name, colour in names.items():
        if all(name in row["validation"] for row in rows):
            values = [row["validation"][name] / top_of(name) for row in rows]
            label = _scaled(name).replace("_", " ")
            axes.plot(steps, values, color=colour, marker="o", markersize=3.5, label=label, zorder=3 - (name != main))
            if best and name == main and best[1] in steps:
                value = values[steps.index(best[1])]
                axes.plot([best[1]], [value], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, zorder=4)
                _label(
                    axes,
                    f"best {value * top_of(name):.3f}",
                    best[1],
                    value,
                    at_end=best[1] > (steps[0] + steps[-1]) / 2,
                )
    shown = [row["validation"][name] / top_of(name) for row in rows for name in names if name in row["validation"]]
    _bound_share(axes, max(shown))
    legend_above(axes, columns=2)


def _validation_lines(rows: list[dict[str, Any]], main: str | None) -> dict[str, str]:
    """The scores that are drawn, the one that chooses first, with their colours."""
    there = list(rows[0]["validation"])
    recalls = [f"{to}_recall@{k}" for k in (1, 10) for modality in MODALITIES for to in directions(modality)]
    likely = [name for name in recalls if name in there][:3] or there[:4]
    names = dict.fromkeys([main or likely[0], *likely])
    return dict(zip(names, (TUNED, SECOND, BASE, SOFT), strict=False))


def _scaled(name: str) -> str:
    """A score's name with what it is divided by to lie between 0 and 1."""
    top = top_of(name)
    return name if top == 1 else f"{name} / {top:g}"


def _draw_learning_rate(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    if not _panel(axes, "learning rate and gradient norm", rows):
        return
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["learning_rate"] for row in rows], color=TUNED, label="learning rate")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="y", colors=TUNED)
    right = axes.twinx()
    right.plot(
        steps,
        [_or_gap(row["grad_norm"]) for row in rows],
        color=SECOND,
        linewidth=1,
        label="gradient norm, before clipping",
    )
    right.set_ylim(bottom=0)
    right.tick_params(axis="y", colors=SECOND)
    right.grid(False)
    legend_above(axes, [*axes.lines, *right.lines])


def _draw_speed(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    if not _panel(axes, "speed and waiting for data", rows):
        return
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["samples_per_second"] for row in rows], color=TUNED, label="samples per second")
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="y", colors=TUNED)
    right = axes.twinx()
    waits = [100 * row["data_wait"] for row in rows]
    right.fill_between(steps, waits, color=SECOND, alpha=0.25, linewidth=0, label="share of time waiting")
    right.set_ylim(0, 100)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    right.tick_params(axis="y", colors=SECOND)
    right.grid(False)
    legend_above(axes, [*axes.lines, *right.collections])


def _draw_scores(axes: "Axes", scores: dict[str, Any]) -> None:
    """Bars of base and tuned per score; the whisker on tuned is the interval of the change, seen from base."""
    names = [name for name in scores["base"] if not name.endswith("median_rank")]
    places = np.arange(len(names))
    tops = np.array([top_of(name) for name in names])
    base, tuned = (np.array([scores[model][name] for name in names]) / tops for model in ("base", "tuned"))
    edges = np.array([scores["interval95"][name] or (np.nan, np.nan) for name in names]) / tops[:, None]
    highest = np.where(np.fmax(base, tuned) > 1, np.inf, 1.0)  # no share is beyond 1; an error rate may be
    edges = np.clip(edges + base[:, None], 0, highest[:, None])
    axes.bar(places - 0.19, base, 0.36, color=BASE, label="base")
    axes.bar(places + 0.19, tuned, 0.36, color=TUNED, label="tuned")
    reach = np.abs(np.stack([tuned - edges[:, 0], edges[:, 1] - tuned]))
    label = "95 % interval of the change"
    axes.errorbar(places + 0.19, tuned, reach, fmt="none", color=INK, capsize=3, linewidth=1, label=label)
    tops = np.fmax(np.fmax(base, tuned), edges[:, 1])
    for place, top, name in zip(places, tops, names, strict=True):
        text = f"{scores['tuned'][name] - scores['base'][name]:+.3f}"
        axes.annotate(text, (place, top), (0, 4), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set_xticks(places, [_two_lines(name) for name in names])
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    _bound_share(axes, float(np.max(tops, initial=0)))
    medians = ", ".join(
        f"{name.replace('_', ' ')} {scores['base'][name]:g} → {scores['tuned'][name]:g}"
        for name in scores["base"]
        if name.endswith("median_rank")
    )
    of = f" ({scores['checkpoint']})" if scores.get("checkpoint") else ""
    words = MEDIA_WORDS[scores.get("modality", "image")]
    seen = (
        f"{scores[words]:,} {words} and {scores['texts']:,} texts"
        if "texts" in scores
        else f"{scores['samples']:,} samples"
    )
    axes.set_title(f"{scores['split']} split, {seen}{of}")
    axes.set_xlabel(medians)
    legend_above(axes)


def _two_lines(name: str) -> str:
    """``text_to_image_recall@5`` as a tick: the direction above, the metric below."""
    for direction in (one for modality in MODALITIES for one in directions(modality)):
        name = name.replace(f"{direction}_", direction.replace("_", " ") + "\n")
    return _scaled(name).replace("mrr", "MRR") if "\n" not in name else name.replace("mrr", "MRR")


def _or_gap(value: float | None) -> float:
    """A number, or a gap in the line where there is none (an update that was skipped)."""
    return float("nan") if value is None else value
