"""What the trials on real data gave, as the run folders tell it, and the table of it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES, SEED = 2000, 0
"""Of the intervals of single scores; those of changes are mmtune's own."""

INTRODUCTION = """\
Written by `python scripts/try_real_data.py FOLDER`; every figure here is that script's. Data: easy-VQA (MIT), NLVR v1
(CC-BY-4.0), emoji of one style (MIT) with their CLDR names (Unicode-3.0); none of it is in this repository. Scores are
of the test split, in brackets their 95 % intervals: of the change as `mmtune evaluate` has it, of a single score by the
same bootstrap over images (nlvr: over sentences). *Majority* is what the commonest answer makes, given always. Seconds
are those of training, on whatever part of the machine the run was given. The gap of a merge is in float32, scores are
in the run's own precision."""

SHARES = ("exact_match", "accuracy")
"""Scores that a constant answer is judged by as others are."""

RUN_HEAD = ("trial", "network, what is trained", "samples", "steps x batch", "seconds")
SCORE_HEAD = ("score", "base", "tuned", "change", "majority")
MERGE_HEAD = ("merged", "weights trained", "largest gap to the adapted model", "score of the folder", "of the run")


@dataclass(frozen=True)
class Outcome:
    """What a trial gave, as the run folder tells it.

    Attributes:
        about: what is learned.
        network: what learns it, and what of it is trained.
        recipe: as it was resolved.
        manifest: of the run.
        scores: ``scores.json``.
        answers: rows of ``answers.jsonl``.
        merge: ``merge_report.json``.
        merged: scores of the merged folder, loaded as a plain model.
    """

    about: str
    network: str
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    scores: dict[str, Any]
    answers: list[dict[str, Any]]
    merge: dict[str, Any]
    merged: dict[str, float]


def interval_of(answers: list[dict[str, Any]], model: str, score: str) -> tuple[float, float]:
    """95 % interval of one model's mean score: groups of samples (what stands before the slash of an id) are drawn."""
    names = {row["id"].partition("/")[0] for row in answers}
    place = {name: number for number, name in enumerate(sorted(names))}
    groups = np.array([place[row["id"].partition("/")[0]] for row in answers])
    values = np.array([row[model]["scores"][score] for row in answers], dtype=np.float64)
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups).astype(np.float64)
    draws = np.random.default_rng(SEED).integers(0, len(place), size=(RESAMPLES, len(place)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def in_words(answers: list[dict[str, Any]], model: str, score: str) -> str:
    """The interval, as ``0.801 to 0.823``."""
    return " to ".join(f"{edge:.3f}" for edge in interval_of(answers, model, score))


def table_lines(outcomes: dict[str, Outcome], left_out: dict[str, str]) -> Iterator[str]:
    """The whole file: one row per trial and score."""
    yield "# Real data"
    yield ""
    yield from INTRODUCTION.splitlines()
    yield ""
    yield from head_of(*RUN_HEAD, *SCORE_HEAD)
    for name, one in outcomes.items():
        for score in one.scores["tuned"]:
            yield score_row(name, one, score)
    yield ""
    yield from head_of(*MERGE_HEAD)
    for name, one in outcomes.items():
        yield merge_row(name, one)
    yield ""
    yield f"Machine: {machine()}."
    for name, reason in left_out.items():
        yield f"Left out: {name}, because {reason}."


def head_of(*columns: str) -> Iterator[str]:
    """The two lines that a table begins with."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)


def score_row(name: str, one: Outcome, score: str) -> str:
    """Base and tuned of one score."""
    scores, change = one.scores, "-"
    if scores["interval95"][score] is not None:
        change = (
            f"{scores['delta'][score]:+.3f} ({' to '.join(f'{edge:+.3f}' for edge in scores['interval95'][score])})"
        )
    cells = [
        f"{name}: {one.about}",
        one.network,
        f"{scores['samples']:,}",
        f"{one.manifest['steps']:,} x {one.recipe['train']['batch']}, {one.recipe['train']['precision']}",
        f"{one.manifest['seconds']:.0f}",
        score,
        *(f"{scores[model][score]:.3f} ({in_words(one.answers, model, score)})" for model in ("base", "tuned")),
        change,
        f"{scores['majority']['share']:.3f}" if score in SHARES else "-",
    ]
    return f"| {' | '.join(cells)} |"


def merge_row(name: str, one: Outcome) -> str:
    """What was lost by merging."""
    score = next(iter(one.scores["tuned"]))
    gap = one.merge["reload"]["gap"]
    trained = one.manifest["trainable"]
    cells = [
        name, f"{trained['count']:,} ({trained['share']:.1%})", f"{gap:.1e}",
        f"{score} {one.merged[score]:.4f}", f"{one.scores['tuned'][score]:.4f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """Cores and what computes."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{cores} cores, {where}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
