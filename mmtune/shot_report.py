"""What a few-shot study found: mean and spread over seeds, as JSON, as a table and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from mmtune.ground.safe_files import write_json
from mmtune.run_report import BASE, INK, SECOND, STYLE, TUNED, legend_above, save_picture

if TYPE_CHECKING:
    from rich.table import Table

METHODS = {
    "zero_shot": "zero-shot",
    "nearest_class_mean": "nearest class mean",
    "linear_probe": "linear probe",
    "tuned": "tuned",
}
"""Key in the JSON -> its name."""


def summarised(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per number of shots and method: mean and standard deviation over seeds (null of one seed) of every score.

    Args:
        rows: ``{"shots", "seed", METHOD: {score: value}}``, one per run.
    """
    found = []
    for shots in sorted({row["shots"] for row in rows}):
        here = [row for row in rows if row["shots"] == shots]
        methods = [method for method in METHODS if method in here[0]]
        spread = {method: _spread([row[method] for row in here]) for method in methods}
        found.append({"shots": shots, "seeds": len(here), **spread})
    return found


def _spread(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    values = {name: [one[name] for one in scores] for name in scores[0]}
    return {name: {"mean": fmean(each), "std": stdev(each) if len(each) > 1 else None} for name, each in values.items()}


def shot_table(result: Mapping[str, Any]) -> "Table":
    """The study for a terminal: a line per number of shots, a column per method."""
    from rich.table import Table

    score = result["score"]
    table = Table(title=f"{score} on the test split, mean (standard deviation) of {result['num_seeds']} seeds")
    table.add_column("shots", justify="right")
    methods = [method for method in METHODS if method in result["summary"][0]]
    for method in methods:
        table.add_column(METHODS[method], justify="right", no_wrap=True)
    for row in result["summary"]:
        table.add_row(str(row["shots"]), *(_cell(row[method][score]) for method in methods))
    return table


def _cell(value: Mapping[str, float | None]) -> str:
    spread = "" if value["std"] is None else f" ({value['std']:.3f})"
    return f"{value['mean']:.3f}{spread}"


def write_study(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Write ``fewshot.json`` and ``fewshot.png``; returns their paths."""
    write_json(folder / "fewshot.json", dict(result))
    return [folder / "fewshot.json", draw_study(folder / "fewshot.png", result)]


def draw_study(path: Path, result: Mapping[str, Any]) -> Path:
    """The first score over the number of shots, a line per method, the spread as bars."""
    import matplotlib
    from matplotlib.figure import Figure

    score, rows = result["score"], result["summary"]
    shots = [row["shots"] for row in rows]
    colours = {"zero_shot": BASE, "nearest_class_mean": INK, "linear_probe": SECOND, "tuned": TUNED}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        for method in (method for method in METHODS if method in rows[0]):
            means = [row[method][score]["mean"] for row in rows]
            spread = [row[method][score]["std"] or 0.0 for row in rows]
            dashed = "--" if method == "zero_shot" else "-"
            axes.errorbar(
                shots, means, yerr=spread, label=METHODS[method], color=colours[method], linestyle=dashed, capsize=3
            )
        axes.set_xticks(shots, [str(number) for number in shots])
        axes.minorticks_off()
        axes.margins(x=0.06)
        axes.set_xlabel("training images per class", color=INK)
        axes.set_ylabel(score.replace("_", " "))
        axes.set_title(f"few-shot classification, {result['num_seeds']} seeds")
        legend_above(axes)
        save_picture(figure, path)
    return path
