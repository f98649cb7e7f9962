"""Whole runs of what answers, with the trunk cache and without: trained, validated, scored and answered alike."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lifecycle_cases import STEPS, World, answers, checkpoint_bytes, losses, without_pictures

from mmtune.evaluation_run import score
from mmtune.training_run import fit
from mmtune.trunk_shelf import list_trunks

CLOSE = 1e-4
"""Largest relative difference of a loss after a few steps: a difference in the last bit, and AdamW."""

CASES: dict[str, dict[str, Any]] = {
    "llava": {"adapter": {"parts": ["text"]}, "train": {"group_by_length": True, "micro_batch": 2}},
    "qwen2_5_vl": {"adapter": {"parts": ["text"]}, "train": {"workers": 2}},
    "blip captions": {"adapter": {"layers": "last 1"}, "train": {"evaluate_every": "2 steps"}},
    "blip matches": {"adapter": {"parts": ["text"]}, "train": {"activation_checkpointing": True}},
    "blip2 opt": {"adapter": {"parts": ["text"]}, "train": {"micro_batch": 1}},
}
"""Case of ``lifecycle_cases`` -> sections that leave it a trunk, and settings that are tried with it."""


SCORED: dict[str, dict[str, Any]] = {
    "blip matches": CASES["blip matches"],
    "llava": CASES["llava"],
    "llava, from a list": {"adapter": {"parts": ["text"]}, "train": {"length": "2 steps"}},
}
"""Log odds, what is generated, and what is chosen."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with without_pictures():
        yield World(tmp_path_factory.mktemp("answers"))


def run(world: World, name: str, which: str, cache: Path | None) -> SimpleNamespace:
    sections = (CASES | SCORED)[name]
    section = "off" if cache is None else {"mode": "disk", "folder": str(cache)}
    train = {**sections["train"], "trunk_cache": section}
    folder = fit(world.recipe(name, f"{name} {which}", adapter=sections["adapter"], train=train))
    lines = [line for line in (folder / "run.log").read_text().splitlines() if "trunk cache: vision" in line]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [row["validation"] for row in rows if "validation" in row]
    return SimpleNamespace(folder=folder, losses=losses(folder), scores=scores, lines=lines)


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_the_same(world: World, tmp_path: Path, name: str) -> None:
    off = run(world, name, "off", None)
    cold = run(world, name, "cold", tmp_path)
    assert sorted(off.losses) == sorted(cold.losses) == list(range(1, STEPS + 1))
    for step, pair in off.losses.items():
        assert cold.losses[step] == pytest.approx(pair, rel=CLOSE), step
    assert off.scores == [pytest.approx(one, rel=CLOSE) for one in cold.scores]
    assert len(cold.lines) == 2 and not off.lines
    warm = run(world, name, "warm", tmp_path)
    assert warm.losses == cold.losses and checkpoint_bytes(warm.folder) == checkpoint_bytes(cold.folder)
    assert "done 0 times" in warm.lines[-1]


@pytest.mark.parametrize("name", SCORED)
def test_a_run_is_scored_the_same(world: World, tmp_path: Path, name: str) -> None:
    """Base and tuned, from states of the trunk that both have, and without."""
    cached = run(world, name, "scored", tmp_path)
    plain = world.recipe(name, f"{name} scored", adapter=SCORED[name]["adapter"], train={"trunk_cache": "off"})
    (before,) = list_trunks(tmp_path)
    fed = score(cached.folder, output=tmp_path / "fed")
    (after,) = list_trunks(tmp_path)
    assert after.num_entries > before.num_entries, "images of the test split, in the same trunk"
    alone = score(cached.folder, recipe=plain, output=tmp_path / "alone")
    for which in ("base", "tuned"):
        assert fed[which] == pytest.approx(alone[which], rel=CLOSE), which
    assert answers(tmp_path / "fed") == answers(tmp_path / "alone")
