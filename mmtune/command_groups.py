"""Commands of two words: ``mmtune recipes ...`` and ``mmtune cache ...``."""

from pathlib import Path
from typing import Annotated

import typer

from mmtune import command_options as options

recipes_app = typer.Typer(help="The recipes that travel with mmtune.", no_args_is_help=True)
cache_app = typer.Typer(help="What frozen trunks left on this disk.", no_args_is_help=True)


@recipes_app.command("list")
def list_recipes() -> None:
    """Name and purpose of every shipped recipe."""
    from mmtune.recipe_shelf import shipped_recipes, summary_of

    found = shipped_recipes()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name:<{width}}  {summary_of(path)}")


@recipes_app.command("show")
def show_recipe(name: options.ShelfName) -> None:
    """Print a shipped recipe."""
    from mmtune.recipe_shelf import find_recipe

    print(find_recipe(name).read_text(encoding="utf-8"), end="")


@recipes_app.command("copy")
def copy_recipe(
    name: options.ShelfName,
    target: Annotated[Path, typer.Argument(help="a folder or a .yaml file")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="replace a file that is there")] = False,
) -> None:
    """Copy a shipped recipe to change it, with the schema for editors beside it."""
    from mmtune.recipe_shelf import copy_recipe as copy_shipped

    written = copy_shipped(name, target, force=force)
    for path in written:
        print(f"wrote {path}")
    print(f"run it with: mmtune finetune {written[0]}")


@cache_app.command("list")
def list_cache(folder: options.CacheFolder = None) -> None:
    """What is kept: of which trunk, how much, when it was last used."""
    from mmtune.cache_run import list_cache as print_cache

    print_cache(folder)


@cache_app.command("clear")
def clear_cache(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="as `mmtune cache list` writes them; none: all")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="only what was not used for so long, such as '30 days'")
    ] = None,
    folder: options.CacheFolder = None,
) -> None:
    """Delete what is kept, without asking; a run that uses it computes it again."""
    from mmtune.cache_run import clear_cache as clear_kept

    clear_kept(names or (), older_than=older_than, folder=folder)
