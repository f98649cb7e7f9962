"""``learning_rate_search.png``: the loss over the learning rate it was reached with, and the rate that is suggested."""

from pathlib import Path
from typing import Any

from mmtune.run_report import BASE, FAINT, INK, SECOND, STYLE, TUNED, save_picture


def draw_learning_rates(rows: list[dict[str, float]], suggestion: float, path: Path) -> Path:
    """Draw the rows of a search (``learning_rate``, ``loss``, ``mean``) into ``path``, on a logarithmic axis."""
    import matplotlib
    from matplotlib.figure import Figure

    rates, means = [row["learning_rate"] for row in rows], [row["mean"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.plot(rates, [row["loss"] for row in rows], color=BASE, linewidth=0.8, alpha=0.7, label="loss")
        axes.plot(rates, means, color=TUNED, linewidth=1.8, label="smoothed")
        best = rates[means.index(min(means))]
        axes.axvline(best, color=FAINT, linewidth=0.8, linestyle=":", label=f"lowest at {best:.2g}")
        axes.axvline(suggestion, color=SECOND, linewidth=1.4, label=f"suggested {suggestion:.2g}")
        axes.set_ylim(*_shown_range(means))
        axes.set_xlabel("learning rate", color=INK)
        axes.set_ylabel("loss")
        axes.set_title("learning rate search")
        axes.legend(fontsize=8, loc="best")
        save_picture(figure, path)
    return path


def _shown_range(means: list[float]) -> tuple[Any, Any]:
    """Room for the curve until it leaves: what diverges must not press the rest flat."""
    low, start = min(means), means[0]
    margin = max(start - low, 1e-3 * abs(start), 1e-6)
    return low - 0.6 * margin, min(max(means), start + 2 * margin) + 0.3 * margin
