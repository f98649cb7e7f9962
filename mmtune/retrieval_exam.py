"""One evaluation of a retrieval task: embed, rank, compare, write ``ranks.jsonl`` and ``retrievals.png``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.evaluation_setup import describe, embed_opened
from mmtune.score_comparison import check_same_queries, compare
from mmtune.score_files import write_files
from mmtune.scored_split import SplitEmbeddings
from mmtune.scoring_loop import EncodedBatches, Progress, Scores, score_embeddings

if TYPE_CHECKING:
    from mmtune.backbones import Backbone
    from mmtune.model_loading import Target
    from mmtune.recipe_schema import Recipe
    from mmtune.sources import OpenedSplit


class RetrievalExam:
    """What a split asks, of a base and of a tuned model alike; the methods are those of ``AnswerExam``."""

    def __init__(self, recipe: "Recipe", opened: "OpenedSplit", split: str) -> None:
        self.recipe, self.opened, self.split = recipe, opened, split
        self.keep = EncodedBatches()
        self._scores: dict[int, Scores] = {}

    def take(self, backbone: "Backbone", progress: Progress | None = None) -> SplitEmbeddings:
        """The split as this model sees it.

        Raises:
            DataError: with the images that failed to decode, too much of the split is bad.
            RecipeError: the model does not embed.
        """
        from mmtune.run_setup import refuse_misfit_of

        refuse_misfit_of(self.recipe, backbone.description)
        return embed_opened(backbone, self.opened, self.recipe, self.split, self.keep, progress)

    def values(self, taken: SplitEmbeddings) -> dict[str, float]:
        """Every score."""
        return self._ranked(taken).values

    def _ranked(self, taken: SplitEmbeddings) -> Scores:
        """Scores and ranks, worked out once for each model."""
        if id(taken) not in self._scores:
            self._scores[id(taken)] = score_embeddings(taken)
        return self._scores[id(taken)]

    def compare(self, base: SplitEmbeddings, tuned: SplitEmbeddings) -> dict[str, Any]:
        """Scores of both, their difference and its 95 % interval.

        Raises:
            DataError: an image could be read for one of them and not for the other.
        """
        check_same_queries(base, tuned)
        return compare(base, self._ranked(base), self._ranked(tuned), seed=self.recipe.seed)

    def describe(self, found: "Target", backbone: "Backbone", taken: SplitEmbeddings) -> dict[str, Any]:
        """What a reader needs to know about how the scores came about."""
        return describe(found, backbone, self.opened, taken, self.recipe, self.split)

    def write_files(
        self, folder: Path, suffix: str, result: dict[str, Any], taken: Mapping[str, SplitEmbeddings]
    ) -> list[Path]:
        """Write the files and return their paths."""
        return write_files(folder, suffix, result, taken, {name: self._ranked(one) for name, one in taken.items()})
