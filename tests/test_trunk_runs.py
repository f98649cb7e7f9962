"""Whole runs with the trunk cache are those without it, from a first one to one that goes on in the middle."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lifecycle_cases import without_pictures
from safetensors.torch import load_file
from small_runs import free_port, small_recipe, write_pairs

from mmtune.evaluation_run import score
from mmtune.ground.errors import DataError
from mmtune.ground.image_reading import ImageFile
from mmtune.recipe_schema import Recipe
from mmtune.training_run import fit

HERE = Path(__file__).parent

CLOSE = 1e-4
"""Largest relative difference of a loss or norm after a few steps: a difference in the last bit, and AdamW, whose first
updates divide by the gradient's own size."""

PRECISE = 1e-2
"""The same under autocast to bfloat16."""

STEPS, STOPPED = 6, 3
NUM_TRAIN, NUM_VALIDATION = 12, 6
PLAIN = [f"train.length={STEPS} steps", "train.batch=8", "train.schedule=constant", "adapter.layers=last 1"]
RANKS = ["train.micro_batch=2", "checkpoint.every=2 steps"]
ALONE = ["train.micro_batch=1", "adapter.dropout=0.1", "train.fused_layers=false"]
EVALUATED = ["train.evaluate_every=3 steps"]


class Shelf:
    """Runs below a folder, on the same data; each is made once."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder, self.backbone = folder, backbone
        self.made: dict[str, SimpleNamespace] = {}
        write_pairs(folder)
        for image in (folder / "images").iterdir():
            os.utime(image, (1e9, 1e9))  # what has just changed is read each time

    def recipe(self, name: str, *overrides: str, cache: str = "off") -> Recipe:
        """``cache`` is ``off``, ``memory``, or the name of a folder of states."""
        chosen = self.overrides(name, *overrides, cache=cache)
        return small_recipe(self.folder, self.backbone, *chosen, checkpoint={"every": f"{STOPPED} steps"})

    def overrides(self, name: str, *overrides: str, cache: str) -> list[str]:
        """What is other than in ``small_recipe``."""
        section = cache if cache in ("off", "memory") else f"{{mode: disk, folder: {self.folder / 'caches' / cache}}}"
        return [*PLAIN, *overrides, f"train.trunk_cache={section}", f"output={self.folder / 'runs' / name}"]

    def run(self, name: str, *overrides: str, **cache: str) -> SimpleNamespace:
        """What a run left."""
        if name not in self.made:
            self.made[name] = self.look(fit(self.recipe(name, *overrides, **cache)))
        return self.made[name]

    @staticmethod
    def look(run: Path) -> SimpleNamespace:
        """Losses and norms by step, scores, what its log says of the cache, and its checkpoints' bytes."""
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in (run / "run.log").read_text().splitlines() if "trunk cache" in line]
        done = [re.search(r"trunk cache: (.*): done (\d+) times", line) for line in lines]
        last = sorted((run / "checkpoints").iterdir())[-1]
        return SimpleNamespace(
            folder=run,
            losses={row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row},
            scores=[row["validation"] for row in rows if "validation" in row],
            lines=lines,
            done={one[1].split()[0]: int(one[2]) for one in done if one},
            bytes={str(path.relative_to(last)): path.read_bytes() for path in sorted(last.rglob("*.safetensors"))},
            last=last,
        )


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("runs"), tiny_clip_folder)


def assert_equal(one: SimpleNamespace, other: SimpleNamespace, within: float = CLOSE) -> None:
    assert sorted(one.losses) == sorted(other.losses) == list(range(1, STEPS + 1))
    for step, (loss, norm) in one.losses.items():
        assert other.losses[step] == (pytest.approx(loss, rel=within), pytest.approx(norm, rel=within)), step
    assert one.scores == [pytest.approx(score, rel=within) for score in other.scores]
    assert names_in(one) == names_in(other), "the same files with the same tensors"


def names_in(run: SimpleNamespace) -> dict[str, list[str]]:
    """The tensors of each file of its last checkpoint; every rank keeps its own random state."""
    return {name: sorted(load_file(run.last / name)) for name in run.bytes if not name.startswith("rng")}


def assert_same_bits(one: SimpleNamespace, other: SimpleNamespace) -> None:
    assert one.losses == other.losses and one.scores == other.scores
    assert one.bytes == other.bytes and one.bytes


# --- off, cold, warm


def test_a_run_is_the_same_without_warm_and_cold(shelf: Shelf) -> None:
    off = shelf.run("off", *EVALUATED)
    cold = shelf.run("cold", *EVALUATED, cache="first")
    assert_equal(off, cold)
    assert cold.done["vision"] == NUM_TRAIN + NUM_VALIDATION, "each image once, though shown four times"
    warm = shelf.run("warm", *EVALUATED, cache="first")
    assert_same_bits(cold, warm)
    assert warm.done == {"vision": 0, "text": 0}
    memory = shelf.run("memory", *EVALUATED, cache="memory")
    assert_same_bits(cold, memory)
    assert memory.done == cold.done
    assert not off.done and off.losses[1] != off.losses[STEPS]


def test_with_one_sample_at_a_time_every_bit_is_the_same(shelf: Shelf) -> None:
    """The states' last bits depend on what is computed together; alone, on nothing."""
    off, cold = shelf.run("off alone", *ALONE), shelf.run("cold alone", *ALONE, cache="alone")
    assert_same_bits(off, cold)
    assert cold.done["vision"] == NUM_TRAIN
    assert off.losses != shelf.run("off", *EVALUATED).losses, "dropout is drawn"


def test_micro_batches_change_nothing(shelf: Shelf) -> None:
    whole = shelf.run("cold", *EVALUATED, cache="first")
    assert_equal(whole, shelf.run("micro", *EVALUATED, "train.micro_batch=2", cache="micro"))
    again = shelf.run("warm micro", *EVALUATED, "train.micro_batch=2", cache="first")
    assert_equal(whole, again)
    assert again.done["vision"] == 0


def test_another_adapter_uses_the_same_trunk(shelf: Shelf) -> None:
    other = [*EVALUATED, "adapter.rank=2", "adapter.targets=[mlp]", "seed=2"]
    shelf.run("cold", *EVALUATED, cache="first")
    warm = shelf.run("another adapter", *other, cache="first")
    assert warm.done["vision"] == 0 and warm.done["text"] < NUM_TRAIN, "captions are drawn by the seed"
    assert_equal(shelf.run("another adapter, off", *other), warm)
    deeper = shelf.run("another depth", "adapter={kind: head_only, parts: [vision, text]}", cache="first")
    assert deeper.done["vision"] == NUM_TRAIN, "another trunk"


def test_every_caption_of_an_image_runs_its_trunk_once(shelf: Shelf) -> None:
    each = ["data.captions=all"]
    found = shelf.run("each caption", *each, cache="each")
    assert found.done == {"vision": NUM_TRAIN, "text": 2 * NUM_TRAIN}
    assert_equal(shelf.run("each caption, off", *each), found)


# --- beside other settings


SETTINGS: dict[str, tuple[list[str], float]] = {
    "checkpointing": (["train.activation_checkpointing=true", "train.ema={decay: 0.8}", "adapter.dropout=0.1"], CLOSE),
    "bf16": (["train.precision=bf16", "backbone.quantize=4bit", "adapter.targets=[mlp]"], PRECISE),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_beside_other_settings(shelf: Shelf, name: str) -> None:
    settings, within = SETTINGS[name]
    off = shelf.run(f"{name} off", *settings, "train.micro_batch=4")
    cold = shelf.run(f"{name} cold", *settings, "train.micro_batch=4", cache=name)
    assert_equal(off, cold, within)
    assert cold.done["vision"] == NUM_TRAIN
    warm = shelf.run(f"{name} warm", *settings, "train.micro_batch=4", cache=name)
    assert_same_bits(cold, warm)
    assert warm.done["vision"] == 0


def test_changed_images_are_not_kept_and_it_is_said(shelf: Shelf) -> None:
    changed = ["data.augment={colour: 0.6}"]
    found = shelf.run("augment", *changed, cache="augment")
    assert any("off for images: training images are changed at random" in line for line in found.lines), found.lines
    assert "vision" not in found.done and found.done["text"] > 0
    assert_equal(shelf.run("augment off", *changed), found)


def test_two_views_of_an_image_are_two_entries(shelf: Shelf) -> None:
    changed = ["data.augment={colour: 0.6, views: 2}"]
    found = shelf.run("views", *changed, cache="views")
    assert_equal(shelf.run("views off", *changed), found)
    assert found.done["vision"] == 2 * NUM_TRAIN
    assert found.losses != shelf.run("one view", "data.augment={colour: 0.6, views: 1}", cache="one").losses
    assert shelf.made["one view"].done["vision"] == NUM_TRAIN


def test_a_warm_run_reads_no_image(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = shelf.run("cold", *EVALUATED, cache="first")
    shelf.run("warm", *EVALUATED, cache="first")
    read: list[str] = []

    def unreadable(self: Any) -> Any:
        read.append(self.where)
        raise DataError(f"{self.where}: nobody may read it")

    monkeypatch.setattr(ImageFile, "read", unreadable)
    blind = shelf.run("blind", *EVALUATED, cache="first")
    assert_same_bits(cold, blind)
    assert len(read) <= 4, "a few, to see how much room the states of all will take"
    assert json.loads((blind.folder / "manifest.json").read_text())["data"]["bad"] == 0
    with pytest.raises(DataError):
        shelf.run("blind off", *EVALUATED)


def test_a_run_is_scored_the_same(shelf: Shelf) -> None:
    """Base and tuned, from states of the trunk that both have, and without."""
    cached = shelf.run("cold", *EVALUATED, cache="first")
    fed = score(cached.folder, output=shelf.folder / "fed")
    alone = score(cached.folder, recipe=shelf.recipe("cold", *EVALUATED), output=shelf.folder / "alone")
    for which in ("base", "tuned"):
        assert fed[which] == pytest.approx(alone[which], rel=CLOSE), which
    assert fed["base"] != fed["tuned"]


# --- going on


def test_a_stopped_run_goes_on_bit_for_bit_and_workers_change_no_bit(shelf: Shelf) -> None:
    """Each with a cache of its own, empty at first: what is used is what was kept, from the first pass on.

    Workers look into the store ahead of the step; what they did not find yet is found when the step comes.
    """
    changed = ["adapter.dropout=0.1", "train.micro_batch=2"]
    whole = shelf.run("whole", *changed, cache="whole")
    recipe = shelf.recipe("halves", *changed, "train.workers=2", cache="halves")
    half = recipe.train.model_copy(update={"length": type(recipe.train.length)(STOPPED, "steps")})
    fit(recipe.model_copy(update={"train": half}))
    assert_same_bits(whole, shelf.look(fit(recipe)))
    warm = shelf.run("warm workers", *changed, "train.workers=2", cache="halves")
    assert_same_bits(whole, warm)
    assert whole.done["vision"] == NUM_TRAIN and warm.done == {"vision": 0, "text": 0}


@pytest.fixture(scope="module")
def launched(shelf: Shelf) -> dict[str, SimpleNamespace]:
    """Runs on two ranks, one of them killed after its last checkpoint, all made by one interpreter."""
    shelf.recipe("any")
    specs: dict[str, dict[str, Any]] = {
        "cold": {"cache": "ranks"},
        "memory": {"cache": "memory", "changed": ["data.captions=all"]},
        "killed": {"cache": "killed ranks", "kill_at": 5},
        "resumed": {"cache": "killed ranks", "run": "killed"},
    }
    plan = []
    for name, spec in specs.items():
        overrides = shelf.overrides(
            f"{spec.get('run', name)} ranks", *RANKS, *spec.get("changed", ()), cache=spec["cache"]
        )
        kept = {key: value for key, value in spec.items() if key == "kill_at"}
        common = {"recipe": str(shelf.folder / "recipe.yaml"), "error": str(shelf.folder / f"{name}.error")}
        plan.append({**common, "ranks": 2, "port": free_port(), "overrides": overrides, **kept})
    file = shelf.folder / "plan.json"
    file.write_text(json.dumps(plan))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, str(HERE / "launched" / "plain_killed_runs.py"), str(file)]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = dict(zip(specs, json.loads((shelf.folder / "plan.codes.json").read_text()), strict=True))
    assert codes == {name: -9 if "kill_at" in spec else 0 for name, spec in specs.items()}, done.stderr[-3000:]
    return {name: shelf.look(shelf.folder / "runs" / f"{spec.get('run', name)} ranks") for name, spec in specs.items()}


def test_two_ranks_equal_one(shelf: Shelf, launched: dict[str, SimpleNamespace]) -> None:
    assert_equal(shelf.run("one rank", *RANKS, cache="one rank"), launched["cold"])
    assert launched["cold"].done["vision"] == NUM_TRAIN


def test_two_ranks_may_show_the_same_image_at_once(shelf: Shelf, launched: dict[str, SimpleNamespace]) -> None:
    """Both may run its trunk then: the store they share in memory has one of the two."""
    each = shelf.run("each caption", "data.captions=all", cache="each")
    assert_equal(each, launched["memory"])
    assert NUM_TRAIN <= launched["memory"].done["vision"] < 2 * NUM_TRAIN


def test_a_killed_run_goes_on_bit_for_bit(launched: dict[str, SimpleNamespace]) -> None:
    """It finds states that it kept after its last checkpoint: those that the uninterrupted run computed then."""
    assert_same_bits(launched["cold"], launched["resumed"])


# --- what knows nothing of it


@pytest.mark.parametrize("room", ["predict_run", "show_run", "merge_building", "merge_proof", "push_run", "export_run"])
def test_other_commands_know_nothing_of_it(room: str) -> None:
    assert "trunk" not in (HERE.parent / "mmtune" / f"{room}.py").read_text(encoding="utf-8")


def test_a_cached_run_is_merged_as_any(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no store is opened for it."""
    from mmtune import trunk_store
    from mmtune.merge_building import fold, open_samples
    from mmtune.model_loading import resolve

    runs = [shelf.run("off alone", *ALONE), shelf.run("cold alone", *ALONE, cache="alone")]
    monkeypatch.setattr(trunk_store.TrunkStore, "__init__", lambda *_, **__: pytest.fail("opened"))
    samples, _ = open_samples(shelf.recipe("any"))
    merges = [fold(resolve(one.folder), samples, scale=1.0, full=False, dtype="float32") for one in runs]
    states = [merge.state for merge in merges]
    assert states[0].keys() == states[1].keys()
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert merges[0].trained and merges[0].trained == merges[1].trained
