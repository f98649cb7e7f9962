"""Samples of a split the way training encodes them, as something to look at: pictures, tokens, what must be said."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmtune.batch_building import EncodedAnswers, EncodedItems, EncodedPairs, bad_item
from mmtune.epoch_items import Shown
from mmtune.ground.errors import DataError
from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.records import BadItem, Sample
from mmtune.ground.seeding import generator_for
from mmtune.item_encoding import ANSWER_SCORES, IS_MATCH, Asking, Encoded, make_asking
from mmtune.pixel_pictures import pictures_of
from mmtune.sources import OpenedSplit
from mmtune.tasks import rendering
from mmtune.token_spans import WORDS, Kind, Stream, question_stream, streams_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtune.backbones import Backbone
    from mmtune.recipe_schema import Recipe

MOST_TRIED = 10
"""So many samples are tried for each that is wanted, where most of them cannot be encoded."""


@dataclass(frozen=True)
class SampleView:
    """One sample as the model meets it.

    Attributes:
        id: of the sample.
        where: its image, or its file and line.
        pictures: the processed images, one per image or tile.
        streams: the texts that the model reads or says.
        judged: what must come out where nothing is said: whether image and text belong together, or answers.
        num_images: how many images the sample has.
        cut: its text was longer than the text tower's limit, and was cut there (retrieval alone).
    """

    id: str
    where: str
    pictures: "tuple[Image, ...]"
    streams: tuple[Stream, ...]
    judged: tuple[str, ...]
    num_images: int
    cut: bool

    @property
    def length(self) -> int:
        """Tokens of all its texts, without padding."""
        return sum(stream.count() for stream in self.streams)

    @property
    def num_trained(self) -> int:
        """Tokens that the loss is taken of."""
        return sum(stream.count("trained") for stream in self.streams)

    @property
    def num_image_tokens(self) -> int:
        """Tokens that stand for its images among the words."""
        return sum(stream.count("image") for stream in self.streams)

    @property
    def facts(self) -> str:
        """Its numbers: ``length 87 tokens, 6 of them trained on, 64 for 1 image, 224 x 224 pixels``."""
        facts = [f"length {self.length:,} tokens"]
        if self.num_trained or any(stream.count("masked") for stream in self.streams):
            facts.append(f"{self.num_trained:,} of them trained on")
        if self.num_image_tokens:
            facts.append(f"{self.num_image_tokens:,} for {self.num_images} image{'s' if self.num_images != 1 else ''}")
        if self.pictures:
            sizes = dict.fromkeys(f"{picture.width} x {picture.height}" for picture in self.pictures)
            tiles = f"{len(self.pictures)} tiles of " if len(self.pictures) > self.num_images else ""
            facts.append(f"{tiles}{', '.join(sizes)} pixels")
        return ", ".join([*facts, *(["cut at the text tower's limit"] if self.cut else [])])


@dataclass
class Viewing:
    """What was looked at.

    Attributes:
        samples: the good ones.
        bad: what was found bad on opening, then what could not be encoded.
        num_items: items in an epoch of the split.
    """

    samples: list[SampleView] = field(default_factory=list)
    bad: list[BadItem] = field(default_factory=list)
    num_items: int = 0

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of the tokens that are there, in the order in which they are explained."""
        there = {token.kind for view in self.samples for stream in view.streams for token in stream.tokens}
        return [kind for kind in WORDS if kind in there]

    def summary(self) -> Iterator[str]:
        """Lines about all the samples together."""
        if not self.samples:
            return
        lengths = [view.length for view in self.samples]
        yield f"length {min(lengths):,} to {max(lengths):,} tokens, {sum(lengths) / len(lengths):,.1f} on average"
        trained = sum(view.num_trained for view in self.samples)
        if trained:
            yield f"{trained / len(lengths):,.1f} tokens per sample are trained on, {trained / sum(lengths):.1%} of all"
        images = sum(view.num_images for view in self.samples)
        tokens = sum(view.num_image_tokens for view in self.samples)
        if images and tokens:
            yield f"{tokens / images:,.1f} tokens per image, {tokens / sum(lengths):.1%} of all"
        elif images and trained:
            yield "images take no tokens of the text: the model reads them beside it"


def view_samples(recipe: "Recipe", backbone: "Backbone", opened: OpenedSplit, split: str, number: int) -> Viewing:
    """Encode ``number`` samples of a split, drawn by the recipe's seed; of the training split as its first epoch would.

    Args:
        recipe: its task says what is shown and what must be said.
        backbone: its processor; weights are not needed.
        opened: the split.
        split: its name.
        number: how many good samples are wanted; those that are bad are listed beside them.
    """
    asking = make_asking(recipe.task, backbone, recipe.seed)
    items = _make_items(recipe, asking, opened, split)
    viewing = Viewing(bad=list(opened.bad), num_items=len(items))
    order = generator_for(recipe.seed, "show", split).permutation(len(items))
    for place in map(int, order[: max(100, MOST_TRIED * number)]):
        if len(viewing.samples) == number:
            break
        shown = items.items.at(0, place)
        sample = items.samples[shown.sample]
        try:
            encoded = items.encode(sample, shown.caption, shown.turn)
        except DataError as error:
            viewing.bad.append(bad_item(sample, error, split))
        else:
            viewing.samples.append(_view(sample, encoded, asking, _num_images(recipe, asking, sample, shown)))
    return viewing


def _make_items(recipe: "Recipe", asking: Asking, opened: OpenedSplit, split: str) -> EncodedItems:
    """What turns a split's samples into tensors; only training images are changed at random."""
    items: EncodedItems
    if asking.ability == "embed":
        limit = asking.processor.tokenizer.model_max_length
        items = EncodedPairs(
            opened.samples,
            rendering(asking.task, recipe.task),
            asking.family,
            asking.processor,
            recipe.data,
            recipe.seed,
            limit,
        )
    else:
        items = EncodedAnswers(asking.task.prepare(opened.samples, recipe.seed), asking, recipe.data)
    if split != "train":
        items.augmentations = dict.fromkeys(items.augmentations, AugmentSection())
    return items


def _view(sample: Sample, encoded: Encoded, asking: Asking, num_images: int) -> SampleView:
    inputs, processor = encoded.inputs, asking.processor
    streams = streams_of(inputs, family=asking.family, traits=asking.traits, processor=processor)
    return SampleView(
        id=sample.id,
        where=sample.media.where,
        pictures=tuple(pictures_of(inputs, processor)),
        streams=(*streams, *question_stream(inputs, processor)),
        judged=tuple(_judged(inputs, asking.answers)),
        num_images=num_images,
        cut=encoded.is_long,
    )


def _judged(inputs: Any, answers: tuple[str, ...]) -> Iterator[str]:
    """What the outcome should be, in words."""
    if IS_MATCH in inputs:
        yield "image and text belong together" if inputs[IS_MATCH] else "image and text do not belong together"
    if ANSWER_SCORES in inputs:
        scores = zip(inputs[ANSWER_SCORES].tolist(), answers, strict=True)
        right = sorted(((score, answer) for score, answer in scores if score > 0), key=lambda pair: -pair[0])
        yield from (f"{answer} ({score:.2g})" for score, answer in right)
        if not right:
            yield f"none of the classifier's {len(answers):,} answers"


def _num_images(recipe: "Recipe", asking: Asking, sample: Sample, shown: Shown) -> int:
    """Images that the sample shows to the model."""
    if asking.ability != "generate":
        return 1
    turns = asking.task.spoken(
        recipe.task, sample, shown.caption, prompt=asking.prompt, seed=recipe.seed, epoch=shown.turn
    )
    return sum(len(turn.media) for turn in turns)
