"""What tasks ask and how answers are generated, for `effects_tasks`; batches of a captioning run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from key_worlds import Refused, World

from mmtune.ground.errors import RecipeError
from mmtune.ground.kind_folder import kind
from mmtune.ground.records import Sample
from mmtune.recipe_schema import Recipe

PROMPT = "show"
"""The family's own words for captions."""


def asked(world: World, recipe: Recipe) -> Any:
    """The conversations that a task makes of its samples, what may be answered, and what it is judged by."""
    from mmtune.train_data import open_checked

    task, section = kind("tasks", recipe.task), recipe.task
    opened = open_checked(recipe, "train").samples
    samples = [*task.prepare(opened, recipe.seed)][:6]
    spoken = [task.spoken(section, one, None, prompt=PROMPT, seed=0, epoch=0) for one in samples]
    turns = [[(turn.role, turn.text) for turn in each] for each in spoken]
    return turns, task.candidates(section), task.score_names(section, "image"), task.ABILITIES


def judged(world: World, recipe: Recipe) -> Any:
    """What a family must be able to do for the task, and what it is judged by."""
    task = kind("tasks", recipe.task)
    return task.ABILITIES, task.score_names(recipe.task, "image")


def generated(world: World, recipe: Recipe) -> Any:
    """How a family is asked to generate."""
    from mmtune.answer_ways import generate

    given: list[Any] = []
    family = SimpleNamespace(generate=lambda model, processor, inputs, **options: given.append(options) or [""])
    backbone = SimpleNamespace(model=None, processor=None, family=family)
    generate(SimpleNamespace(section=recipe.task), backbone, {})  # type: ignore[arg-type]
    return given


def batched(world: World, recipe: Recipe) -> Any:
    """The items of an epoch's batches; lengths are those of the captions."""
    from mmtune.batch_building import Layout
    from mmtune.trainer_building import lay_out

    samples = [
        Sample(str(number), SimpleNamespace(key=str(number), where=""), captions=("word " * (number % 5 + 1),))  # type: ignore[arg-type]
        for number in range(12)
    ]
    try:
        items = _items(samples, recipe)
        layout = lay_out(recipe, items, Layout(len(samples), 4, 4, 1, 0))
    except RecipeError as error:
        return Refused(error)
    return list(layout.micro_batches(0, 0, 3))


def _items(samples: list[Sample], recipe: Recipe) -> Any:
    from mmtune.batch_building import EncodedAnswers
    from mmtune.item_encoding import Asking

    def tokenizer(texts: list[str], **options: Any) -> dict[str, Any]:
        return {"input_ids": [text.split() for text in texts]}

    processor = SimpleNamespace(tokenizer=tokenizer)
    traits = SimpleNamespace(caption_prompt="")
    asking = Asking(kind("tasks", recipe.task), recipe.task, "generate", SimpleNamespace(), processor, traits)
    return EncodedAnswers(samples, asking, recipe.data)


def write_task_world(folder: Path) -> None:
    """Recipes for captions, and for conversations with a system turn to add."""
    table = f"kind: jsonl, path: {folder}/asked.jsonl, images: {folder}/images"
    splits = "splits: {train: train, validation: val, test: test}"
    for name, task, keys in (("captioned", "captioning", ""), ("matched", "matching", "")):
        (folder / f"{name}.yaml").write_text(
            f"backbone: {{id: {folder}/tiny}}\nadapter: {{kind: lora, parts: [text]}}\n"
            f"data: {{{table}, {splits}{keys}}}\ntask: {{kind: {task}}}\n"
            f"train: {{length: 1 steps, batch: 2, learning_rate: 1e-3}}\noutput: {folder}/run\n"
        )
