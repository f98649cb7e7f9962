"""``learning_rate_search.png``: the loss over the learning rate it was reached with, and the rate that is suggested."""

from pathlib import Path

from mmtune.run_report import BASE, FAINT, INK, SECOND, STYLE, TUNED, legend_above, save_picture

WIDE = 5.0
"""A curve whose ends are so many times apart is drawn on a logarithmic axis: what diverges must not press it flat."""

Rows = list[dict[str, float]]


def draw_learning_rates(rows: Rows, smoothed: Rows, suggestion: float | None, path: Path) -> Path:
    """Draw a search into ``path``, on a logarithmic axis.

    Args:
        rows: every step's ``learning_rate`` and ``loss``.
        smoothed: the rows whose ``mean`` is drawn.
        suggestion: the rate to mark, if any.
        path: the picture.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rates, losses = [row["learning_rate"] for row in rows], [row["loss"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.plot(rates, losses, color=BASE, linewidth=0.8, alpha=0.7, label="loss")
        means = [row["mean"] for row in smoothed] or losses
        axes.plot(
            [row["learning_rate"] for row in smoothed] or rates, means, color=TUNED, linewidth=1.8, label="smoothed"
        )
        if suggestion is not None:
            axes.axvline(
                10 * suggestion, color=FAINT, linewidth=0.8, linestyle=":", label=f"lowest at {10 * suggestion:.2g}"
            )
            axes.axvline(suggestion, color=SECOND, linewidth=1.4, label=f"suggested {suggestion:.2g}")
        low, high, scale = _shown_range(losses, means)
        axes.set_yscale(scale)
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("learning rate", color=INK)
        axes.set_ylabel("loss")
        axes.set_title("learning rate search")
        legend_above(axes)
        save_picture(figure, path)
    return path


def _shown_range(losses: list[float], means: list[float]) -> tuple[float, float, str]:
    """Lower end, upper end and scale of the axis: the whole smoothed curve, and single losses above it for a part."""
    low, high = min(*losses, *means), max(means)
    if low > 0 and high / low > WIDE:
        return low / 1.1, high * 1.1, "log"
    span = max(high - low, 1e-3 * abs(high), 1e-6)
    top = max(high, min(max(losses), high + 0.4 * span))
    return low - 0.05 * span, top + 0.05 * span, "linear"
