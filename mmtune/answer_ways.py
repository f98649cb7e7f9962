"""The ways of answering: what of a sample is encoded, how it is padded, and what the model then says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.batch_building import bad_item
from mmtune.class_prompts import class_logits, embed_classes, encode_prompts
from mmtune.ground.errors import DataError
from mmtune.ground.records import BadItem, Sample, Turn
from mmtune.item_encoding import Asking, encode_pair
from mmtune.shown_media import ShownMedia, opened, read_images
from mmtune.token_states import head_of, token_states

if TYPE_CHECKING:
    from torch import Tensor

Said = tuple[str, float | None]
"""An answer, and how sure the model was of it: a probability, among the answers to choose from; None for words."""


def way_of(asking: Asking, samples: Sequence[Sample], split: str) -> "Way":
    """How samples are answered: by generating, choosing the likeliest of a list, matching or classifying."""
    chooses = asking.ability == "generate" and asking.task.candidates(asking.section)
    return _WAYS["choose" if chooses else asking.ability](asking, samples, split)


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


class _ZeroShot(Way):
    """The class whose prompts are nearest to the image; all classes are embedded once per split."""

    def encoded(self, item: Any) -> "dict[str, Tensor]":
        it = self.asking
        if any(item.captions):  # else nobody says what it shows, and the model is to say it
            it.task.class_of(it.section, item)
        encoded: dict[str, Tensor] = it.family.encode_media(it.processor, opened(it.family, ShownMedia(item.media)))
        return encoded

    def answer(self, backbone: Any, inputs: "dict[str, Tensor]") -> list[Said]:
        images = backbone.family.embed_media(backbone.model, inputs)
        logits = class_logits(backbone, images, self._classes(backbone, images.device))
        values, places = logits.softmax(dim=1).max(dim=1)
        names = self.asking.section.classes
        return [(names[place], value) for place, value in zip(places.tolist(), values.tolist(), strict=True)]

    def _classes(self, backbone: Any, device: Any) -> "Tensor":
        kept: dict[str, Any] = self.__dict__  # of this one split and model
        if "_embedded" not in kept:
            prompts = encode_prompts(backbone, self.asking.task, self.asking.section)
            kept["_embedded"] = embed_classes(backbone, prompts, len(self.asking.section.classes), device)
        classes: Tensor = kept["_embedded"]
        return classes


_WAYS: dict[str, Callable[..., Way]] = {
    "embed": _ZeroShot,
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
