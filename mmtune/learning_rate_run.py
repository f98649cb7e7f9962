"""The story of ``find-lr``: which learning rate a recipe could be trained with, from a short run of its own.

The range test: the rate grows by the same factor at every step, the loss is noted, and the run ends when the loss
diverges. All rates of a recipe (per part, per layer, LoRA+) grow together; what is named is the highest of them. The
suggestion is a tenth of the rate at which the smoothed loss was lowest: there it still falls, with room to spare.
Weights are thrown away; validation, averages, trackers and checkpoints are left out.

Source: Smith 2015, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.3 (the test);
the tenth is the usual reading of its plots.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import NotFinite, RecipeError, TrainingError

if TYPE_CHECKING:
    from mmtune.ground.run_log import RunLog
    from mmtune.recipe_schema import Recipe
    from mmtune.train_loop import Trainer

WINDOW = 1 / 12
"""Losses are smoothed over this share of the steps, at least three: centred, so that the curve does not lag behind."""
DIVERGED = 4.0
"""The run ends when the mean of the last losses is so many times the lowest such mean so far. Means of fewer losses
than a window has do not count: one lucky batch at the start would end the run."""
SAFETY = 10.0
"""The suggestion is the rate of the lowest smoothed loss over this."""
DEFAULT_ENDING = "_find_lr"
"""Of the folder that is written, after the run folder's name."""
FEWEST_STEPS = 10
TELLING_STEPS = 50
"""Of fewer the message says so where nothing came out: chance decides which batch a rate meets."""
MOST_LINES = 20
"""Steps that are said aloud; the table has them all."""
UNTOUCHED = 1 / 4
"""This share of the steps, the first ones, stands for the loss before training: their rates are too low to matter."""
CLEAR_FALL = 5.0
"""A fall of fewer times the standard error of a smoothed loss may be chance, and is said to. The lowest of many is low
by itself: of 500 drawn series without any fall, 28% fell by 3 of them and 3% by 5."""


@dataclass(frozen=True)
class LearningRateSearch:
    """What came out.

    Attributes:
        suggestion: a value for the highest ``train.learning_rate``.
        plot: smoothed loss over learning rate, the suggestion marked.
        json: every step's rate, loss and smoothed loss, and the suggestion.
        note: what speaks against trusting it; empty where nothing does.
    """

    suggestion: float
    plot: Path
    json: Path
    note: str = ""


def find_learning_rate(
    recipe: "Recipe | str | Path",
    *,
    lowest: float = 1e-7,
    highest: float = 1.0,
    steps: int = 100,
    output: str | Path | None = None,
) -> LearningRateSearch:
    """Train for ``steps`` steps with a rate that grows from ``lowest`` to ``highest``, and suggest one.

    Args:
        recipe: a recipe, or the path of one; its run folder is not touched.
        lowest: the first rate.
        highest: the last rate.
        steps: optimizer steps.
        output: folder for ``learning_rate_search.png`` and ``.json``; by default the run folder's name with
            ``_find_lr``.

    Raises:
        RecipeError: rates or steps that make no test.
        TrainingError: the loss never fell, so nothing can be suggested; plot and table are written.
        MmtuneError: whatever else the user can mend.
    """
    from mmtune.adapter_start import refuse_missing_start
    from mmtune.ground.run_log import RunLog
    from mmtune.optimizer_setup import highest_rate
    from mmtune.recipe_schema import Recipe, check_recipe, load_recipe
    from mmtune.run_setup import refuse_misfit, start_accelerator
    from mmtune.trainer_building import build_trainer

    _refuse_range(lowest, highest, steps)
    given = {"lowest": lowest, "highest": highest, "steps": steps}
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(output) if output is not None else Path(f"{recipe.output}{DEFAULT_ENDING}")
    recipe = _shorten(recipe, steps, folder)
    refuse_missing_start(recipe)
    accelerator = start_accelerator(recipe)
    check_recipe(recipe, world_size=accelerator.num_processes)
    refuse_misfit(recipe)
    log = RunLog(folder)
    trainer = build_trainer(recipe, accelerator, log)
    top = highest_rate(recipe.train, trainer.adapted.part_of.values())
    trainer.schedule = growing_schedule(trainer.optimizer, top, lowest, highest, steps)
    try:
        rows = _search(trainer)
    finally:
        trainer.trunk.close()
    return _conclude(rows, given, log)


def _conclude(rows: list[dict[str, float]], given: dict[str, Any], log: "RunLog") -> LearningRateSearch:
    """Write plot and table in any case, and say what is suggested, or raise."""
    from mmtune.ground.safe_files import write_json
    from mmtune.learning_rate_picture import draw_learning_rates

    width = smoothing_width(given["steps"])
    suggestion, note = suggest_rate(rows, width)
    plot, table = (log.folder / f"learning_rate_search.{ending}" for ending in ("png", "json"))
    if log.active:
        write_json(table, {"suggestion": suggestion, "note": note, **given, "rows": rows})
        if rows:
            draw_learning_rates(rows, fully_smoothed(rows, width), suggestion, plot)
    if suggestion is None:
        drawn = f"{plot} and {table}" if rows else str(table)
        span = f"from {given['lowest']:g} to {given['highest']:g}"
        raise TrainingError(f"the loss fell at no learning rate {span}; see {drawn}. {_advice(log.folder, given)}")
    if note:
        log.line(f"note: {note}")
    log.line(
        f"suggested train.learning_rate: {suggestion:.2g}, a tenth of where the smoothed loss was lowest; see {plot}"
    )
    return LearningRateSearch(suggestion, plot, table, note)


def _advice(folder: Path, given: dict[str, Any]) -> str:
    from mmtune.tiny_recipe import SUFFIX

    if folder.name.removesuffix(DEFAULT_ENDING).endswith(SUFFIX):
        return "This is a tiny twin on made-up rows, where there may be nothing to learn: search without --tiny"
    if given["steps"] < TELLING_STEPS:
        return f"{given['steps']} steps are few, and chance decides which batch a rate meets: try --steps 100"
    return "Look at the data and the adapter, or begin at a lower rate (--lowest)"


def _refuse_range(lowest: float, highest: float, steps: int) -> None:
    problems = []
    if not 0 < lowest < highest:
        problems.append(f"lowest {lowest:g} and highest {highest:g}: write two rates above 0, the lower one first")
    if steps < FEWEST_STEPS:
        problems.append(f"steps {steps}: a test of so few says nothing; write at least {FEWEST_STEPS}")
    if problems:
        raise RecipeError("\n".join(problems))


def _shorten(recipe: "Recipe", steps: int, folder: Path) -> "Recipe":
    """The recipe with nothing but its steps."""
    from mmtune.ground.durations import Span

    plain: dict[str, Any] = {
        "length": Span(steps, "steps"),
        "warmup": Span(0, "steps"),
        "schedule": "constant",
        "evaluate_every": None,
        "best": None,
        "early_stopping": None,
        "ema": None,
        "trackers": [],
    }
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=plain), "output": str(folder)})


def growing_schedule(optimizer: Any, top: float, lowest: float, highest: float, steps: int) -> Any:
    """A schedule that takes the rate ``top`` from ``lowest`` at the first step to ``highest`` at the last, in equal
    factors."""
    from torch.optim.lr_scheduler import LambdaLR

    growth = highest / lowest
    return LambdaLR(optimizer, lambda step: lowest / top * growth ** (min(step, steps - 1) / (steps - 1)))


def _search(trainer: "Trainer") -> list[dict[str, float]]:
    """Step, rate, loss and smoothed loss, until the end or until the loss diverges."""
    from mmtune.adapters import set_modes
    from mmtune.train_loop import read_steps, take_step

    total = trainer.cadence.total
    trainer.liveness.last_step = -1  # the first rates move nothing that one could see
    set_modes(trainer.adapted)
    rows: list[dict[str, float]] = []
    recent: list[float] = []
    width, said_every = smoothing_width(total), math.ceil(total / MOST_LINES)
    batches = read_steps(trainer, 0, total)
    with trainer.log.progress(0, total):
        while trainer.state.step < total:
            try:
                row = take_step(trainer, batches)
            except NotFinite as error:
                trainer.log.line(f"ended there: {error}")
                break
            rows.append({name: row[name] for name in ("step", "learning_rate", "loss")})
            recent.append(_mean([each["loss"] for each in rows[-width:]]))
            if trainer.cadence.due(said_every, trainer.state.step):
                left = (total - row["step"]) * trainer.window.seconds / row["step"]
                trainer.log.step(row, total, left)
            if len(rows) > width and recent[-1] > DIVERGED * min(recent[width - 1 :]):
                trainer.log.line(f"ended at rate {row['learning_rate']:.3g}: the loss diverges")
                break
    for row, mean in zip(rows, smooth([row["loss"] for row in rows], width), strict=True):
        row["mean"] = mean
    return rows


def smoothing_width(steps: int) -> int:
    """Losses in a mean, an odd number."""
    return max(3, int(steps * WINDOW) // 2 * 2 + 1)


def smooth(losses: list[float], width: int) -> list[float]:
    """Means over ``width`` neighbours, fewer at the ends and the same number on both sides."""
    means = []
    for n in range(len(losses)):
        reach = min(width // 2, n, len(losses) - 1 - n)
        means.append(_mean(losses[n - reach : n + reach + 1]))
    return means


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def fully_smoothed(rows: list[dict[str, float]], width: int) -> list[dict[str, float]]:
    """The rows whose mean is one of ``width`` losses: the ends are hardly smoothed."""
    return rows[width // 2 : len(rows) - width // 2]


def suggest_rate(rows: list[dict[str, float]], width: int) -> tuple[float | None, str]:
    """A tenth of the rate at which the smoothed loss was lowest, the ends left out.

    Where it was lowest at the first rate, which changes nothing, the first batches were easy: then the lowest of the
    later ones counts, if the loss fell to it from the median of the first quarter.

    Args:
        rows: every step's ``learning_rate``, ``loss`` and ``mean``.
        width: losses in a mean.

    Returns:
        The rate, None where the loss never fell; and what speaks against trusting it.
    """
    smoothed = fully_smoothed(rows, width)
    means = [row["mean"] for row in smoothed]
    if len(means) < 2:
        return None, ""
    first = max(1, int(len(means) * UNTOUCHED))
    best, note = means.index(min(means)), ""
    before = median(means[:first]) if best == 0 or best >= first else max(means[: best + 1])
    if best == 0:
        best = means.index(min(means[first:]), first)
        note = "the smoothed loss was lowest at the very first rates, by chance; of the later ones the lowest counts"
    if means[best] >= before:
        return None, ""
    scatter = median(abs(row["loss"] - row["mean"]) for row in smoothed[: best + 1]) * 1.5 / width**0.5
    if before - means[best] < CLEAR_FALL * scatter:
        unsure = f"it fell by {before - means[best]:.2g}, and the smoothed losses scatter by {scatter:.2g} themselves"
        note = "; ".join(filter(None, [note, f"{unsure}: more steps or a larger batch would tell more"]))
    return smoothed[best]["learning_rate"] / SAFETY, note
