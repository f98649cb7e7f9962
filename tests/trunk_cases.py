"""One step of training with and without the trunk cache: what the tests of cuts, of feeding and of runs share."""

import copy
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapter_examples import SECTIONS
from chat_examples import EXCHANGES, ONE_EXCHANGE, SEVERAL, WITHOUT_IMAGE

from mmtune.adapters import attach, set_modes
from mmtune.additive_step import additive_step
from mmtune.backbones import Section, load, tiny_folder
from mmtune.backbones._tiny_encoders import tiny_pair
from mmtune.batch_building import Batch, Collate
from mmtune.contrastive_step import contrastive_step
from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.records import Turn
from mmtune.item_encoding import ANSWER_SCORES, IS_MATCH, Encoded
from mmtune.losses.infonce import Section as InfoNCE
from mmtune.recipe_schema import TrunkCacheSection
from mmtune.shown_media import ShownMedia, opened
from mmtune.step_context import StepContext
from mmtune.tasks import retrieval
from mmtune.trunk_cache import Asked, TrunkCache, plan_training
from mmtune.trunk_opening import open_stores

sys.path.append(str(Path(__file__).resolve().parents[1]))

from scripts.method_subjects import subject  # noqa: E402

TOLERANCE = 1e-6
"""Of the largest gradient entry, and of the loss: the same sums in float32 over batches that were cut otherwise."""

STEEP = 1e-4
"""The same for towers that pass a difference in the last bit on many times over: those of many convolutions, which are
summed in another order for another number of images, and CLAP's, to which random sounds are nearly one."""

BF16 = 0.02
"""The same under autocast to bfloat16: a few of its steps of 2^-8."""

INT8 = 0.02
"""The same where a backbone is held in 8 bit: which columns of a batch LLM.int8 leaves in full depends on all of it."""

PLAN = ((0, 1, 2), (3, 4, 5))
"""Two micro-batches, so that a contrastive step embeds twice."""

WORDS = ("red line", "the other one", "circle", "a long thin letter", "nothing at all", "theme")


class Drawn:
    """A picture of random colours, or a second of noise, made when it is read; counts how often."""

    def __init__(self, number: int, modality: str = "image", width: int = 48, height: int = 40) -> None:
        self.key = self.where = f"drawn {number}"
        self.number, self.modality, self.size, self.num_read = number, modality, (height, width, 3), 0

    def content_stamp(self) -> tuple[str, int, int, int]:
        return self.key, 1, 1, 1

    def read(self) -> Any:
        self.num_read += 1
        generator = np.random.default_rng(self.number)
        if self.modality == "audio":
            from mmtune.ground.sound_reading import Sound

            return Sound(generator.normal(0, 0.1, 8000).astype(np.float32), 8000)
        from PIL import Image

        return Image.fromarray(generator.integers(0, 256, self.size, dtype=np.uint8))


@dataclass
class World:
    """An adapted twin with something to train on.

    Attributes:
        adapted: freshly adapted, moved a little, in the modes of training.
        ability: what is trained.
        samples: what is shown: (images or sound, words) each, as ``encode`` takes them.
        plain: the family's module, which nothing stands in for.
        changes: sample -> how its images are changed at random every time.
        autocast: of forward passes.
        precision: what the cache is told of it.
    """

    adapted: Any
    ability: str
    samples: list[Any]
    plain: Any = field(init=False)
    changes: dict[int, AugmentSection] = field(default_factory=dict)
    autocast: Any = nullcontext
    precision: str = "no"

    def __post_init__(self) -> None:
        self.plain = self.adapted.backbone.family

    @property
    def backbone(self) -> Any:
        """The twin."""
        return self.adapted.backbone

    def fed(self, folder: Path, **settings: Any) -> TrunkCache:
        """Feed it from a folder, where it can be."""
        section = TrunkCacheSection(mode="disk", folder=str(folder), **settings)
        asked = Asked(section, self.ability, self.precision, "cpu", lambda line: None)
        self.backbone.family = self.plain
        cache = plan_training(self.adapted, asked, [AugmentSection()])
        open_stores(cache, self.backbone, asked, {})
        return cache

    def encode(self, number: int) -> Encoded:
        """One sample, as the loader's workers encode it."""
        family, processor = self.backbone.family, self.backbone.processor
        media, words = self.samples[number]
        images = [opened(family, ShownMedia(one, self.changes.get(number), (0, "augment"))) for one in media]
        if self.ability == "generate":
            return Encoded(str(number), family.encode_turns(processor, words, images))
        inputs = {**family.encode_media(processor, images[0]), **family.encode_text(processor, words)}
        if self.ability == "match":
            inputs[IS_MATCH] = torch.tensor(float(number % 2))
        if self.ability == "classify":
            answers = len(family.answers_of(self.backbone.model.config))
            inputs[ANSWER_SCORES] = torch.eye(answers)[number % answers]
        return Encoded(str(number), inputs, number, (number,))

    def batches(self, micro_batches: Sequence[Sequence[int]]) -> list[Batch]:
        """Micro-batches of these samples, as the loader makes them."""
        collate = Collate(self.backbone.family, self.backbone.processor)
        return [collate([self.encode(number) for number in numbers]) for numbers in micro_batches]

    def step(self, micro_batches: Sequence[Sequence[int]]) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss and gradients of one step over these micro-batches."""
        return self.run(self.batches(micro_batches))

    def run(self, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss and gradients of one step."""
        context = self.context()
        for parameter in context.trainable.values():
            parameter.grad = None
        step = contrastive_step if self.ability == "embed" else additive_step
        loss = float(step(context, batches, step=0))
        return loss, {name: p.grad.clone() for name, p in context.trainable.items() if p.grad is not None}

    def context(self) -> StepContext:
        """What steps are given."""
        section = retrieval.Section(kind="retrieval", loss=InfoNCE(kind="infonce"))
        cpu, trainable = torch.device("cpu"), self.adapted.trainable()
        return StepContext(self.backbone, retrieval, section, trainable, cpu, self.autocast, 5, self.ability)

    @property
    def plan(self) -> list[list[int]]:
        """``PLAN`` without the numbers that there are no samples for."""
        return [kept for part in PLAN if (kept := [number for number in part if number < len(self.samples)])]

    @property
    def num_read(self) -> int:
        """How often an image or a sound was read."""
        return sum(one.num_read for media, _ in self.samples for one in media)


def make_world(backbone: Any, section: Any, ability: str = "") -> World:
    """Adapt a loaded twin, which is changed; move what is trained a little, as training would."""
    adapted = attach(backbone, section)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in adapted.trainable().values():
            value.add_(0.02 * torch.randn(value.shape, generator=generator))
    set_modes(adapted)
    ability = ability or "embed"
    return World(adapted, ability, spoken(backbone) if ability == "generate" else pairs(backbone.traits.modality))


def pairs(modality: str) -> list[Any]:
    """Images or sounds with texts of several lengths."""
    return [([Drawn(number, modality)], f"{words} {number}") for number, words in enumerate(WORDS)]


def spoken(backbone: Any) -> list[Any]:
    """Conversations; where the model takes any, without an image, and with two, among them."""
    if backbone.traits.name == "chat":
        single = backbone.model.config.model_type in ONE_EXCHANGE
        examples = [EXCHANGES[0], *(() if single else (WITHOUT_IMAGE, SEVERAL)), EXCHANGES[1]]
        turns = [tuple(Turn(turn.role, tuple(map(_drawn, turn.content))) for turn in each) for each in examples]
    else:
        turns = []
        for number, words in enumerate(WORDS[:4]):
            asked = Turn("user", (Drawn(number), backbone.traits.caption_prompt or "what is it"))
            turns.append((asked, Turn("assistant", (words,))))
    return [([media for turn in each for media in turn.media], each) for each in turns]


def _drawn(content: Any) -> Any:
    return content if isinstance(content, str) else Drawn(content.number, "image", *content.size)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any gradient entry, relative to the largest entry of the model."""
    assert one.keys() == other.keys() and one, one.keys() ^ other.keys()
    largest = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


def same_bits(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> bool:
    """Whether loss and every gradient are equal to the last bit."""
    return one[0] == other[0] and distance(one[1], other[1]) == 0


def gap(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> float:
    """The larger of the losses' and the gradients' relative differences."""
    return max(abs(one[0] - other[0]) / abs(one[0]), distance(one[1], other[1]))


def computed(cache: TrunkCache) -> dict[str, int]:
    """Side -> inputs that its trunk was run on."""
    return {side: feed.num_computed for side, feed in cache.feeds.items()}


def cuts_of(cache: TrunkCache) -> dict[str, str]:
    """Side -> where its trunk ends, in words."""
    return {side: str(feed.cut) for side, feed in cache.feeds.items()}


# --- twins


class Twins:
    """Tiny twins below a folder, each written and loaded once; ``copy`` gives one that may be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[tuple[str, str | None, str], Any] = {}

    def copy(self, name: str, quantize: str | None = None, dtype: str = "float32") -> Any:
        """A loaded backbone: a name of ``method_subjects``, ``siglip2``, or two encoders ``vit + bert``."""
        which = name, quantize, dtype
        if which not in self.loaded:
            place = self.folder / name.replace(" ", "_").replace("+", "-")
            files = self._write(name, place) if not place.exists() else self.files(name, place)
            section = Section(**files, quantize=quantize, dtype=dtype)
            self.loaded[which] = load(section, ability=self.ability(name))
        loaded = self.loaded[which]
        return replace(loaded, model=copy.deepcopy(loaded.model))

    @staticmethod
    def ability(name: str) -> str:
        """What is trained of it; "" to embed."""
        return subject(name).ability

    def files(self, name: str, place: Path) -> dict[str, str]:
        """Where it lies, as a recipe says it."""
        if "+" not in name or "(" in name:
            return {"id": str(place)}
        return {part: str(place / part) for part in ("vision", "text")}

    def _write(self, name: str, place: Path) -> dict[str, str]:
        if name == "siglip2":
            return {"id": str(tiny_folder("siglip", place, model_type="siglip2"))}
        if "+" in name:
            vision, text = name.split(" + ")
            made: dict[str, str] = tiny_pair(vision, text, place)
            return made
        return {"id": str(subject(name).write(place))}


def lora(**values: Any) -> Any:
    """A LoRA section, with dropout: random numbers must be drawn as without a cache."""
    section = {"kind": "lora", "targets": ["attention", "mlp"], "rank": 2, "dropout": 0.1, **values}
    return SECTIONS.validate_python(section)
