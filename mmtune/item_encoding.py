"""From one sample to one model's tensors, a class per ability; runs in the loader's workers.

Each is a function of (sample, choice, turn) where ``turn`` is how often the item was shown before. What cannot be read,
or does not fit the model, raises ``DataError`` and is quarantined by who calls.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmtune.ground.records import MediaReference, NoMedia, Sample, Turn

if TYPE_CHECKING:
    from torch import Tensor

IS_MATCH = "is_match"
"""float[] of one sample: 1 where text and image belong together, else 0. Not an input of the model."""
ANSWER_SCORES = "answer_scores"
"""float[C] of one sample: how right each of a classifier's answers is. Not an input of the model."""


@dataclass(frozen=True)
class Encoded:
    """One item after reading and encoding, before collating.

    Attributes:
        sample_id: for messages.
        inputs: the model's tensors, and what is judged: ``labels``, ``is_match`` or ``answer_scores``.
        text_key: identity of the text that is shown, where texts are compared.
        image_keys: identities of all texts that are true of the image.
        is_long: the text was cut to the tower's limit (retrieval alone: elsewhere nothing is cut).
        shows: it has an image or a sound; a conversation may have none.
    """

    sample_id: str
    inputs: "dict[str, Tensor]"
    text_key: int = 0
    image_keys: tuple[int, ...] = ()
    is_long: bool = False
    shows: bool = True


@dataclass(frozen=True)
class Asking:
    """What a task asks of a backbone in this run.

    Attributes:
        task: the task's module.
        section: its recipe section.
        ability: which of its abilities is used; see ``mmtune.tasks.ability_for``.
        family: the backbone's family, its processor, and what it declares.
        processor: see there.
        traits: see there.
        answers: a classifier's answers.
        seed: the recipe's seed.
    """

    task: Any
    section: Any
    ability: str
    family: Any
    processor: Any
    traits: Any
    answers: tuple[str, ...] = ()
    seed: int = 0

    @property
    def prompt(self) -> str:
        """What asks for a caption where the recipe says nothing."""
        return str(self.traits.caption_prompt)

    def asked(self, sample: Sample) -> tuple[Turn, ...]:
        """The turns that an answer is wanted for."""
        turns: tuple[Turn, ...] = self.task.asked(self.section, sample, self.prompt)
        return turns


def make_asking(section: Any, backbone: Any, seed: int = 0) -> Asking:
    """What a recipe's task asks of a loaded backbone.

    Raises:
        RecipeError: the family cannot do the task.
    """
    from mmtune.ground.errors import RecipeError
    from mmtune.ground.kind_folder import kind
    from mmtune.tasks import ability_for

    task, traits = kind("tasks", section), backbone.traits
    ability = ability_for(task, traits)
    if ability is None:
        raise RecipeError(f"family {traits.name} cannot do {section.kind}")
    answers = tuple(backbone.family.answers_of(backbone.model.config)) if ability == "classify" else ()
    return Asking(task, section, ability, backbone.family, backbone.processor, traits, answers, seed)


@dataclass(frozen=True)
class ItemEncoder:
    """Encodes one item; ``show`` decodes (and changes at random) one image of it for a turn."""

    asking: Asking
    show: "Callable[[Sample, MediaReference, int | None, int], Any]" = field(repr=False)

    def __call__(self, sample: Sample, choice: int | None, turn: int) -> Encoded:
        """The item's tensors with what is judged.

        Raises:
            DataError: an image cannot be read, or the sample does not fit the model.
        """
        inputs = _ENCODE[self.asking.ability](self, sample, choice, turn)
        return Encoded(sample.id, inputs, shows=not isinstance(sample.media, NoMedia))

    def encode_turns(self, sample: Sample, choice: int | None, turn: int) -> "dict[str, Tensor]":
        """A conversation with its labels."""
        it = self.asking
        turns = it.task.spoken(it.section, sample, choice, prompt=it.prompt, seed=it.seed, epoch=turn)
        images = [self.show(sample, one, choice, turn) for each in turns for one in each.media]
        encoded: dict[str, Tensor] = it.family.encode_turns(it.processor, turns, images)
        return encoded

    def encode_match(self, sample: Sample, choice: int | None, turn: int) -> "dict[str, Tensor]":
        """Image and text, and whether they belong together."""
        import torch

        inputs = self._pair(sample, shown_text(self.asking, sample, turn), choice, turn)
        return {**inputs, IS_MATCH: torch.tensor(float(bool(sample.label)))}

    def encode_answers(self, sample: Sample, choice: int | None, turn: int) -> "dict[str, Tensor]":
        """Image and question, and how right each of the classifier's answers is."""
        import torch

        it = self.asking
        scores = it.task.soft_scores(sample, it.answers)
        return {**self._pair(sample, shown_text(it, sample, turn), choice, turn), ANSWER_SCORES: torch.tensor(scores)}

    def _pair(self, sample: Sample, text: str, choice: int | None, turn: int) -> "dict[str, Tensor]":
        return encode_pair(self.asking, self.show(sample, sample.media, choice, turn), text)


def shown_text(asking: Asking, sample: Sample, turn: int) -> str:
    """The text that goes with the image where none is generated: a question, or the caption drawn for the turn."""
    from mmtune.tasks._answering import drawn

    if asking.ability == "match":
        return drawn(sample.captions, "caption", sample, asking.seed, turn)
    return str(asking.task.statement(sample))


def encode_pair(asking: Asking, image: Any, text: str) -> "dict[str, Tensor]":
    """Tensors of one image and one text.

    Raises:
        DataError: the text is longer than the text tower's limit; nothing is cut.
    """
    from mmtune.ground.errors import DataError

    family, processor = asking.family, asking.processor
    encoded, limit = family.encode_text(processor, text), processor.tokenizer.model_max_length
    if len(encoded["input_ids"]) >= limit:  # it may have been cut, or padded, to the limit
        length = family.num_tokens(processor, text)
        if length > limit:
            raise DataError(f"the text has {length} tokens, more than the {limit} of the text tower: shorten it")
    return {**family.encode_media(processor, image), **encoded}


_ENCODE = {
    "generate": ItemEncoder.encode_turns,
    "match": ItemEncoder.encode_match,
    "classify": ItemEncoder.encode_answers,
}
