"""When a run stops by itself, what it says, and that a longer length does not undo it."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_recipe

from mmtune.early_stopping import note_score
from mmtune.ground.errors import RecipeError
from mmtune.recipe_schema import EarlyStoppingSection
from mmtune.run_checkpoint import TrainState, checkpoints, read_state
from mmtune.training_run import fit

SCORE = "text_to_image_recall@1"


def follow(scores: list[float], name: str = SCORE, **section: Any) -> list[tuple[bool, bool]]:
    """(best so far, stops) after each score."""
    state, seen = TrainState(), []
    for step, score in enumerate(scores, 1):
        state.step = step
        better = note_score(state, EarlyStoppingSection(**section), name, score)
        seen.append((better, state.stopped_early))
    return seen


def test_patience_counts_validations_without_a_gain() -> None:
    assert follow([0.1, 0.2, 0.2, 0.1], patience=2) == [(True, False), (True, False), (False, False), (False, True)]
    assert not any(stops for _, stops in follow([0.1, 0.1, 0.2, 0.2, 0.3, 0.3], patience=2)), "each gain starts anew"


def test_small_gains_make_a_best_checkpoint_but_do_not_go_on_for_ever() -> None:
    assert follow([0.10, 0.11, 0.12], patience=2, min_delta=0.05) == [(True, False), (True, False), (True, True)]
    steady = follow([0.10, 0.13, 0.16, 0.19], patience=3, min_delta=0.05)
    assert not steady[-1][1], "small gains add up: they are counted from the last score that was a gain"


def test_a_score_that_is_better_when_lower() -> None:
    name = "text_to_image_median_rank"
    assert follow([9.0, 7.0, 8.0], name, patience=1) == [(True, False), (True, False), (False, True)]


def test_without_the_section_nothing_stops() -> None:
    state = TrainState()
    for _ in range(9):
        note_score(state, None, SCORE, 0.5)
    assert not state.stopped_early and state.num_without_gain == 0


def test_a_run_stops_says_so_and_stays_stopped(tmp_path: Path, tiny_clip_folder: Path) -> None:
    stopping = {"evaluate_every": "2 steps", "early_stopping": {"patience": 1, "min_delta": 1.0}}

    def recipe(length: str) -> Any:
        return small_recipe(tmp_path, tiny_clip_folder, train={**stopping, "length": length})

    run = fit(recipe("20 steps"))
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["stopped_early"], manifest["steps"]) == ("finished", 4, 4)
    newest = checkpoints(run)[-1]
    assert newest.name == "step-000004" and read_state(newest).stopped_early
    log = (run / "run.log").read_text()
    assert f"stopped early at step 4: validation {SCORE} was not better by more than 1" in log
    assert "finished, stopped early of 20: 4 steps" in log
    fit(recipe("20 steps"))
    assert "nothing to do" in (run / "run.log").read_text()
    fit(recipe("24 steps"))
    assert json.loads((run / "manifest.json").read_text())["steps"] == 4


def test_it_needs_validation(tmp_path: Path, tiny_clip_folder: Path) -> None:
    with pytest.raises(RecipeError, match="train.early_stopping: goes by validation scores.*evaluate_every"):
        small_recipe(tmp_path, tiny_clip_folder, train={"early_stopping": {}})


def test_an_untrained_score_is_no_candidate(tmp_path: Path, tiny_clip_folder: Path) -> None:
    """The first update of a warm-up has learning rate 0: what is scored after it is the backbone as it came."""
    train = {"evaluate_every": "1 steps", "warmup": "1 steps", "length": "3 steps"}
    run = fit(small_recipe(tmp_path, tiny_clip_folder, train=train))
    scored = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in scored if "validation" in row] == [1, 2, 3], "it is logged all the same"
    assert "(the learning rate was 0 so far)" in (run / "run.log").read_text()
    assert json.loads((run / "manifest.json").read_text())["best_checkpoint"] in ("step-000002", "step-000003")
