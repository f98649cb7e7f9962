"""What the commands' arguments and options are called and allow; several commands share them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
    audio = "audio"
    text = "text"


def complete_recipe_name(begun: str) -> list[str]:
    """Names of shipped recipes that begin like this, for the shell."""
    from mmtune.recipe_shelf import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(begun)]


RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="values that replace the recipe's")
]
ShelfName = Annotated[
    str, typer.Argument(help="as `mmtune recipes list` writes it", autocompletion=complete_recipe_name)
]
ModelArgument = Annotated[str, typer.Argument(help="a run, a checkpoint, a peft adapter, a model folder or a hub id")]
RunArgument = Annotated[str, typer.Argument(help="a run, a checkpoint or a peft adapter")]
TinyRecipe = Annotated[
    bool,
    typer.Option(
        "--tiny",
        help="try it in seconds, offline: the backbone's family in tiny with random weights, made-up rows in the "
        "recipe's own columns, four steps, in OUTPUT_tiny",
    ),
]
TinyRun = Annotated[bool, typer.Option("--tiny", help="the run that `finetune --tiny` made of it")]
CheckpointOption = Annotated[
    str | None, typer.Option(help="a checkpoint of the run, such as step-000120; default: the best one")
]
CacheFolder = Annotated[
    str | None,
    typer.Option(help="of the cache; default: $MMTUNE_CACHE, else $XDG_CACHE_HOME/mmtune or ~/.cache/mmtune"),
]
