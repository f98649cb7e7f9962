"""A small world for `test_key_effects`: data and backbones on disk, recipes over them, and ways to look at a recipe.

A *look* takes the world and a recipe and gives what one sees of it: weights, samples, steps, files of a run; or
`Refused` with the message.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtune.ground.errors import MmtuneError
from mmtune.recipe_schema import Recipe, load_recipe

NUM_SHOWN = 6  # samples per split whose pixels are looked at
COMMITS = {"main": "a" * 40, "old": "b" * 40}
NUM_IMAGES = 24


class Refused(str):
    """An error's message in place of what was asked for."""


class World:
    """Everything on disk that the base recipes name, made once."""

    def __init__(self, folder: Path, tiny: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.tiny, self.patch = folder, tiny, patch
        self.num_runs = 0
        self._draw_images()
        self._write_tables()
        self._write_backbones()
        self._write_recipes()
        self._write_more()

    def _write_more(self) -> None:
        from key_worlds_sound import write_sound_world

        write_sound_world(self.folder)
        from key_worlds_sources import write_source_worlds

        write_source_worlds(self.folder)
        from key_worlds_answers import write_answer_world
        from key_worlds_tasks import write_task_world

        write_answer_world(self.folder)
        write_task_world(self.folder)

    def recipe(self, base: str, overrides: list[str]) -> Recipe:
        """A base recipe with overrides; ``FOLDER`` in them is the world's folder."""
        given = [override.replace("FOLDER", str(self.folder)) for override in overrides]
        return load_recipe(self.folder / f"{base}.yaml", given)

    def _draw_images(self) -> None:
        from PIL import Image

        generator = np.random.default_rng(0)
        for folder in ("images", "others"):
            (self.folder / folder).mkdir()
            for number in range(NUM_IMAGES):
                pixels = generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(self.folder / folder / f"{number}.png")
        for root in ("classes", "classes2"):
            for number in range(NUM_IMAGES):
                split = ("train", "train", "validation", "test")[number % 4]
                target = self.folder / root / split / ("red_bird", "blue_bird")[number % 3 % 2]
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.folder / "images" / f"{number}.png", target / f"{root}{number}.png")
        shutil.copytree(self.folder / "classes" / "train", self.folder / "flat")
        shutil.copytree(self.folder / "classes", self.folder / "broken")
        (self.folder / "broken" / "train" / "red_bird" / "bad.png").write_bytes(b"no image")

    def _write_tables(self) -> None:
        rows = [
            {
                "image": f"{number}.png",
                "second": f"{NUM_IMAGES - 1 - number}.png",
                "caption": [f"a {number}", f"the {number}"],
                "title": f"title {number}",
                "sku": f"sku-{number}",
                "product": f"product {number // 6}",
                "split": ("train", "train", "train", "val", "test", "extra")[number % 6],
                "fold": ("val", "train", "test", "train", "train", "train")[number % 6],
            }
            for number in range(NUM_IMAGES)
        ]
        lines = [json.dumps(row) for row in rows]
        tables = {"pairs": lines, "fewer": lines[:12], "odd": [*lines, "not json"]}
        for number, name in enumerate(("train", "validation", "test")):
            tables[name] = lines[8 * number : 8 * number + 8]
            tables[f"{name}_fewer"] = tables[name][:4]
        for name, chosen in tables.items():
            (self.folder / f"{name}.jsonl").write_text("\n".join(chosen) + "\n")

    def _write_backbones(self) -> None:
        import torch
        from safetensors.torch import load_file

        shutil.copytree(self.tiny, self.folder / "tiny")
        shutil.copytree(self.tiny, self.folder / "pickled")
        weights = load_file(self.folder / "pickled" / "model.safetensors")
        (self.folder / "pickled" / "model.safetensors").unlink()
        torch.save(weights, self.folder / "pickled" / "pytorch_model.bin")
        repository = self.folder / "hub" / "models--some--model"
        config = json.loads((self.tiny / "config.json").read_text())
        for number, (name, commit) in enumerate(COMMITS.items()):
            snapshot = repository / "snapshots" / commit
            snapshot.mkdir(parents=True)
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / name).write_text(commit)
            changed = {**config, "auto_map": {"AutoModel": "other/code--model.Model"}, "number": number}
            (snapshot / "config.json").write_text(json.dumps(changed))

    def _write_recipes(self) -> None:
        table = f"data: {{kind: jsonl, path: {self.folder}/pairs.jsonl, images: {self.folder}/images, SPLITS}}\n"
        by_column = table.replace("SPLITS", "splits: {train: train, validation: val, test: test}")
        by_hash = table.replace("SPLITS", "split: {validation: 20%, test: 20%}")
        by_file = table.replace(f"{self.folder}/pairs.jsonl", "{TRAIN, VALIDATION, TEST}").replace(", SPLITS", "")
        for name in ("train", "validation", "test"):
            by_file = by_file.replace(name.upper(), f"{name}: {self.folder}/{name}.jsonl")
        folders = f"data: {{kind: image_folder, path: {self.folder}/classes}}\n"
        lora = "{kind: lora, parts: [vision, text], rank: 2}"
        sources = {
            "column": (by_column, lora),
            "hash": (by_hash, lora),
            "files": (by_file, lora),
            "folders": (folders, lora),
            "glyphs": ("data: {kind: glyphs, fonts: [mono], characters: 10}\n", lora),
            "full": (by_column, "{kind: full, parts: [vision]}"),
            "head_only": (by_column, "{kind: head_only, parts: [vision]}"),
        }
        for name, (data, adapter) in sources.items():
            (self.folder / f"{name}.yaml").write_text(
                f"backbone: {{id: {self.folder}/tiny}}\nadapter: {adapter}\n{data}"
                "task: {kind: retrieval, loss: {kind: infonce}}\n"
                "train: {length: 4 steps, batch: 8, learning_rate: 1e-2, log_every: 1 steps}\n"
                f"output: {self.folder}/run\n"
            )


Look = Callable[[World, Recipe], Any]


def described(world: World, recipe: Recipe) -> Any:
    """Which files of which commit a backbone is, or why it is refused."""
    import huggingface_hub.constants

    from mmtune.backbones import describe
    from mmtune.backbones._hub_files import weight_files

    world.patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(world.folder / "hub"))
    try:
        description = describe(recipe.backbone)
        files = [path.name for path in weight_files(description)] if description.commit is None else []
    except MmtuneError as error:
        return Refused(error)
    return description.folder, description.commit, description.config.get("number"), files


def loaded(world: World, recipe: Recipe) -> Any:
    """Types and formats of the layers of a loaded backbone."""
    from mmtune.backbones import load

    model = load(recipe.backbone).model
    kinds = sorted({type(module).__name__ for module in model.modules()})
    return kinds, sorted({str(parameter.dtype) for parameter in model.parameters()})


def adapted(world: World, recipe: Recipe) -> Any:
    """What is trained, from which values, at which rates, and how each adapter acts."""
    from mmtune.adapters import attach, optimizer_groups
    from mmtune.backbones import load

    made = attach(load(recipe.backbone), recipe.adapter, seed=recipe.seed)
    trained = {name: _digest(value) for name, value in made.trainable().items()}
    rates = [(group["lr"], group["weight_decay"], len(group["names"])) for group in optimizer_groups(made, 1e-3, 0.1)]
    layers = [module for module in made.model.modules() if hasattr(module, "lora_dropout")]
    acts = [(layer.scaling["default"], str(layer.lora_dropout["default"])) for layer in layers]
    return trained, rates, acts


def _digest(tensor: Any) -> tuple[tuple[int, ...], str]:
    content = tensor.detach().cpu().float().numpy().tobytes()
    return tuple(tensor.shape), hashlib.sha256(content).hexdigest()


def sampled(world: World, recipe: Recipe) -> Any:
    """Every sample of every split with its captions, group and pixels, and the items of an epoch; or what is wrong."""
    from mmtune.ground.kind_folder import kind
    from mmtune.sources import split_names
    from mmtune.train_data import open_checked

    seen = {}
    try:
        for split in split_names(recipe.data):
            opened = open_checked(recipe, split)
            samples = [(one.id, one.captions, one.group) for one in opened.samples]
            pixels = [hashlib.sha256(one.media.read().tobytes()).hexdigest() for one in opened.samples[:NUM_SHOWN]]
            items = kind("tasks", recipe.task).items(opened.samples, recipe.data.captions)
            seen[split] = (samples, pixels, items, len(opened.bad))
    except MmtuneError as error:
        return Refused(error)
    return seen


def encoded(world: World, recipe: Recipe) -> Any:
    """The pixels of the first training item in the first epochs."""
    from mmtune.backbones import load
    from mmtune.batch_building import EncodedPairs
    from mmtune.ground.kind_folder import kind
    from mmtune.train_data import open_checked

    backbone = load(recipe.backbone)
    samples = open_checked(recipe, "train").samples
    task = kind("tasks", recipe.task)
    pairs = EncodedPairs(samples, task, backbone.family, backbone.processor, recipe.data, recipe.seed, 77)
    return [_digest(pairs[epoch, 0].inputs["pixel_values"]) for epoch in range(4)]


def bad_allowed(world: World, recipe: Recipe) -> Any:
    """Whether a split with one bad item in twenty is opened; for a source that makes its own images."""
    from mmtune import train_data
    from mmtune.ground.records import BadItem
    from mmtune.sources import OpenedSplit

    with pytest.MonkeyPatch.context() as patch:
        opened = OpenedSplit(("one",), (BadItem("x", "bad"),), 20)  # type: ignore[arg-type]
        patch.setattr("mmtune.sources.glyphs.open_split", lambda *_, **__: opened)
        try:
            return train_data.open_checked(recipe, "train").num_seen
        except MmtuneError as error:
            return Refused(error)


def valued(world: World, recipe: Recipe) -> float:
    """The loss of two pairs."""
    import torch

    from mmtune.ground.kind_folder import kind

    embeds = torch.eye(2)
    temperature = (torch.tensor(1.0), torch.tensor(-1.0))
    task = kind("tasks", recipe.task)
    return float(task.loss(recipe.task, embeds, embeds.flip(0), torch.eye(2, dtype=torch.bool), temperature))


def planned(world: World, recipe: Recipe) -> Any:
    """Steps, micro-batches and what is due when, for a thousand items on one rank."""
    from mmtune.run_setup import make_cadence, make_layout

    layout = make_layout(recipe, 1000, 1)
    return layout.batch, layout.micro_batch, layout.seed, make_cadence(recipe, layout)


def scheduled(world: World, recipe: Recipe) -> Any:
    """The optimizer's settings and its learning rate over twenty steps."""
    from mmtune.adapters import attach
    from mmtune.backbones import load
    from mmtune.optimizer_setup import make_optimizer, make_schedule
    from mmtune.run_setup import in_steps, make_layout

    made = attach(load(recipe.backbone), recipe.adapter, seed=recipe.seed)
    optimizer = make_optimizer(made, recipe.train)
    warmup = in_steps(recipe.train.warmup, make_layout(recipe, 1000, 1), 20)
    schedule = make_schedule(optimizer, recipe.train, warmup_steps=warmup, total_steps=20)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    rates = [factor(step) for factor in schedule.lr_lambdas for step in range(20)]
    return str(groups), rates


def computed(world: World, recipe: Recipe) -> str:
    """The mixed precision that the accelerator is started with."""
    from accelerate.state import AcceleratorState

    from mmtune.run_setup import start_accelerator

    AcceleratorState._reset_state(reset_partial_state=True)
    precision = str(start_accelerator(recipe).mixed_precision)
    AcceleratorState._reset_state(reset_partial_state=True)
    return precision


def trained(world: World, recipe: Recipe) -> dict[str, Any]:
    """A whole run of a few steps: losses, validation, checkpoints, files, worker processes."""
    from mmtune import train_loop, training_run
    from mmtune.run_checkpoint import checkpoints

    workers: list[int] = []
    real = train_loop.open_loader

    def watched(*given: Any, **named: Any) -> Any:
        workers.append(named["workers"])
        return real(*given, **named)

    run = Path(recipe.output)
    shutil.rmtree(run, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_loop, "open_loader", watched)
        training_run.fit(recipe)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((run / "manifest.json").read_text())
    return {
        "losses": [row["loss"] for row in rows if "loss" in row],
        "logged": [row["step"] for row in rows if "loss" in row],
        "validated": [row["step"] for row in rows if "validation" in row],
        "best": sorted(manifest["validation"] or {}),
        "checkpoints": sorted(str(name).rpartition("/")[2] for name in checkpoints(run)),
        "trackers": sorted(path.name.split(".")[0] for path in run.rglob("events.out.tfevents*")),
        "folder": run,
        "workers": workers,
    }
