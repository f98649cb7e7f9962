"""The recipes that travel with mmtune: in ``recipes/`` of a checkout, in ``mmtune/shipped_recipes/`` of a wheel."""

import shutil
from pathlib import Path

from mmtune.ground.errors import RecipeError
from mmtune.recipe_keys import suggest

SCHEMA_FILE = "recipe.schema.json"


def find_shelf() -> Path:
    """The folder of the shipped recipes.

    Raises:
        RecipeError: the installation lacks them.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "shipped_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise RecipeError(f"{package} has no recipes beside it; install mmtune again")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe, sorted by name."""
    return {path.stem: path for path in sorted(find_shelf().glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The shipped recipe called ``name``, with or without ``.yaml``.

    Raises:
        RecipeError: there is none; the message lists the names.
    """
    found = shipped_recipes()
    stem = name.removesuffix(".yaml")
    if stem in found:
        return found[stem]
    words = stem.replace("-", "_").split("_")
    near = suggest(stem, found) or [each for each in found if all(word in each for word in words)]
    start = f"did you mean {' or '.join(near[:3])}? There are" if near else "there are"
    raise RecipeError(f"there is no shipped recipe {name!r}; {start}: {', '.join(found)}")


def summary_of(path: Path) -> str:
    """The first comment of a recipe that is no instruction to an editor."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if line.startswith("#") and text and not text.startswith("yaml-language-server"):
            return text
    return ""


def copy_recipe(name: str, target: Path, *, force: bool = False) -> list[Path]:
    """Copy a shipped recipe, and the schema that editors check it with, to a file or folder of the user's.

    Returns:
        What was written.

    Raises:
        RecipeError: no such recipe, or the file is there already and ``force`` is not set.
    """
    source = find_recipe(name)
    file = target / source.name if target.is_dir() else target
    if file.suffix != ".yaml":
        raise RecipeError(f"{target}: is neither a folder nor the name of a .yaml file")
    if not file.parent.is_dir():
        raise RecipeError(f"{file.parent}: there is no such folder; make it first")
    if file.exists() and not force:
        raise RecipeError(f"{file} is there already; give another name, or --force to replace it")
    written = [file]
    shutil.copyfile(source, file)
    schema = file.with_name(SCHEMA_FILE)
    if not schema.exists():
        shutil.copyfile(source.with_name(SCHEMA_FILE), schema)
        written.append(schema)
    return written
