"""``--tiny``: the same recipe in seconds and offline, on its family's tiny twin and made-up rows.

Everything else is the recipe's own: adapter, task, loss, optimizer, quantization, columns, captions and splits go the
way they go in earnest. What does not fit a tiny world is made to fit, and each such change is said aloud.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import BackboneError, CheckpointError, RecipeError

if TYPE_CHECKING:
    from mmtune.recipe_schema import Recipe

SUFFIX = "_tiny"
BATCH = 8
"""Samples per step, or as many as there are ranks."""

FEW = {"train.length": "4 steps", "train.log_every": "1 steps", "checkpoint.every": "2 steps"}
DONE_FILE = "inputs.json"


def shrink(recipe: "Recipe", overrides: Collection[str] = (), *, world_size: int = 1) -> "tuple[Recipe, list[str]]":
    """A recipe for a tiny world, and what was changed for it.

    The tiny twin and the rows are written beside the run, once, in ``OUTPUT_tiny_inputs``.

    Args:
        recipe: as it would run in earnest.
        overrides: what the command line set; of the numbers that are made smaller, those stay.
        world_size: number of ranks; the batch stays divisible by it.

    Raises:
        RecipeError: the backbone's family cannot be known here.
    """
    from mmtune.recipe_schema import recipe_from_json, resolved_json

    given = {text.partition("=")[0] for text in overrides}
    output = recipe.output.rstrip("/")
    inputs = _write_inputs(recipe, Path(f"{output}{SUFFIX}_inputs"))
    values = {**resolved_json(recipe), **inputs, "output": output + SUFFIX}
    notes = [f"tiny: backbone {_name(recipe)} and its data are replaced by made-up ones in {output}{SUFFIX}_inputs"]
    if recipe.backbone.image is not None:
        notes.append("tiny: backbone.image is null: the twin's pictures are small already")
    for key, value in _smaller(recipe, values, world_size).items():
        section, name = key.split(".")
        if key not in given and values[section].get(name) != value:
            notes.append(f"tiny: {key} is {_written(value)} instead of {_written(values[section].get(name))}")
            values[section][name] = value
    return recipe_from_json(values, "the tiny recipe"), notes


def tiny_run(target: str, recipe: "Recipe | None" = None) -> str:
    """What stands for ``target`` in the tiny world: the run that ``finetune --tiny`` made of it.

    Args:
        target: a run (or anything in it), the recipe of one, a hub id or a model folder.
        recipe: a tiny recipe whose backbone stands for a model that is no run.

    Raises:
        CheckpointError: there is no such run.
    """
    path = Path(target)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        from mmtune.recipe_schema import load_recipe

        path = Path(load_recipe(path).output)
        target = str(path)
    for folder in (path, *path.parents):
        beside = folder.with_name(folder.name + SUFFIX) if folder.name else folder
        found = (folder if folder.name.endswith(SUFFIX) else beside) / path.relative_to(folder)
        if folder.name.endswith(SUFFIX) or (beside != folder and found.is_dir()):
            return str(found)
    if recipe is not None and not path.is_dir():
        return str(recipe.backbone.name)
    raise CheckpointError(f"there is no tiny run {target}{SUFFIX}: make it with `mmtune finetune RECIPE --tiny`")


def _name(recipe: "Recipe") -> str:
    return str(recipe.backbone.name)


def _written(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _write_inputs(recipe: "Recipe", folder: Path) -> dict[str, Any]:
    """The sections ``backbone`` and ``data`` of the tiny world; written by the first rank that comes."""
    from mmtune.backbones import tiny_section
    from mmtune.sources import write_tiny

    before = {name: getattr(recipe, name).model_dump(mode="json") for name in ("backbone", "data")}
    before["task"] = recipe.task.model_dump(mode="json")  # some families have a class for each kind
    done = folder / DONE_FILE
    with _one_at_a_time(folder):
        if done.is_file():
            kept: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
            if kept["before"] == before:
                return dict(kept["after"])
        for name in ("backbone", "data"):
            shutil.rmtree(folder / name, ignore_errors=True)
        done.unlink(missing_ok=True)
        backbone = _explained(recipe, lambda: tiny_section(recipe.backbone, folder / "backbone", task=recipe.task.kind))
        data = write_tiny(recipe.data, folder / "data")
        task = _made_up_classes(recipe, data)
        after = {"backbone": backbone.model_dump(mode="json"), "data": data.model_dump(mode="json"), "task": task}
        done.write_text(json.dumps({"before": before, "after": after}, indent=2), encoding="utf-8")
    return after


def _made_up_classes(recipe: "Recipe", data: Any) -> dict[str, Any]:
    """The task; one that chooses among classes chooses among the first captions of the made-up images."""
    from mmtune.sources import open_split, split_names

    task: dict[str, Any] = recipe.task.model_dump(mode="json")
    if "classes" in task:
        opened = [open_split(data, split, seed=recipe.seed) for split in split_names(data)]
        task["classes"] = sorted({sample.captions[0] for one in opened for sample in one.samples})
        task["templates"] = ["{}"]  # tiny text towers have few positions
    return task


def _explained(recipe: "Recipe", make: "Callable[[], Any]") -> Any:
    from mmtune.ground.kind_folder import kinds

    try:
        return make()
    except BackboneError as error:
        if recipe.backbone.family is not None:
            raise
        raise RecipeError(
            f"backbone.family: --tiny must know what {_name(recipe)} is, and its config.json cannot be read here; "
            f"write family: one of {', '.join(kinds('backbones'))}\n({error})"
        ) from error


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Ranks of one launch, and runs started together, wait for each other."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _smaller(recipe: "Recipe", values: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Key -> value that fits the tiny world."""
    train = recipe.train
    batch = min(train.batch, max(BATCH, 2 * world_size) // world_size * world_size)
    shares = [batch // world_size, train.batch // world_size]  # the second where the command line set it
    fitting = [n for n in range(1, max(1, shares[0] // 2) + 1) if not any(share % n for share in shares)]
    micro_batch = None if train.micro_batch is None else fitting[-1]
    smaller: dict[str, Any] = {**FEW, "train.batch": batch, "train.micro_batch": micro_batch}
    smaller |= {"train.workers": min(train.workers, 1), "train.trackers": []}
    if train.evaluate_every is not None:
        smaller["train.evaluate_every"] = "2 steps"
    if train.warmup.unit != "%":
        smaller["train.warmup"] = "1 steps"
    if values["adapter"].get("start_from"):
        smaller["adapter.start_from"] = None
    if "tokens" in values["adapter"]:
        smaller["adapter.tokens"] = list("abcdefghijklmnopqrstuvwxyz")  # what every tiny tokenizer has
    if "rank" in values["adapter"]:
        smaller["adapter.rank"] = _fitting_rank(values["adapter"]["rank"])
    if "layers" in values["adapter"]:
        smaller["adapter.layers"] = _fitting_layers(values)
    return smaller


def _fitting_rank(rank: Any) -> Any:
    """Some kinds and starts cannot have more than a layer has inputs, and tiny towers are 32 wide."""
    if isinstance(rank, dict):
        return {part: _fitting_rank(each) for part, each in rank.items()}
    return min(rank, 32) if isinstance(rank, int) else rank


def _fitting_layers(values: dict[str, Any]) -> Any:
    """The choice of layers, cut to the depth of the tiny towers."""
    from mmtune.backbones import Section, describe

    depth = describe(Section.model_validate(values["backbone"])).num_layers
    layers = values["adapter"]["layers"]
    if isinstance(layers, dict):
        return {part: _fitting(choice, depth.get(part)) for part, choice in layers.items()}
    depths = [depth[part] for part in values["adapter"]["parts"] if part in depth]
    return _fitting(layers, min(depths, default=None))


def _fitting(choice: Any, depth: int | None) -> Any:
    if depth is None or choice == "all":
        return choice
    if isinstance(choice, str) and choice.startswith(("first", "last")):
        end, count = choice.split()
        return f"{end} {min(int(count), depth)}"
    return "last 1"
