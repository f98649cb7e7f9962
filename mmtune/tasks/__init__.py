"""Floor 2, tasks: what is shown to a backbone, what must be said, and how it is judged. One file per kind.

A task is a module with a ``Section`` and functions that know neither the loop nor a particular model::

    ABILITIES: tuple[str, ...]          # what a family must be able to do for it, any one of them, the best first
    FIELDS: frozenset[str]              # what its samples must hold: captions, question, answers, turns
    items(samples, captions) -> [(sample index, choice)]    # what an epoch goes through; choice: see there
    score_names(section, modality) -> [str]                 # what it is judged by; the first chooses the best one

Tasks that end in words or in a choice, all but ``retrieval``, also have::

    prepare(samples, seed) -> samples                       # what is asked about; here ``matching`` makes mismatches
    spoken(section, sample, choice, *, prompt, seed, epoch) -> turns    # a whole conversation, to learn from
    asked(section, sample, prompt) -> turns                 # what an answer is wanted for; ends with the user's turn
    candidates(section) -> [str]                            # answers to choose from by likelihood; []: any words
    references(section, sample) -> [str]                    # what would have been right
    statement(sample) -> str                                # the text that goes with the image, for ``match``,
                                                            # ``classify`` and tables

A task with the ability ``embed`` that chooses among classes has instead of ``spoken`` and ``asked``::

    prompts(section, name) -> [str]                         # what the text tower reads of a class
    class_of(section, sample) -> int                        # its number; DataError where it has none
    loss_total(section, logits, classes) -> float[]         # summed over a batch
    trained_on(section, samples, seed) -> samples           # what training sees of them
    Rendering(section)                                      # what an epoch shows, for ``EncodedPairs``
"""

from types import ModuleType
from typing import Any


def ability_for(task: ModuleType, family: Any) -> str | None:
    """The first of the task's abilities that the family (a ``Family`` record) has; None where it has none of them."""
    return next((ability for ability in task.ABILITIES if ability in family.abilities), None)


def abilities_of(section: Any) -> tuple[str, ...]:
    """What a task's section asks of a family, any one of them, the best first."""
    from mmtune.ground.kind_folder import kind

    abilities: tuple[str, ...] = kind("tasks", section).ABILITIES
    return abilities


def reads_prompts(task: ModuleType) -> bool:
    """Whether a task that embeds compares images with the prompts of classes, and so ends in answers."""
    return hasattr(task, "prompts")


def rendering(task: ModuleType, section: Any) -> Any:
    """What says which text goes with a sample in an epoch: the task itself, or its prompts."""
    return task.Rendering(section) if reads_prompts(task) else task


def prepared(recipe: Any, samples: Any) -> Any:
    """The training samples as the task asks about them."""
    from mmtune.ground.kind_folder import kind

    task = kind("tasks", recipe.task)
    if reads_prompts(task):
        return task.trained_on(recipe.task, samples, recipe.seed)
    prepare = getattr(task, "prepare", None)
    return prepare(samples, recipe.seed) if prepare else samples


def best_score(recipe: Any) -> str:
    """The score that chooses the best checkpoint: the one a recipe names, else the first of its task."""
    from mmtune.ground.kind_folder import kind

    if recipe.train.best is not None:
        return str(recipe.train.best)
    return str(kind("tasks", recipe.task).score_names(recipe.task, recipe.data.modality)[0])
