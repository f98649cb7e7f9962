"""What a model says about every sample of a split: words it generates, or the one of a few that it chooses.

Batches are fixed by the split and ``batch`` alone and ranks take whole batches in turn, so that every answer is the
same however many ranks or workers there are, and none is counted twice. What cannot be read, or does not fit the
model, is left out and counted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.batch_building import bad_item
from mmtune.ground.errors import DataError
from mmtune.ground.process_group import gather_objects, rank, world_size
from mmtune.ground.records import BadItem, Sample, Turn
from mmtune.item_encoding import Asking, encode_pair
from mmtune.metrics import answer_score
from mmtune.metrics._bootstrap import joined_groups
from mmtune.scoring_loop import EncodedBatches, Progress, autocast_for, open_batches, scoring_mode
from mmtune.shown_media import ShownMedia, opened, read_images
from mmtune.token_states import head_of, token_states

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Said = tuple[str, float | None]
"""An answer, and how sure the model was of it: a probability, among the answers to choose from; None for words."""


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


def way_of(asking: Asking, samples: Sequence[Sample], split: str) -> "Way":
    """How samples are answered: by generating, choosing the likeliest of a list, matching or classifying."""
    chooses = asking.ability == "generate" and asking.task.candidates(asking.section)
    return _WAYS["choose" if chooses else asking.ability](asking, samples, split)


def answer_batches(
    way: "Way",
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


def _batches(backbone: Any, way: "Way", batch: int, workers: int) -> Iterator[Any]:
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


# --- the ways of answering: what is encoded, how it is padded, what the model then says


@dataclass(frozen=True)
class Way:
    """One way of answering; an item is a sample, or what a subclass says. Picklable for the loader's workers."""

    asking: Asking
    samples: Sequence[Sample]
    split: str

    @property
    def items(self) -> Sequence[Any]:
        """What is encoded and answered one by one."""
        return self.samples

    def encode(self, item: Any) -> "dict[str, Tensor] | BadItem":
        """Tensors of an item, or why there are none."""
        sample = self.sample_of(item)
        try:
            return self.encoded(item)
        except DataError as error:
            return bad_item(sample, error, self.split)

    def sample_of(self, item: Any) -> Sample:
        """The sample an item is about."""
        sample: Sample = item
        return sample

    def encoded(self, item: Any) -> "dict[str, Tensor]":
        """Tensors of an item; raises DataError where there can be none."""
        it = self.asking
        return encode_pair(it, opened(it.family, ShownMedia(item.media)), it.task.statement(item))

    def pad(self, encoded: "list[dict[str, Tensor]]") -> "dict[str, Tensor]":
        """A batch of items."""
        padded: dict[str, Tensor] = self.asking.family.pad(self.asking.processor, encoded)
        return padded

    def answer(self, backbone: Any, inputs: "dict[str, Tensor]") -> list[Said]:
        """What the model says to a batch, one answer per item."""
        raise TypeError("a subclass says how")

    def conclude(self, found: dict[int, Any], bad_at: dict[int, BadItem]) -> tuple[dict[int, Said], dict[int, BadItem]]:
        """Answers by sample, from answers by item."""
        return found, bad_at


class _Generate(Way):
    """Words, by the model's own decoding."""

    def encoded(self, item: Any) -> "dict[str, Tensor]":
        return encode_asked(self.asking, self.asking.asked(item))

    def pad(self, encoded: "list[dict[str, Tensor]]") -> "dict[str, Tensor]":
        padded: dict[str, Tensor] = self.asking.family.pad(self.asking.processor, encoded, side="left")
        return padded

    def answer(self, backbone: Any, inputs: "dict[str, Tensor]") -> list[Said]:
        return [(text, None) for text in generate(self.asking, backbone, inputs)]


class _Choose(Way):
    """The likeliest of a list of answers: an item is (sample, answer)."""

    @cached_property
    def items(self) -> Sequence[Any]:  # asked for with every batch: made once
        return [(sample, answer) for sample in self.samples for answer in self._answers]

    @property
    def _answers(self) -> list[str]:
        answers: list[str] = self.asking.task.candidates(self.asking.section)
        return answers

    def sample_of(self, item: Any) -> Sample:
        sample: Sample = item[0]
        return sample

    def encoded(self, item: Any) -> "dict[str, Tensor]":
        sample, answer = item
        turns = (*self.asking.asked(sample), Turn("assistant", (answer,)))
        images = read_images(self.asking.family, turns)
        encoded: dict[str, Tensor] = self.asking.family.encode_turns(self.asking.processor, turns, images)
        return encoded

    def answer(self, backbone: Any, inputs: "dict[str, Tensor]") -> list[Said]:
        from mmtune.losses._label_tokens import token_log_likelihoods

        states = token_states(backbone, inputs)
        shifted = backbone.traits.shifted_labels
        values = token_log_likelihoods(states, inputs["labels"], head_of(backbone), shifted)
        return [("", float(value)) for value in values]

    def conclude(self, found: dict[int, Any], bad_at: dict[int, BadItem]) -> tuple[dict[int, Said], dict[int, BadItem]]:
        answers = self._answers
        said: dict[int, Said] = {}
        bad = {place // len(answers): item for place, item in sorted(bad_at.items(), reverse=True)}
        for place in range(len(self.samples)):
            if place in bad:
                continue
            values = np.array([found[place * len(answers) + number][1] for number in range(len(answers))])
            best = int(np.argmax(values))
            said[place] = (answers[best], float(1 / np.exp(values - values[best]).sum()))
        return said, bad


class _Match(Way):
    """Yes where the log odds are above 0."""

    def answer(self, backbone: Any, inputs: "dict[str, Tensor]") -> list[Said]:
        section = self.asking.section
        values = backbone.family.match(backbone.model, inputs).float().sigmoid().tolist()
        return [(section.yes, value) if value > 0.5 else (section.no, 1 - value) for value in values]


class _Classify(Way):
    """The classifier's likeliest answer."""

    def answer(self, backbone: Any, inputs: "dict[str, Tensor]") -> list[Said]:
        values, places = backbone.family.classify(backbone.model, inputs).float().sigmoid().max(dim=1)
        return [(self.asking.answers[place], value) for place, value in zip(places, values.tolist(), strict=True)]


_WAYS: dict[str, Callable[..., Way]] = {
    "generate": _Generate,
    "choose": _Choose,
    "match": _Match,
    "classify": _Classify,
}


def encode_asked(asking: Asking, turns: Sequence[Turn]) -> "dict[str, Tensor]":
    """What generation starts from.

    Raises:
        DataError: an image cannot be read, or the turns do not fit the model.
    """
    images = read_images(asking.family, turns)
    encoded: dict[str, Tensor] = asking.family.encode_prompt(asking.processor, turns, images)
    return encoded


def generate(asking: Asking, backbone: Any, inputs: "dict[str, Tensor]") -> list[str]:
    """The words that the model answers to a padded batch of prompts."""
    section = asking.section
    texts: list[str] = backbone.family.generate(
        backbone.model,
        backbone.processor,
        inputs,
        max_new_tokens=section.max_new_tokens,
        num_beams=section.num_beams,
    )
    return texts
