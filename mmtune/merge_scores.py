"""Scores of a model before and after a merge that changes it: of a quantized run, on some of its held-out samples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmtune.ground.records import Sample
from mmtune.merge_proof import ability_of

if TYPE_CHECKING:
    from mmtune.backbones import Backbone
    from mmtune.recipe_schema import Recipe

NUM_SCORED, NUM_ANSWERED = 512, 32
"""Samples that are scored: embedded together, or answered, which takes a pass per word."""

BATCH = 8


def score_some(backbone: "Backbone", recipe: "Recipe | None", samples: Sequence[Sample]) -> dict[str, float]:
    """The scores of the recipe's task; of an adapter without a recipe those of retrieval, or none.

    Raises:
        DataError: not one of the samples can be scored.
    """
    if ability_of(backbone) == "embed" and (recipe is None or recipe.task.kind == "retrieval"):
        from mmtune.scoring_loop import embed_split, score_embeddings

        some = [samples[n] for n in range(min(len(samples), NUM_SCORED))]
        return score_embeddings(embed_split(backbone, some, device="cpu", batch=32)).values
    if recipe is None:
        return {}
    from mmtune.answer_scoring import answer_split, score_answers
    from mmtune.item_encoding import make_asking

    asking = make_asking(recipe.task, backbone, recipe.seed)
    some = [samples[n] for n in range(min(len(samples), NUM_ANSWERED))]
    asked = asking.task.prepare(some, recipe.seed)
    return score_answers(answer_split(asking, backbone, asked, device="cpu", batch=BATCH))
