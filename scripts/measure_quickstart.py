"""What the quickstart's figures are worth: the tuned model beside its base, a control and clean print, as one table.

    python scripts/measure_quickstart.py runs/quickstart
    python scripts/measure_quickstart.py runs/quickstart output=/tmp/small data.characters=40 "train.length=5 steps"

The control is the same recipe on clean print (`data.look=clean`), in RUN-control: what the same steps gain without the
shifted look. It is trained here unless it is finished already. Everything is scored on the test characters, by the code
that `mmtune evaluate` uses. Overrides change the control's recipe and the data that is scored.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import mmtune  # noqa: E402
from mmtune.evaluation_setup import device, embed_opened  # noqa: E402
from mmtune.model_loading import attach_target, load_base, resolve  # noqa: E402
from mmtune.score_comparison import compare  # noqa: E402
from mmtune.scored_split import SplitEmbeddings  # noqa: E402
from mmtune.scoring_loop import EncodedBatches, Scores, score_embeddings  # noqa: E402
from mmtune.sources import OpenedSplit  # noqa: E402
from mmtune.train_data import open_checked  # noqa: E402
from scripts.score_glyph_clip import compute_batch_loss  # noqa: E402

COLUMNS = ("text_to_image_recall@1", "text_to_image_recall@10", "image_to_text_recall@1")
LOSS_BATCH = 128


@dataclass(frozen=True)
class Measured:
    """One model on the test characters in one look."""

    embeds: SplitEmbeddings
    scores: Scores
    loss: float


@dataclass(frozen=True)
class Look:
    """The test characters in one look, encoded once for all models."""

    recipe: Any
    opened: OpenedSplit
    keep: EncodedBatches

    def score(self, backbone: Any) -> Measured:
        """Scores, and InfoNCE at the model's own temperature."""
        embeds = embed_opened(backbone, self.opened, self.recipe, "test", self.keep)
        log_scale, _ = backbone.family.temperature(backbone.model)
        return Measured(embeds, score_embeddings(embeds), loss_of(embeds, self.opened, float(log_scale.detach().exp())))


def loss_of(embeds: SplitEmbeddings, opened: OpenedSplit, scale: float) -> float:
    """InfoNCE over batches of 128 pictures, each with its own name; names of characters drawn alike do not count."""
    caption_of = {sample.id: sample.captions[0] for sample in opened.samples}
    place_of = {text: place for place, text in enumerate(embeds.texts)}
    own = np.array([place_of[caption_of[name]] for name in embeds.image_ids])
    scores = embeds.image_embeds @ embeds.text_embeds[own].T
    positive = embeds.image_groups[:, None] == embeds.image_groups[None, :]
    return compute_batch_loss(scores, positive, scale, min(LOSS_BATCH, len(scores)))


def read_recipe(run: Path, overrides: list[str]) -> Any:
    """The run's recipe with the overrides; `output` is RUN unless they say otherwise."""
    named = any(override.startswith("output=") for override in overrides)
    return mmtune.load_recipe(run / "recipe.resolved.json", overrides if named else [f"output={run}", *overrides])


def in_look(recipe: Any, look: str, **changes: Any) -> Any:
    """The recipe in another look."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"look": look}), **changes})


def open_look(recipe: Any, look: str) -> Look:
    """The recipe's test characters in another look."""
    changed = in_look(recipe, look)
    return Look(changed, open_checked(changed, "test"), EncodedBatches())


def measure(run: Path, control: Path, recipe: Any) -> dict[str, dict[str, Measured]]:
    """Look -> model -> figures; the base is a fresh load, before anything is attached."""
    looks = {look: open_look(recipe, look) for look in (recipe.data.look, "clean")}
    found: dict[str, dict[str, Measured]] = {look: {} for look in looks}
    for name, folder in (("tuned", run), ("control", control)):
        target = resolve(folder)
        backbone = load_base(target, device=device())
        if name == "tuned":
            for look, opened in looks.items():
                found[look]["base"] = opened.score(backbone)
        attach_target(backbone, target)
        for look, opened in looks.items():
            found[look][name] = opened.score(backbone)
    return found


def write_table(found: dict[str, dict[str, Measured]]) -> Iterator[str]:
    """One markdown row per look and model."""
    yield f"| look | model | {' | '.join(COLUMNS)} | loss |"
    yield "|---|---|" + "---|" * (len(COLUMNS) + 1)
    for look, models in found.items():
        for name, one in models.items():
            cells = [f"{one.scores.values[column]:.3f}" for column in COLUMNS]
            yield f"| {look} | {name} | {' | '.join(cells)} | {one.loss:.3f} |"


def write_gains(found: dict[str, dict[str, Measured]], seed: int) -> Iterator[str]:
    """What each model gained over the base, with the interval that `mmtune evaluate` gives."""
    score = COLUMNS[0]
    for look, models in found.items():
        base = models["base"]
        for name in ("tuned", "control"):
            both = compare(base.embeds, base.scores, models[name].scores, seed=seed)
            low, high = both["interval95"][score] or (float("nan"), float("nan"))
            yield f"- gain of {name} on {look}, {score}: {both['delta'][score]:+.3f} (95 % {low:+.3f} to {high:+.3f})"


def write_costs(run: Path, control: Path) -> Iterator[str]:
    """Trained share, seconds and machine, from the manifests."""
    tuned, other = (json.loads((folder / "manifest.json").read_text()) for folder in (run, control))
    trained = tuned["trainable"]
    yield f"- trained: {trained['count']:,} weights, {100 * trained['share']:.2f} % of the model"
    yield f"- steps: tuned {tuned['steps']}, control {other['steps']}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = "CPU" if device() == "cpu" else device()
    yield f"- seconds of training: tuned {tuned['seconds']:.0f}, control {other['seconds']:.0f}; {cores} cores, {where}"
    yield f"- loss: InfoNCE over batches of {LOSS_BATCH} test pictures, each model at its own temperature"


def main(arguments: list[str]) -> None:
    """RUN and overrides in, the table out."""
    run = Path(arguments[0])
    recipe = read_recipe(run, arguments[1:])
    control = mmtune.fit(in_look(recipe, "clean", output=f"{recipe.output}-control"))
    found = measure(run, control, recipe)
    print("\n" + "\n".join([*write_table(found), "", *write_gains(found, recipe.seed), *write_costs(run, control)]))


if __name__ == "__main__":
    if len(sys.argv) < 2 or "=" in sys.argv[1]:
        sys.exit("usage: python scripts/measure_quickstart.py RUN [section.key=value ...]")
    main(sys.argv[1:])
