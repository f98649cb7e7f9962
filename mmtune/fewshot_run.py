"""The story of ``fewshot``: train on a few images of each class, again and again, beside what needs no training.

Every number of shots and seed is an ordinary run in a folder of its own, so an interrupted study goes on where it
stopped. Each is scored on the whole test split, beside zero-shot, the nearest class mean and a linear probe on the same
shots. With ``base_to_novel`` the runs learn the first half of the classes, and are scored on either half among its own
classes.

Source: Zhou et al. 2022, https://arxiv.org/abs/2109.01134 (the protocol), https://arxiv.org/abs/2203.05557 (base to
novel); Zanella and Ben Ayed 2024, https://arxiv.org/abs/2405.18541.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.errors import DataError, RecipeError
from mmtune.ground.records import Sample

if TYPE_CHECKING:
    from mmtune.backbones import Backbone
    from mmtune.recipe_schema import Recipe

DEFAULT_ENDING = "_fewshot"
"""Of the folder that is written, after the run folder's name."""


def fewshot(
    recipe: "Recipe",
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 3,
    steps_per_shot: int | None = None,
    base_to_novel: bool = False,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Run a few-shot study and return what ``fewshot.json`` holds.

    Args:
        recipe: with the task classification.
        shots: numbers of training images per class.
        seeds: runs for each; the first has the recipe's seed, the next the following ones.
        steps_per_shot: length of a run in steps, times the shots; None: the recipe's ``train.length``.
        base_to_novel: learn the first half of the classes alone, and score both halves.
        output: folder of the study; None: the recipe's output with ``_fewshot`` behind it.

    Raises:
        RecipeError: another task, no shots or seeds, too few classes.
        DataError: a class has no training image; whatever is wrong with the data.
    """
    from mmtune.evaluation_setup import device
    from mmtune.model_loading import load_model
    from mmtune.shot_report import shot_table, write_study
    from mmtune.train_data import open_checked
    from mmtune.training_run import fit

    _check(recipe, shots, seeds, base_to_novel)
    folder = Path(output or f"{recipe.output}{DEFAULT_ENDING}")
    train, test = (_known(recipe, open_checked(recipe, split).samples, split) for split in ("train", "test"))
    groups = _class_groups(recipe, base_to_novel)
    base = _load_base(recipe)
    zero_shot = _judge_groups(base, recipe, test, groups)
    features = None if base_to_novel else (_features(base, recipe, train), _features(base, recipe, test))
    rows = []
    for count in sorted(set(shots)):
        for seed in range(recipe.seed, recipe.seed + seeds):
            own = _recipe_for(recipe, train, folder, (count, seed), steps_per_shot, groups)
            run = fit(own)
            row = {"shots": count, "seed": seed, "zero_shot": zero_shot}
            if features is not None:
                row |= _baselines(own, train, test, *features)
            rows.append({**row, "tuned": _judge_groups(load_model(run, device=device()), recipe, test, groups)})
    result = _result(recipe, rows, groups)
    for path in write_study(folder, result):
        print(path, flush=True)
    _print_table(shot_table(result))
    return result


def _check(recipe: "Recipe", shots: Sequence[int], seeds: int, base_to_novel: bool) -> None:
    """Raises: RecipeError: everything that is wrong with what was asked for."""
    problems = []
    if recipe.task.kind != "classification":
        problems.append(f"task.kind: fewshot is for classification, and this recipe is for {recipe.task.kind}")
    if not shots or min(shots) < 1:
        problems.append("--shots: write numbers of training images per class, 1 or more, such as --shots 1 2 4 8 16")
    if seeds < 1:
        problems.append(f"--seeds: {seeds} runs tell nothing; write 1 or more")
    if not problems and base_to_novel and len(recipe.task.classes) < 4:
        problems.append("--base-to-novel: halves the classes, and each half needs two; task.classes has fewer than 4")
    if problems:
        raise RecipeError("\n".join(problems))


def _known(recipe: "Recipe", samples: Sequence[Sample], split: str) -> list[Sample]:
    """The samples of the recipe's classes.

    Raises:
        DataError: some have no such class.
    """
    from mmtune.tasks.classification import class_of

    bad = []
    for sample in samples:
        try:
            class_of(recipe.task, sample)
        except DataError as error:
            bad.append(f"{sample.media.where}: {error}")
    if len(bad) > recipe.data.max_bad_fraction * len(samples):
        raise DataError(f"data: {len(bad)} of {len(samples)} samples of {split} have no class:\n" + "\n".join(bad[:10]))
    left_out = {line.rpartition(": class")[0] for line in bad}
    return [sample for sample in samples if sample.media.where not in left_out]


def _class_groups(recipe: "Recipe", base_to_novel: bool) -> dict[str, list[str]]:
    """Prefix of score names -> classes that are told apart; the first group is learned. Odd numbers: the base has one
    more."""
    classes = recipe.task.classes
    half = (len(classes) + 1) // 2
    return {"base_": classes[:half], "novel_": classes[half:]} if base_to_novel else {"": classes}


def _load_base(recipe: "Recipe") -> "Backbone":
    from mmtune.backbones import load
    from mmtune.evaluation_setup import device
    from mmtune.run_setup import refuse_misfit
    from mmtune.tasks import abilities_of

    refuse_misfit(recipe)
    return load(recipe.backbone, device=device(), ability=abilities_of(recipe.task))


def _recipe_for(
    recipe: "Recipe",
    train: Sequence[Sample],
    folder: Path,
    which: tuple[int, int],
    steps_per_shot: int | None,
    groups: dict[str, list[str]],
) -> "Recipe":
    """The recipe of one run: its shots, seed and folder, and a batch that so few samples can fill."""
    from mmtune.ground.durations import Span
    from mmtune.tasks.classification import trained_on

    shots, seed = which
    task = recipe.task.model_copy(update={"shots": shots, "classes": next(iter(groups.values()))})
    number = len(trained_on(task, train, seed))
    changes: dict[str, Any] = {}
    if number < recipe.train.batch:
        changes |= {"batch": number, "micro_batch": None}
    if steps_per_shot is not None:
        changes["length"] = Span(steps_per_shot * shots, "steps")
    name = f"{'base_' if len(groups) > 1 else ''}shots{shots:03}_seed{seed}"
    return recipe.model_copy(
        update={
            "task": task,
            "seed": seed,
            "output": str(folder / name),
            "train": recipe.train.model_copy(update=changes),
        }
    )


def _judge_groups(
    backbone: "Backbone", recipe: "Recipe", samples: Sequence[Sample], groups: dict[str, list[str]]
) -> dict[str, float]:
    """Every score of the recipe's, for each group of classes among itself; of two groups the harmonic means too."""
    from mmtune.answer_scoring import answer_split, score_answers
    from mmtune.evaluation_setup import choose_precision, device
    from mmtune.item_encoding import make_asking
    from mmtune.train_data import EVALUATION_BATCH

    found: dict[str, float] = {}
    for prefix, classes in groups.items():
        asking = make_asking(recipe.task.model_copy(update={"classes": classes}), backbone, recipe.seed)
        own = [sample for sample in samples if set(sample.captions) & set(classes)]
        precision = choose_precision(recipe, device())
        answers = answer_split(
            asking, backbone, own, device=device(), batch=EVALUATION_BATCH, precision=precision, split="test"
        )
        found |= {f"{prefix}{name}": value for name, value in score_answers(answers).items()}
    if len(groups) > 1:
        pairs = {name: (found[f"base_{name}"], found[f"novel_{name}"]) for name in recipe.task.scores}
        found |= {f"harmonic_{name}": 2 * a * b / (a + b) if a + b else 0.0 for name, (a, b) in pairs.items()}
    return found


def _features(backbone: "Backbone", recipe: "Recipe", samples: Sequence[Sample]) -> np.ndarray:
    from mmtune.evaluation_setup import device
    from mmtune.shot_baselines import image_features
    from mmtune.train_data import EVALUATION_BATCH

    return image_features(backbone, samples, device=device(), batch=EVALUATION_BATCH, workers=recipe.train.workers)


def _baselines(
    recipe: "Recipe", train: Sequence[Sample], test: Sequence[Sample], shown: np.ndarray, queries: np.ndarray
) -> dict[str, dict[str, float]]:
    """Scores of both classifiers on the very shots that the run sees."""
    from mmtune.metrics import answer_score
    from mmtune.shot_baselines import linear_probe, nearest_class_mean
    from mmtune.tasks.classification import class_of, references, trained_on

    chosen = {sample.id for sample in trained_on(recipe.task, train, recipe.seed)}
    places = [place for place, sample in enumerate(train) if sample.id in chosen]
    labels = np.array([class_of(recipe.task, train[place]) for place in places], dtype=np.int64)
    right = [references(recipe.task, sample) for sample in test]
    found = {}
    for method in (nearest_class_mean, linear_probe):
        said = [recipe.task.classes[number] for number in method(shown[places], labels, queries)]
        found[method.__name__] = {name: answer_score(name).value(said, right) for name in recipe.task.scores}
    return found


def _result(recipe: "Recipe", rows: list[dict[str, Any]], groups: dict[str, list[str]]) -> dict[str, Any]:
    from mmtune.shot_report import summarised

    first = recipe.task.scores[0]
    return {
        "score": f"harmonic_{first}" if len(groups) > 1 else first,
        "classes": groups if len(groups) > 1 else recipe.task.classes,
        "num_seeds": len({row["seed"] for row in rows}),
        "summary": summarised(rows),
        "runs": rows,
    }


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
