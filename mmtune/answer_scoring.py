"""What a model says about every sample of a split: words it generates, or the one of a few that it chooses.

Batches are fixed by the split and ``batch`` alone and ranks take whole batches in turn, so that every answer is the
same however many ranks or workers there are, and none is counted twice. What cannot be read, or does not fit the
model, is left out and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.answer_ways import Said, Way, way_of
from mmtune.ground.errors import DataError
from mmtune.ground.process_group import gather_objects, rank, world_size
from mmtune.ground.records import BadItem, Sample
from mmtune.item_encoding import Asking
from mmtune.metrics import answer_score
from mmtune.metrics._bootstrap import joined_groups
from mmtune.scoring_loop import EncodedBatches, Progress, autocast_for, open_batches, scoring_mode

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Answers:
    """A split as a model answers it.

    Attributes:
        samples: those that were answered, in the order of the split.
        asked: what was said to the model about each, without its image.
        predictions: what it answered.
        confidences: how sure it was; None where it generated.
        references: what would have been right.
        groups: int64[N], connected through any shared image or sample group; what the bootstrap draws.
        statistics: score -> what each sample adds to it, float64[N, S]; all that is said of scores is made of these.
        bad: what could not be answered, with its reason; once, where the task asks about it twice.
    """

    samples: tuple[Sample, ...]
    asked: tuple[str, ...]
    predictions: tuple[str, ...]
    confidences: tuple[float | None, ...]
    references: tuple[tuple[str, ...], ...]
    groups: np.ndarray
    statistics: dict[str, np.ndarray]
    bad: tuple[BadItem, ...] = field(default=())


def answer_split(
    asking: Asking,
    backbone: Any,
    samples: Sequence[Sample],
    *,
    device: "torch.device | str",
    batch: int,
    workers: int = 0,
    precision: str = "fp32",
    split: str = "",
    progress: Progress | None = None,
    keep: EncodedBatches | None = None,
) -> Answers:
    """Ask a model about every sample of a split.

    Args:
        asking: what the task asks.
        backbone: its model may be adapted. It answers in eval mode, without gradient; modes are put back.
        samples: the split, as the task prepared it.
        device: where the model is.
        batch: samples per pass (with answers to choose from: pairs of a sample and an answer).
        workers: processes that read and encode; 0 does it here.
        precision: as in ``embed_split``.
        split: its name, for the quarantine list.
        progress: called after each batch.
        keep: as in ``embed_split``.

    Raises:
        DataError: there is no sample, or none that can be answered.
    """
    if not len(samples):
        raise DataError("there is nothing to score: the split has no samples")
    with autocast_for(device, precision):
        said, bad_at = answer_batches(way_of(asking, samples, split), backbone, device, batch, workers, progress, keep)
    return _assemble(asking, samples, said, bad_at)


def answer_batches(
    way: Way,
    backbone: Any,
    device: "torch.device | str",
    batch: int,
    workers: int,
    progress: Progress | None = None,
    keep: EncodedBatches | None = None,
) -> tuple[dict[int, Said], dict[int, BadItem]]:
    """Answers, and what could not be answered, by place; every rank gets those of all."""
    report = progress or (lambda kind, done, total: None)
    found: dict[int, Any] = {}
    bad_at: dict[int, BadItem] = {}
    done = 0
    batches = (keep or EncodedBatches(max_bytes=0)).through("answers", _batches(backbone, way, batch, workers))
    with scoring_mode(backbone.model):
        for places, inputs, bad in batches:
            bad_at.update(bad)
            if places:
                inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                found.update(zip(places, way.answer(backbone, inputs), strict=True))
            done += len(places) + len(bad)
            report("answers", done, len(way.items))
    for mine, theirs in gather_objects([(found, bad_at)]):
        found.update(mine)
        bad_at.update(theirs)
    return way.conclude(found, bad_at)


def _batches(backbone: Any, way: Way, batch: int, workers: int) -> Iterator[Any]:
    """This rank's batches, every ``world_size()``-th of the split's; encoded when they are asked for."""
    starts = range(0, len(way.items), batch)[rank() :: world_size()]
    places = [list(range(start, min(start + batch, len(way.items)))) for start in starts]
    return open_batches(backbone, way.items, way.encode, places, workers, partial(way.pad))


def _assemble(asking: Asking, samples: Sequence[Sample], said: dict[int, Said], bad_at: dict[int, BadItem]) -> Answers:
    places = sorted(said)
    if not places:
        first = bad_at[min(bad_at)]
        raise DataError(f"none of the {len(bad_at)} samples can be answered; the first, {first.where}: {first.reason}")
    kept = tuple(samples[place] for place in places)
    predictions = tuple(said[place][0] for place in places)
    references = tuple(tuple(asking.task.references(asking.section, sample)) for sample in kept)
    names = asking.task.score_names(asking.section, asking.traits.modality)
    return Answers(
        samples=kept,
        asked=tuple(_words(asking, sample) for sample in kept),
        predictions=predictions,
        confidences=tuple(said[place][1] for place in places),
        references=references,
        groups=_groups(kept),
        statistics={name: answer_score(name).statistics(predictions, references) for name in names},
        bad=_once(bad_at),
    )


def _once(bad_at: dict[int, BadItem]) -> tuple[BadItem, ...]:
    """What could not be answered, in the order of the split, each of the data's samples once."""
    found: dict[str, BadItem] = {}
    for place in sorted(bad_at):
        found.setdefault(bad_at[place].where, bad_at[place])
    return tuple(found.values())


def _words(asking: Asking, sample: Sample) -> str:
    if asking.ability == "generate":
        return asking.asked(sample)[-1].text
    return str(asking.task.statement(sample))


def _groups(samples: Sequence[Sample]) -> np.ndarray:
    """Samples of one image, or of one sample group, rise and fall together."""
    first: dict[tuple[str, str], int] = {}
    edges = []
    for place, sample in enumerate(samples):
        images = {sample.media.key, *(one.key for turn in sample.turns for one in turn.media)}
        names = [*(("image", key) for key in sorted(images)), *([("group", sample.group)] if sample.group else [])]
        edges += [(place, first.setdefault(name, place)) for name in names]
    left, right = (np.array(side, dtype=np.int64) for side in zip(*edges, strict=True))
    return joined_groups(len(samples), left, right)


def score_answers(answers: Answers) -> dict[str, float]:
    """Every score of the task, by its name."""
    return {name: float(answer_score(name).combine(each.sum(axis=0))) for name, each in answers.statistics.items()}
