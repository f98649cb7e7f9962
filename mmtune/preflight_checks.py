"""What can be known before training: each check takes what is there already and adds facts, warnings and problems."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.ground.errors import BackboneError, DataError, MmtuneError, RecipeError
from mmtune.ground.recipe_text import KeyPath, Problem, RecipeText, dotted
from mmtune.ground.records import MEDIA_WORDS

if TYPE_CHECKING:
    from mmtune.adapters import Adapted
    from mmtune.backbones import Description
    from mmtune.batch_building import Layout
    from mmtune.part_sizes import PartSize, TrainedSize
    from mmtune.recipe_schema import Recipe
    from mmtune.sources import OpenedSplit

FEW_SAMPLES = 5
"""A split with fewer chooses no checkpoint and proves nothing."""

MOST_SHOWN = 10
"""Bad items of a split that are listed."""


@dataclass
class Findings:
    """What the checks found, in their order.

    Attributes:
        text: the recipe's text, for the places of its keys.
        facts: (topic, what is so).
        warnings: what will run and may disappoint.
        problems: what will not run.
        media: what the data's samples are called: images, sounds, questions or conversations.
        texts: what is said about them: captions, answers or turns.
        splits: (split, samples, texts, bad) per split; None where it cannot be used.
        parts: (part, modules, trained weights, share of all weights) per part.
        sizes: bytes of each part of the backbone at every setting.
        trained: bytes that training each part adds.
        setting: the setting that the recipe chose.
    """

    text: RecipeText
    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    media: str = MEDIA_WORDS["image"]
    texts: str = "captions"
    splits: list[tuple[str, int | None, int | None, int | None]] = field(default_factory=list)
    parts: list[tuple[str, int, int, float]] = field(default_factory=list)
    sizes: "list[PartSize]" = field(default_factory=list)
    trained: "list[TrainedSize]" = field(default_factory=list)
    setting: str = ""

    def fact(self, topic: str, what: str) -> None:
        """Note something worth knowing."""
        self.facts.append((topic, what))

    def problem(self, path: KeyPath, what: str) -> None:
        """Note what will not run, at the place of its key; once, though every split may meet it."""
        if (line := self._located(path, what)) not in self.problems:
            self.problems.append(line)

    def warning(self, path: KeyPath, what: str) -> None:
        """Note what may disappoint, at the place of its key."""
        self.warnings.append(self._located(path, what))

    def error(self, path: KeyPath, error: MmtuneError) -> None:
        """Note an error's message; one that begins with a key of the recipe goes to that key's place."""
        for line in str(error).splitlines() if isinstance(error, RecipeError) else _mistakes(str(error)):
            key, _, rest = line.partition(": ")
            named = tuple(key.split("."))
            known = len(named) > 1 and (named in self.text.places or _KEY.fullmatch(key) and named[: len(path)] == path)
            self.problem(named if known else path, rest if known else line.removeprefix(f"{dotted(path)} "))

    def _located(self, path: KeyPath, what: str) -> str:
        return str(Problem(self.text.place_of(path), dotted(path), what))


_KEY = re.compile(r"data(\.\w+)+")


def _mistakes(message: str) -> list[str]:
    """The lines of a message that lists several mistakes; one with indented lines is about one, and stays whole."""
    lines = message.splitlines()
    return [message] if any(line.startswith(" ") for line in lines) else lines


# --- start


def check_start(recipe: "Recipe", findings: Findings) -> None:
    """What the adapter is to start from is there."""
    from mmtune.adapter_start import refuse_missing_start

    try:
        refuse_missing_start(recipe)
    except RecipeError as error:
        findings.error(("adapter", "start_from"), error)


# --- backbone


def describe_backbone(recipe: "Recipe", findings: Findings) -> "Description | None":
    """Find the backbone and read its config.json; None where there is none."""
    from mmtune.backbones import describe
    from mmtune.tasks import abilities_of

    try:
        description = describe(recipe.backbone, ability=abilities_of(recipe.task))
    except BackboneError as error:
        findings.error(("backbone", "id") if recipe.backbone.id is not None else ("backbone",), error)
        return None
    family = description.traits
    layers = ", ".join(f"{part} {count} layers" for part, count in description.num_layers.items())
    commits = [f"{key.replace('_', ' ')} {it}" for key, it in description.commits.items() if it]
    findings.fact("backbone", " at ".join([description.id, *filter(None, [", ".join(commits)])]))
    findings.fact("family", f"{family.name} ({layers})")
    return description


def check_abilities(recipe: "Recipe", description: "Description", findings: Findings) -> None:
    """The family can do what the task asks, and the loss fits both."""
    from mmtune.ground.kind_folder import kind
    from mmtune.run_setup import modality_problems, task_problems

    family, task = description.traits, kind("tasks", recipe.task)
    for message in task_problems(recipe, family):
        findings.error(("task", "kind"), RecipeError(message))
    for message in modality_problems(recipe, family):
        findings.error(("data",), RecipeError(message))
    if recipe.task.kind != "retrieval":
        return
    if recipe.task.loss.kind not in task.LOSSES:
        what = f"{recipe.task.loss.kind} is no loss for {recipe.task.kind}; write one of {', '.join(task.LOSSES)}"
        findings.problem(("task", "loss", "kind"), what)
    if recipe.task.loss.kind == "sigmoid" and len(family.temperature) < 2:
        what = f"family {family.name} has no logit bias, without which sigmoid starts poorly; infonce suits it better"
        findings.warning(("task", "loss", "kind"), what)


def check_adapter(recipe: "Recipe", description: "Description", findings: Findings) -> None:
    """Parts and layers exist and can carry the adapter, by config.json."""
    from mmtune.adapters import problems

    for message in problems(recipe.adapter, recipe.backbone, description):
        findings.error(("adapter",), RecipeError(message))


def measure_parts(recipe: "Recipe", description: "Description", findings: Findings) -> None:
    """Bytes of every part at each setting, by config.json."""
    from mmtune.part_sizes import chosen_setting, empty_model, part_sizes

    try:
        findings.sizes = part_sizes(empty_model(description), description)
    except BackboneError as error:
        findings.warning(("backbone",), f"how many bytes it takes cannot be said: {error}")
    findings.setting = chosen_setting(recipe.backbone)


def attach_adapter(recipe: "Recipe", findings: Findings) -> "Adapted | None":
    """Load the backbone and attach the adapter, and give both; every target must hit a module."""
    from mmtune.adapter_start import start_adapter
    from mmtune.adapters import attach
    from mmtune.backbones import load
    from mmtune.part_sizes import in_words, trained_sizes
    from mmtune.tasks import abilities_of

    try:
        adapted = attach(load(recipe.backbone, ability=abilities_of(recipe.task)), recipe.adapter, seed=recipe.seed)
        for line in start_adapter(adapted, recipe):
            findings.fact("start", line)
    except BackboneError as error:
        findings.error(("backbone", "id"), error)
        return None
    except MmtuneError as error:
        findings.error(("adapter",), error)
        return None
    findings.fact("weights", f"sha256 {adapted.backbone.weight_hash}")
    findings.parts += [(row.part, row.num_modules, row.num_trainable, row.share) for row in adapted.parts]
    findings.trained = trained_sizes(adapted, recipe.train.optimizer)
    weights, gradients, states = (
        in_words(sum(getattr(one, name) for one in findings.trained)) for name in ("weights", "gradients", "states")
    )
    what = f"adds {weights} of weights, {gradients} of gradients and {states} of {recipe.train.optimizer}'s averages"
    findings.fact("training", f"{what}; activations come on top")
    return adapted


# --- machine


def check_machine(recipe: "Recipe", findings: Findings) -> None:
    """Precision against the device, and packages that only some recipes need."""
    from mmtune.run_setup import resolve_precision
    from mmtune.run_trackers import refuse_missing

    try:
        resolved = resolve_precision(recipe.train.precision)
    except RecipeError as error:
        findings.error(("train", "precision"), error)
        resolved = "no"
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    findings.fact("device", f"{device}, precision {'fp32' if resolved == 'no' else resolved}")
    if resolved == "bf16" and device == "CPU":
        what = "bf16 runs on a CPU, on most about 100 times slower than fp32; auto chooses what is fast"
        findings.warning(("train", "precision"), what)
    try:
        refuse_missing(recipe.train.trackers)
    except RecipeError as error:
        findings.error(("train", "trackers"), error)


# --- data


def open_data(recipe: "Recipe", findings: Findings) -> "OpenedSplit | None":
    """Open every split the run and its evaluation read, and count; gives the training split."""
    from mmtune.sources import split_names
    from mmtune.train_data import open_checked

    findings.media = MEDIA_WORDS[recipe.data.modality]
    asked = {"answers": ("questions", "answers"), "turns": ("conversations", "turns")}
    for held, words in asked.items():
        findings.media, findings.texts = words if held in recipe.data.fields else (findings.media, findings.texts)
    try:
        names = split_names(recipe.data)
    except DataError as error:
        findings.error(("data",), error)
        return None
    needed = ["train"] + (["validation"] if recipe.train.evaluate_every else [])
    opened: dict[str, OpenedSplit] = {}
    for split in dict.fromkeys([*needed, *names]):
        try:
            opened[split] = open_checked(recipe, split)
        except DataError as error:
            findings.error(("data",), error)
            findings.splits.append((split, None, None, None))
            continue
        _count_split(split, opened[split], findings)
    for note in dict.fromkeys(note for one in opened.values() for note in one.notes):
        findings.fact("data", note)
    if "test" not in names:
        findings.warning(("data",), "there is no split 'test', which `mmtune evaluate` scores unless told otherwise")
    return opened.get("train")


def _count_split(split: str, opened: "OpenedSplit", findings: Findings) -> None:
    number = sum(len(sample.captions) or len(sample.answers) or len(sample.turns) for sample in opened.samples)
    findings.splits.append((split, len(opened.samples), number, len(opened.bad)))
    if split != "train" and len(opened.samples) < FEW_SAMPLES:
        what = f"split {split} has {len(opened.samples)} sample(s): its scores say little; give it a larger share"
        findings.warning(("data",), what)
    for item in opened.bad[:MOST_SHOWN]:
        findings.warnings.append(f"{item.where}: {item.reason}; quarantined")
    if len(opened.bad) > MOST_SHOWN:
        findings.warnings.append(f"split {split}: {len(opened.bad) - MOST_SHOWN} more are quarantined")


# --- length


def check_length(recipe: "Recipe", train: "OpenedSplit", ranks: int, findings: Findings) -> "Layout | None":
    """Durations in steps, now that the data is counted: the batch fits an epoch, the warm-up fits the run."""
    from mmtune.epoch_items import epoch_items
    from mmtune.ground.kind_folder import kind
    from mmtune.run_setup import in_steps, make_layout, total_steps
    from mmtune.tasks import prepared

    samples = prepared(recipe, train.samples)
    num_items = len(epoch_items(kind("tasks", recipe.task), samples, recipe.data, recipe.seed))
    try:
        layout = make_layout(recipe, num_items, ranks)
    except RecipeError as error:
        findings.error(("train", "batch"), error)
        return None
    total = total_steps(recipe, layout)
    warmup = in_steps(recipe.train.warmup, layout, total)
    per_epoch = f"{layout.steps_per_epoch} steps per epoch, {layout.num_dropped} samples left out of each"
    findings.fact("length", f"{total} steps of {layout.batch} samples ({per_epoch}), {warmup} of them warm-up")
    if warmup >= total:
        what = f"{recipe.train.warmup} is {warmup} steps and the run has {total}; write less, such as 5%"
        findings.problem(("train", "warmup"), what)
    if in_steps(recipe.train.evaluate_every, layout, total) > total:
        what = f"{recipe.train.evaluate_every} is longer than the run; it is scored once, at the end"
        findings.warning(("train", "evaluate_every"), what)
    return layout


# --- run folder


def check_output(recipe: "Recipe", findings: Findings) -> None:
    """The run folder is free, or holds this recipe."""
    from mmtune.ground.safe_files import read_json
    from mmtune.run_folder import IN_USE, RESOLVED, differing_keys, foreign_files, is_locked

    run = Path(recipe.output)
    if foreign := foreign_files(run):
        there = ", ".join(foreign[:3])
        findings.problem(("output",), f"{run} holds no run but other files ({there}); write another folder")
    elif is_locked(run):
        findings.problem(("output",), f"{run}: {IN_USE}")
    elif not (run / RESOLVED).is_file():
        findings.fact("output", f"{run} (new)")
    else:
        differing = differing_keys(read_json(run / RESOLVED), recipe.model_dump(mode="json"))
        if differing - {"train.length"}:
            keys = ", ".join(sorted(differing))
            findings.problem(
                ("output",), f"{run} holds a run of another recipe ({keys} differ); --restart moves it aside"
            )
        else:
            findings.fact("output", f"{run} (holds this recipe's run, which goes on)")
