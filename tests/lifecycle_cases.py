"""Every (family, model type, class) with a task that fits it, and its whole life: trained, resumed, scored, merged.

What takes seconds is done once for a case, in the order of the life, and kept; the tests look at what it left.
"""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmtune import answer_picture, run_report
from mmtune.backbones import tiny_folder
from mmtune.backbones._chat_twins import TWINS
from mmtune.evaluation_run import score
from mmtune.recipe_schema import Recipe, recipe_from_json
from mmtune.sources import write_tiny
from mmtune.training_run import fit

STEPS = 4
STOPPED = 2
"""Updates after which the run that is resumed had stopped."""

SPLITS = {"train": "train", "validation": "validation", "test": "test"}

TABLES: dict[str, dict[str, Any]] = {
    "captions": {"kind": "jsonl", "path": "made.jsonl", "images": "photos", "splits": SPLITS},
    "questions": {
        "kind": "jsonl", "path": "made.jsonl", "images": "photos", "splits": SPLITS,
        "question": "question", "answers": "answers",
    },
    "labels": {"kind": "jsonl", "path": "made.jsonl", "images": "photos", "splits": SPLITS, "label": "fits"},
    "conversations": {"kind": "conversations", "path": "made.jsonl", "images": "photos", "splits": SPLITS},
}  # fmt: skip
"""Sources whose rows are made up."""

CAPTIONING = {"kind": "captioning", "max_new_tokens": 4, "scores": ["cider_d", "rouge_l"]}
VQA = {"kind": "vqa", "max_new_tokens": 4}
CLOSED_VQA = {"kind": "vqa", "answers": ["red", "green", "blue", "yellow"]}
MATCHING = {"kind": "matching"}
CHAT = {"kind": "chat", "max_new_tokens": 4}
DATA = {"captioning": "captions", "vqa": "questions", "matching": "labels", "chat": "conversations"}


@dataclass(frozen=True)
class Case:
    """One life.

    Attributes:
        family: of backbones.
        make: writes the tiny twin's folder.
        task: section of the recipe.
        parts: what is trained, by LoRA.
    """

    family: str
    make: Callable[[Path], Any]
    task: dict[str, Any]
    parts: tuple[str, ...]


def _twin(family: str, model_type: str | None = None, architecture: str | None = None) -> Callable[[Path], Any]:
    return functools.partial(tiny_folder, family, model_type=model_type, architecture=architecture)


def _speaking(family: str, language: str) -> Callable[[Path], Any]:
    """The twin of BLIP-2 or InstructBLIP with another language model than the first."""

    def make(folder: Path) -> Path:
        from mmtune.ground.kind_folder import kinds

        for each in kinds("backbones")[family].tiny_speaking(language):
            each.save_pretrained(folder)
        return folder

    return make


PARTS = ("vision", "connector", "text")
QFORMER = ("vision", "qformer", "connector", "text")
CASES: dict[str, Case] = {
    "blip captions": Case("blip", _twin("blip", None, "BlipForConditionalGeneration"), CAPTIONING, ("vision", "text")),
    "blip answers": Case("blip", _twin("blip", None, "BlipForQuestionAnswering"), VQA, ("vision", "text", "decoder")),
    "blip matches": Case("blip", _twin("blip", None, "BlipForImageTextRetrieval"), MATCHING, ("vision", "text")),
    "vilt answers": Case("vilt", _twin("vilt", None, "ViltForQuestionAnswering"), VQA, ("encoder",)),
    "vilt matches": Case("vilt", _twin("vilt", None, "ViltForImageAndTextRetrieval"), MATCHING, ("encoder",)),
    "git captions": Case("git", _twin("git"), CAPTIONING, PARTS),
    "git answers": Case("git", _twin("git"), VQA, PARTS),
    "blip2 opt": Case("blip2", _speaking("blip2", "opt"), CAPTIONING, QFORMER),
    "blip2 t5": Case("blip2", _speaking("blip2", "t5"), VQA, QFORMER),
    "blip2 matches": Case("blip2", _twin("blip2"), MATCHING, ("vision", "qformer")),
    "instructblip llama": Case("instructblip", _speaking("instructblip", "llama"), VQA, QFORMER),
    "instructblip t5": Case("instructblip", _speaking("instructblip", "t5"), CAPTIONING, QFORMER),
    "llava, from a list": Case("chat", _twin("chat", "llava"), CLOSED_VQA, PARTS),
    "qwen2_5_vl, yes or no": Case("chat", _twin("chat", "qwen2_5_vl"), MATCHING, PARTS),
    **{name: Case("chat", _twin("chat", name), CHAT, PARTS) for name in TWINS},
    "gemma3": Case("chat", _twin("chat", "gemma3"), CHAT, ("vision", "text")),  # its connector has no linear layer
    "paligemma": Case("chat", _twin("chat", "paligemma"), VQA, PARTS),  # one question and its answer
    "florence2": Case("chat", _twin("chat", "florence2"), CAPTIONING, PARTS),
}
"""Name -> case. ``chat`` where the model takes a conversation."""


class World:
    """Twins, data and recipes below one folder, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.twin = functools.cache(self._twin)
        self.data = functools.cache(self._data)

    def _twin(self, name: str) -> Path:
        folder = self.folder / "twins" / _file_name(name)
        CASES[name].make(folder)
        return folder

    def _data(self, table: str) -> dict[str, Any]:
        from mmtune.ground.kind_folder import kinds

        values = TABLES[table]
        section = kinds("sources")[values["kind"]].Section.model_validate_json(json.dumps(values))
        made: dict[str, Any] = write_tiny(section, self.folder / "data" / table).model_dump(mode="json")
        return made

    def recipe(self, name: str, run: str, **sections: dict[str, Any]) -> Recipe:
        """The case's recipe; ``sections`` replace keys of a section."""
        case = CASES[name]
        values: dict[str, dict[str, Any]] = {
            "backbone": {"id": str(self.twin(name))},
            "adapter": {
                "kind": "lora", "rank": 2, "alpha": 4, "dropout": 0.1,
                "parts": list(case.parts), "targets": ["attention", "mlp"],
            },
            "data": self.data(DATA[case.task["kind"]]),
            "task": case.task,
            "train": {
                "length": f"{STEPS} steps", "batch": 4, "learning_rate": 0.02, "warmup": "1 steps",
                "schedule": "constant", "log_every": "1 steps", "precision": "fp32",
            },
            "checkpoint": {"every": f"{STOPPED} steps", "keep": 2},
        }  # fmt: skip
        for section, changed in sections.items():
            values[section] = {**values[section], **changed}
        return recipe_from_json({**values, "output": str(self.folder / "runs" / _file_name(run)), "seed": 3})


def _file_name(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def live(world: World, name: str) -> SimpleNamespace:
    """Train without a stop and with one, score, and fold what was trained into the base.

    Returns:
        ``whole`` and ``resumed`` run folders, ``scores`` of the resumed one, ``alone`` (of the base as a plain model,
        its files in ``alone_folder``), ``merge`` and the folder ``merged``.
    """
    from mmtune.merge_building import fold, open_samples, write_folder
    from mmtune.model_loading import resolve

    recipe = world.recipe(name, name)
    whole = fit(world.recipe(name, f"{name} whole"))
    resumed = stop_and_go_on(recipe)
    scores = score(resumed)
    alone_folder = world.folder / "alone" / _file_name(name)
    alone = score(str(world.twin(name)), recipe=recipe, output=alone_folder)
    samples, _ = open_samples(recipe)
    merge = fold(resolve(resumed), samples, scale=1.0, full=False, dtype="float32")
    merged = resumed / "merged"
    merged.mkdir()
    write_folder(merge, merged)
    return SimpleNamespace(
        name=name, case=CASES[name], twin=world.twin(name), recipe=recipe, whole=whole, resumed=resumed,
        scores=scores, alone=alone, alone_folder=alone_folder, merge=merge, merged=merged,
    )  # fmt: skip


def stop_and_go_on(recipe: Recipe) -> Path:
    """Train half of the run, then the rest in what looks like another process to it."""
    half = recipe.train.model_copy(update={"length": type(recipe.train.length)(STOPPED, "steps")})
    stopped = fit(recipe.model_copy(update={"train": half}))
    assert sorted(losses(stopped)) == list(range(1, STOPPED + 1))
    return fit(recipe)


@contextmanager
def without_pictures() -> Iterator[None]:
    """No curves and no answers are drawn: half of the time of a run as small as these."""

    def note(figure: Any, path: Path) -> None:
        path.touch()

    with pytest.MonkeyPatch.context() as patch:
        for module in (run_report, answer_picture):
            patch.setattr(module, "save_picture", note)
        yield


# --- what a run left


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """Step -> loss and norm of the gradient, as logged."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row}


def checkpoint_bytes(run: Path, step: int = STEPS) -> dict[str, bytes]:
    """What a checkpoint holds: what was trained, the optimizer's state, the generators'."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def answers(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``answers.jsonl``."""
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
