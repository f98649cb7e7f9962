"""The story of ``check``: everything about a recipe that can be known before training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from mmtune.adapters import Adapted
    from mmtune.batch_building import Layout
    from mmtune.preflight_checks import Findings
    from mmtune.recipe_schema import Recipe
    from mmtune.sources import OpenedSplit


def check(
    recipe_path: str | Path,
    overrides: Sequence[str] = (),
    schema_only: bool = False,
    *,
    ranks: int = 1,
    tiny: bool = False,
) -> int:
    """Check a recipe and print what it would do.

    Args:
        recipe_path: the YAML file.
        overrides: ``section.key=value``.
        schema_only: stop before data and backbone; imports no torch.
        ranks: processes the run will be launched with.
        tiny: check the recipe's tiny twin instead.

    Returns:
        The exit code: 0, or 2 where the recipe cannot run.

    Raises:
        RecipeError: mistakes of the recipe's text, before anything else can be checked.
    """
    from mmtune.ground.recipe_text import read_recipe_text
    from mmtune.recipe_schema import load_recipe

    recipe = load_recipe(recipe_path, overrides, world_size=ranks)
    if schema_only:
        print(f"{recipe_path}: the recipe is sound; data and backbone were not looked at")
        return 0
    if tiny:
        from mmtune.tiny_recipe import shrink

        recipe, notes = shrink(recipe, overrides, world_size=ranks)
        print("\n".join(notes))
    from mmtune import preflight_checks as checks

    findings = checks.Findings(read_recipe_text(recipe_path, overrides))
    checks.check_start(recipe, findings)
    if findings.problems:  # what takes no time comes first
        report(findings)
        return 2
    checks.check_output(recipe, findings)
    description = checks.describe_backbone(recipe, findings)
    if description is not None:
        checks.check_abilities(recipe, description, findings)
        checks.check_adapter(recipe, description, findings)
        checks.measure_parts(recipe, description, findings)
    checks.check_machine(recipe, findings)
    train = checks.open_data(recipe, findings)
    layout = checks.check_length(recipe, train, ranks, findings) if train is not None else None
    if description is not None and not findings.problems:
        adapted = checks.attach_adapter(recipe, findings)
        if adapted is not None and train is not None and layout is not None:
            forecast_trunk(recipe, adapted, train, layout, findings)
    report(findings)
    return 2 if findings.problems else 0


def forecast_trunk(
    recipe: "Recipe", adapted: "Adapted", train: "OpenedSplit", layout: "Layout", findings: "Findings"
) -> None:
    """What is kept of the layers below the adapter, how much room that takes, and what it is worth."""
    import torch

    from mmtune.ground.errors import MmtuneError
    from mmtune.ground.kind_folder import kind
    from mmtune.run_setup import resolve_precision, total_steps
    from mmtune.tasks import ability_for, prepared
    from mmtune.trainer_building import training_items
    from mmtune.trunk_forecast import describe_forecast, forecast
    from mmtune.trunk_setup import ask_for_trunk
    from mmtune.trunk_shelf import cache_root

    if recipe.train.trunk.mode == "off":
        findings.fact("trunk", "off, as train.trunk_cache says")
        return
    try:
        root = cache_root(recipe.train.trunk.folder)
    except MmtuneError as error:
        findings.error(("train", "trunk_cache"), error)
        return
    if recipe.train.trunk.mode != "memory" and os.path.exists(root) and not os.path.isdir(root):
        what = f"{root} is no folder: nothing can be kept there, and the run does without; name another place"
        findings.warning(("train", "trunk_cache"), what)
    ability = ability_for(kind("tasks", recipe.task), adapted.backbone.traits) or ""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = ask_for_trunk(recipe, ability, resolve_precision(recipe.train.precision), device, lambda line: None)
    samples = prepared(recipe, train.samples)
    num_shown = total_steps(recipe, layout) * layout.batch
    try:
        made = forecast(
            adapted, asked, recipe, lambda: training_items(recipe, adapted.backbone, samples, ability), num_shown
        )
    except MmtuneError as error:
        findings.error(("train", "trunk_cache"), error)
        return
    for line in describe_forecast(made, recipe.train.trunk):
        findings.fact("trunk", line)


def report(findings: "Findings") -> None:
    """Facts and tables to standard output, warnings and problems to standard error."""
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    width = max((len(topic) for topic, _ in findings.facts), default=0)
    for topic, what in findings.facts:
        print(f"{topic:<{width}}  {what}")
    splits = Table("split", title="data", title_justify="left")
    for name in (findings.media, findings.texts, "bad"):
        splits.add_column(name, justify="right")
    for split, media, texts, bad in findings.splits:
        counts = ["unusable" if number is None else f"{number:,}" for number in (media, texts, bad)]
        splits.add_row(split, *counts)
    for table in (splits, memory_table(findings), adapter_table(findings)):
        if table.row_count:
            console.print(table)
    for text in findings.warnings:
        print(f"warning: {text}", file=sys.stderr)
    for text in findings.problems:
        print(text, file=sys.stderr)
    print("ready to train" if not findings.problems else "not ready: see the messages above")


def memory_table(findings: "Findings") -> "Table":
    """Bytes of each part at each setting, the recipe's with a star; the total last."""
    from rich.table import Table

    from mmtune.part_sizes import in_words

    settings = list(dict.fromkeys(setting for size in findings.sizes for setting in size.num_bytes))
    shown = [name for name in settings if name != "float16" or name == findings.setting]
    table = Table("part", title="memory of the weights (*: as the recipe holds them)", title_justify="left")
    for name in ("weights", *(f"{name} *" if name == findings.setting else name for name in shown)):
        table.add_column(name, justify="right")
    for size in findings.sizes:
        held = (in_words(size.num_bytes[name]) if name in size.num_bytes else "" for name in shown)
        table.add_row(size.part, f"{size.num_weights:,}", *held)
    if findings.sizes:
        whole = sum(size.num_weights for size in findings.sizes)
        totals = (in_words(sum(size.num_bytes.get(name, 0) for size in findings.sizes)) for name in shown)
        table.add_row("total", f"{whole:,}", *totals)
    return table


def adapter_table(findings: "Findings") -> "Table":
    """What is trained in each part, and the bytes of its new weights, their gradients and the optimizer's averages."""
    from rich.table import Table

    from mmtune.part_sizes import in_words

    table = Table("part", title="adapter (memory: with gradients and optimizer)", title_justify="left")
    for name in ("modules", "trained weights", "share", "memory"):
        table.add_column(name, justify="right")
    memory = {one.part: in_words(one.total) for one in findings.trained}
    for part, modules, trained, share in findings.parts:
        table.add_row(part, f"{modules:,}", f"{trained:,}", f"{share:.2%}", memory.get(part, ""))
    return table
