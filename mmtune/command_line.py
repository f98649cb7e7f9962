"""The console command ``mmtune``: the same stories as from Python, with arguments in and an exit code out.

Nothing slow is imported before a story needs it: ``--help``, ``recipes``, ``schema`` and a recipe's mistakes are quick.
"""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmtune.ground.errors import MmtuneError


class Resume(StrEnum):
    """What to do with a run folder that holds the same recipe."""

    auto = "auto"
    never = "never"


class Base(StrEnum):
    """What a quantized run is merged into."""

    auto = "auto"
    full = "full"


class Dtype(StrEnum):
    """Number format of merged weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class InputKind(StrEnum):
    """What is embedded."""

    image = "image"
    text = "text"


app = typer.Typer(
    name="mmtune",
    help="Adapt pretrained image-text models to your own data, score them against their base, merge them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="The recipes that travel with mmtune.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="values that replace the recipe's")
]


def main() -> None:
    """Entry of the console script: a mistake of the user's is one message on stderr and exit code 2."""
    try:
        app()
    except MmtuneError as error:
        if _is_first_rank():
            print(error, file=sys.stderr)
        sys.exit(2)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@app.command()
def finetune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on where the run folder holds the same recipe; never: refuse such a folder")
    ] = Resume.auto,
    restart: Annotated[bool, typer.Option("--restart", help="move an old run aside and begin anew")] = False,
    print_resolved: Annotated[
        bool, typer.Option("--print-resolved", help="print the recipe with every default, and stop")
    ] = False,
) -> None:
    """Fine-tune as RECIPE says; for several GPUs: accelerate launch -m mmtune.finetune RECIPE."""
    from mmtune.recipe_schema import load_recipe, resolved_json

    checked = load_recipe(recipe, overrides or (), world_size=int(os.environ.get("WORLD_SIZE", "1")))
    if print_resolved:
        _print_json(resolved_json(checked))
        return
    from mmtune.training_run import fit

    fit(checked, resume=resume.value, restart=restart)


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help="a run, a checkpoint, a peft adapter, a model folder or a hub id")],
    overrides: Overrides = None,
    recipe: Annotated[
        Path | None, typer.Option(help="where the data comes from, if TARGET is no run; overrides apply to it")
    ] = None,
    split: Annotated[str, typer.Option(help="split of the data to score")] = "test",
    checkpoint: Annotated[
        str | None, typer.Option(help="a checkpoint of the run, such as step-000120; default: the best one")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for scores and pictures; default: the run's")
    ] = None,
) -> None:
    """Score a run against its untouched backbone, or a model alone, on one split."""
    from mmtune.recipe_schema import load_recipe

    if overrides and recipe is None:
        raise MmtuneError(f"{overrides[0]!r}: overrides change a recipe; give one with --recipe")
    loaded = None if recipe is None else load_recipe(recipe, overrides or ())
    from mmtune.evaluation_run import evaluate as evaluate_target

    evaluate_target(target, recipe=loaded, split=split, checkpoint=checkpoint, output=output)


@app.command()
def merge(
    run: Annotated[str, typer.Argument(help="a run, a checkpoint or a peft adapter")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="model folder to write [RUN/merged]")] = None,
    scale: Annotated[float, typer.Option(help="base + SCALE x (merged - base), for every tensor")] = 1.0,
    base: Annotated[
        Base, typer.Option(help="a quantized run merges into: auto: its dequantized base; full: the original weights")
    ] = Base.auto,
    dtype: Annotated[
        Dtype | None, typer.Option(help="number format of the written weights; default: the backbone's")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="data for the proof, if no run here made the adapter; default: shipped glyphs")
    ] = None,
) -> None:
    """Write a run as a plain model folder, proven equal to the adapted model in a fresh process."""
    from mmtune.recipe_schema import load_recipe

    loaded = None if recipe is None else load_recipe(recipe)
    from mmtune.export_run import merge as merge_run

    number_format = None if dtype is None else dtype.value
    target: Literal["auto", "full"] = "full" if base is Base.full else "auto"
    folder = merge_run(run, output=output, scale=scale, base=target, dtype=number_format, recipe=loaded)
    print(f"wrote {folder}; the proof stands in {folder / 'merge_report.json'}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="a run, a checkpoint, a peft adapter, a model folder or a hub id")],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="a folder, a glob, a table (JSON lines, CSV, TSV) or a .txt file")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the .npy file to write; ids go beside it")],
    kind: Annotated[InputKind | None, typer.Option(help="what to embed; default: what INPUT holds")] = None,
    column: Annotated[str | None, typer.Option(help="the table's column, where its name does not say it")] = None,
    images: Annotated[str | None, typer.Option(help="folder that a table's image paths start from")] = None,
    batch: Annotated[int, typer.Option(min=1, help="inputs per forward pass")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="processes that read images")] = 0,
) -> None:
    """Embed images or texts; an interrupted prediction goes on where it stopped."""
    from mmtune.predict_run import predict as predict_source

    kinds: dict[InputKind | None, Literal["image", "text"] | None]
    kinds = {InputKind.image: "image", InputKind.text: "text", None: None}
    predict_source(
        model, source, output=output, kind=kinds[kind], column=column, images=images, batch=batch, workers=workers
    )


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    schema_only: Annotated[bool, typer.Option("--schema-only", help="stop before data and backbone")] = False,
    ranks: Annotated[int, typer.Option(min=1, help="processes the run will be launched with")] = 1,
) -> None:
    """Run every check of RECIPE that needs no training; exit code 0 or 2."""
    from mmtune.preflight_run import check as check_recipe

    raise typer.Exit(check_recipe(recipe, overrides or (), schema_only, ranks=ranks))


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from mmtune.recipe_schema import json_schema

    _print_json(json_schema())


@recipes_app.command("list")
def list_recipes() -> None:
    """Name and purpose of every shipped recipe."""
    from mmtune.recipe_shelf import shipped_recipes, summary_of

    found = shipped_recipes()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name:<{width}}  {summary_of(path)}")


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="as `mmtune recipes list` writes it")]) -> None:
    """Print a shipped recipe."""
    from mmtune.recipe_shelf import find_recipe

    print(find_recipe(name).read_text(encoding="utf-8"), end="")


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="as `mmtune recipes list` writes it")],
    target: Annotated[Path, typer.Argument(help="a folder or a .yaml file")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="replace a file that is there")] = False,
) -> None:
    """Copy a shipped recipe to change it, with the schema for editors beside it."""
    from mmtune.recipe_shelf import copy_recipe as copy_shipped

    written = copy_shipped(name, target, force=force)
    for path in written:
        print(f"wrote {path}")
    print(f"run it with: mmtune finetune {written[0]}")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
