"""The story of ``show``: what a recipe's samples are to its backbone, before anything is trained."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.recipe_schema import Recipe
    from mmtune.sample_views import Viewing


def show(recipe: "Recipe", *, samples: int = 5, split: str = "train", output: str | Path | None = None) -> "Viewing":
    """Print samples of a split as the model meets them, and write them as a page that needs nothing else.

    No weights are loaded.

    Args:
        recipe: a checked recipe.
        samples: how many, drawn by the recipe's seed.
        split: of the data; of ``train``, images are changed at random as training changes them.
        output: the HTML file to write; None: none is.

    Returns:
        what was printed.

    Raises:
        RecipeError: backbone, task and data do not fit each other.
        DataError: the split is not there, too much of it is bad, or not one sample can be encoded.
        BackboneError: the backbone's processor cannot be had.
    """
    from mmtune.backbones import describe, load_processor
    from mmtune.ground.errors import DataError, RecipeError
    from mmtune.ground.safe_files import write_text
    from mmtune.run_setup import modality_problems, task_problems
    from mmtune.sample_views import view_samples
    from mmtune.token_page import as_page
    from mmtune.token_terminal import print_viewing
    from mmtune.train_data import open_checked

    traits = describe(recipe.backbone).traits
    if misfits := [*task_problems(recipe, traits), *modality_problems(recipe, traits)]:
        raise RecipeError("\n".join(misfits))
    opened = open_checked(recipe, split)
    viewing = view_samples(recipe, load_processor(recipe.backbone), opened, split, samples)
    print_viewing(viewing, recipe, split)
    if output is not None:
        write_text(Path(output), as_page(viewing, recipe, split))
        print(f"wrote {output}")
    if not viewing.samples:
        first = viewing.bad[0]
        raise DataError(f"not one sample can be shown to the backbone; the first: {first.where}: {first.reason}")
    return viewing
