"""How one sees the keys of classification at work."""

from typing import Any

from key_effect import Effect
from key_worlds import World
from key_worlds_tasks import judged

from mmtune.ground.records import Sample
from mmtune.recipe_schema import Recipe


def _task(**changed: str) -> str:
    """The whole section as one override."""
    keys = {"kind": "classification", "classes": "[cat, dog]", **changed}
    return "task={" + ", ".join(f"{name}: {value}" for name, value in keys.items()) + "}"


class Picture:
    """A reference that is never read."""

    where = key = "picture"


def compared(world: World, recipe: Recipe) -> Any:
    """What is read of classes, what is learned of one logit row, which samples are trained on, what is judged."""
    import torch

    from mmtune.tasks import classification as task

    section = recipe.task
    samples = [Sample(str(n), Picture(), (("cat", "dog")[n % 2],)) for n in range(8)]  # type: ignore[arg-type]
    texts = [task.prompts(section, name) for name in section.classes]
    loss = float(task.loss_total(section, torch.tensor([[2.0, 1.0]]), torch.tensor([0])))
    chosen = [one.id for one in task.trained_on(section, samples, recipe.seed)]
    return texts, loss, chosen, task.score_names(section, "image")


def _key(**changed: str) -> Effect:
    return Effect(compared, "captioned", [_task()], [_task(**changed)])


EFFECTS: dict[str, Effect] = {
    "task.kind:classification": Effect(judged, "captioned", [_task()], []),
    "task.classes:classification": _key(classes="[dog, cat]"),
    "task.templates:classification": _key(templates="clip7"),
    "task.label_smoothing:classification": _key(label_smoothing="0.1"),
    "task.shots:classification": _key(shots="1"),
    "task.scores:classification": _key(scores="[macro_f1]"),
}
