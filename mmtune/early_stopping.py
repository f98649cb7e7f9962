"""Which validation score is the best so far, and when the run stops because none is better any more.

A gain counts for stopping only where it is more than ``min_delta`` over the last score that counted; ``patience``
validations in a row without one end the run. The best checkpoint needs no ``min_delta``: any better score makes it.
Source: Prechelt 1998, "Early Stopping - But When?" (criterion UP, on one score).
"""

from typing import Any

from mmtune.metrics import higher_is_better
from mmtune.run_checkpoint import TrainState, checkpoint_name


def note_score(state: TrainState, section: Any, name: str, score: float) -> bool:
    """Take note of the score after ``state.step`` steps; true when it is the best so far.

    Args:
        state: ``best_score``, ``best_checkpoint`` and what stopping needs are moved on.
        section: ``train.early_stopping``, or None.
        name: the score's name; it says which way is good.
        score: its value.
    """
    sign = 1 if higher_is_better(name) else -1
    better = state.best_score is None or sign * score > sign * state.best_score
    if better:
        state.best_score, state.best_checkpoint = score, checkpoint_name(state.step)
    if section is not None:
        gained = state.last_gain is None or sign * (score - state.last_gain) > section.min_delta
        state.num_without_gain = 0 if gained else state.num_without_gain + 1
        state.last_gain = score if gained else state.last_gain
        state.stopped_early = state.num_without_gain >= section.patience
    return better


def describe_stop(state: TrainState, section: Any, name: str) -> str:
    """Why the run stopped."""
    gain = f" by more than {section.min_delta:g}" if section.min_delta else ""
    return (
        f"stopped early at step {state.step}: validation {name} was not better{gain} than {state.last_gain:.4f} "
        f"in {state.num_without_gain} validations in a row (train.early_stopping.patience: {section.patience})"
    )
