"""Choose an image's class with a two-tower backbone: the class whose prompts lie nearest, without or with training.

The name of an image's class is its caption (``data.caption: category``; in a folder of class folders, the folder).
Every class is put into one or more templates; the normalised embeddings of its prompts are averaged and normalised
again. The logits are the cosines of an image with all classes, times the backbone's temperature; training minimises
their cross-entropy, so prompts are what a head would be, and what is learned still reads text.

Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1 (prompts and their ensembles); Zanella and
Ben Ayed 2024, https://arxiv.org/abs/2405.18541 (few-shot training of both towers by this loss).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from mmtune.ground.errors import DataError
from mmtune.ground.records import Sample
from mmtune.ground.sections import StrictSection
from mmtune.ground.seeding import seed_for
from mmtune.losses.infonce import MAX_LOG_SCALE
from mmtune.tasks._answering import Score, one_each, prepare, score_names
from mmtune.tasks.retrieval import Pair

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["items", "prepare", "references", "score_names"]

ABILITIES = ("embed",)
FIELDS = frozenset({"captions"})
PLACE = "{}"

ENSEMBLES = {
    "single": ("a photo of a {}.",),
    "clip7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}
"""Published templates. Source: Radford et al. 2021, section 3.1.4, and the seven that the prompt notebook of CLIP's
repository found to be enough for ImageNet."""

items = one_each


def _told_apart(classes: list[str]) -> list[str]:
    """Classes that are not empty and not twice there, also not in other case or spacing."""
    if empty := [number for number, name in enumerate(classes, start=1) if not name.strip()]:
        raise ValueError(f"class {empty[0]} has no name: an image cannot be compared with nothing")
    first: dict[str, str] = {}
    for name in classes:
        plain = " ".join(name.lower().replace("_", " ").split())
        if plain in first:
            raise ValueError(f"{name!r} is there twice (first as {first[plain]!r}): write every class once")
        first[plain] = name
    return classes


def _with_place(templates: "list[str] | str") -> "list[str] | str":
    """Templates that say where the class goes."""
    lacking = [text for text in templates if PLACE not in text] if isinstance(templates, list) else []
    if lacking:
        raise ValueError(f"{lacking[0]!r} does not say where the class goes: write {PLACE} in it, such as 'a {{}}.'")
    return templates


class Section(StrictSection):
    """Classification of images (or sounds) by the names of the classes."""

    kind: Literal["classification"] = Field(description="choose the class of an image by the classes' names")
    classes: Annotated[list[str], AfterValidator(_told_apart)] = Field(
        min_length=2,
        description="the names of the classes, as the captions have them; a prompt shows _ as a space",
    )
    templates: Annotated[
        Annotated[list[str], Field(min_length=1)] | Literal["single", "clip7"], AfterValidator(_with_place)
    ] = Field(
        "single",
        description="what a class is put into, with {} where its name goes: a list of templates, whose embeddings are "
        "averaged; single: 'a photo of a {}.'; clip7: seven templates that were published with CLIP",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that is spread over all classes")
    shots: int | None = Field(
        None,
        ge=1,
        description="train on so many samples of each class, drawn by the recipe's seed (fewer shots are a part of "
        "more); null: on all",
    )
    scores: list[Score] = Field(
        ["accuracy", "mean_class_recall", "macro_f1"],
        min_length=1,
        description="what is judged; the first chooses the best checkpoint",
    )


def prompts(section: Section, name: str) -> list[str]:
    """What the text tower reads of a class, a text per template."""
    templates = section.templates if isinstance(section.templates, list) else ENSEMBLES[section.templates]
    return [template.replace(PLACE, name.replace("_", " ")) for template in templates]


def class_of(section: Section, sample: Sample) -> int:
    """The number of a sample's class.

    Raises:
        DataError: none of its captions is the name of a class, or several are.
    """
    named = [name for name in section.classes if name in sample.captions]
    if len(named) > 1:
        raise DataError(f"an image is of one class, and this one is {' and '.join(map(repr, named[:5]))}")
    if not named:
        known = ", ".join(map(repr, section.classes[:5])) + (", ..." if len(section.classes) > 5 else "")
        name = sample.captions[0][:80]
        raise DataError(f"class {name!r} is not among task.classes ({known}): add it, or leave the image out")
    return section.classes.index(named[0])


def references(section: Section, sample: Sample) -> list[str]:
    """Its class."""
    return [section.classes[class_of(section, sample)]]


def candidates(section: Section) -> list[str]:
    """The classes."""
    return list(section.classes)


def statement(sample: Sample) -> str:
    """Nothing is asked about an image: all classes are compared with it."""
    return ""


def trained_on(section: Section, samples: Sequence[Sample], seed: int) -> Sequence[Sample]:
    """The samples that training sees: all, or ``shots`` of each class, a function of (seed, sample id), in their order.

    Raises:
        DataError: a class has no sample.
    """
    if section.shots is None:
        return samples
    of_class: dict[str, list[Sample]] = {name: [] for name in section.classes}
    for sample in samples:
        named = [name for name in of_class if name in sample.captions]
        if len(named) == 1:  # what has no class of these is passed over here: base to novel leaves classes out
            of_class[named[0]].append(sample)
    if lacking := [name for name, found in of_class.items() if not found]:
        raise DataError(f"task.shots: there is no training sample of {', '.join(map(repr, lacking[:10]))}")
    chosen = {
        sample.id
        for found in of_class.values()
        for sample in sorted(found, key=lambda one: seed_for(seed, "shot", one.id))[: section.shots]
    }
    return [sample for sample in samples if sample.id in chosen]


@dataclass(frozen=True)
class Rendering:
    """What an epoch of a recipe's samples shows; stands where a task does for ``EncodedPairs``."""

    section: Section

    def items(self, samples: Sequence[Sample], captions: str) -> list[tuple[int, int | None]]:
        """Every sample once."""
        return one_each(samples, captions)

    def render(self, sample: Sample, caption: int | None, *, seed: int, epoch: int) -> Pair:
        """The first prompt of the sample's class; ``text_key`` is the class's number.

        Raises:
            DataError: it has no class of the recipe's.
        """
        number = class_of(self.section, sample)
        return Pair(prompts(self.section, self.section.classes[number])[0], number, (number,))


def loss_total(section: Section, logits: "Tensor", classes: "Tensor") -> "Tensor":
    """Sum of the cross-entropies of logits float[B, C] with class numbers int64[B]: ``float[]``."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, classes, label_smoothing=section.label_smoothing, reduction="sum")


def max_log_scale(section: Section) -> float | None:
    """The largest log scale, as for the contrastive loss that two towers come from."""
    return MAX_LOG_SCALE
