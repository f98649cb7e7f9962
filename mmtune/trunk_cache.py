"""Pay for the frozen part once: which parts of a run's model are fed kept states, where these are, what that saves.

The cut of each side follows from what is trained (``trunk_cuts``). Nothing is computed in advance: the first forward
pass that meets an image or a text runs the trunk on it and keeps the states, every later one, of this run or another
with the same trunk, is fed them (``trunk_feeding``). Where no state is kept, everything is as without a cache.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import DataError
from mmtune.ground.process_group import gather_objects, rank
from mmtune.ground.records import MEDIA_WORDS, NoMedia, Sample
from mmtune.ground.seeding import text_key
from mmtune.stored_states import narrowed
from mmtune.trunk_batches import Feed
from mmtune.trunk_cuts import MEDIA, PIXELS, TEXT, Cut, below, find_cuts
from mmtune.trunk_feeding import FedFamily

if TYPE_CHECKING:
    import torch

GB = 10**9

TRIED = 4
"""Items that the trunk is run on to forecast how much room the states of all will take."""


@dataclass
class TrunkCache:
    """The trunks that a run feeds from.

    Attributes:
        feeds: side -> what it is fed from.
        lines: what a log says about them at the start.
        before, after: side -> entries that were there when the run began, and when it ended.
        closing: lets go of what is open, and of what was kept in memory.
    """

    feeds: dict[str, Feed] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    closing: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Let go of files; states that were kept in memory are gone afterwards."""
        for side in self.before.keys() & self.feeds.keys() - self.after.keys():
            self.after[side] = self.feeds[side].store.num_entries
        self.closing.close()

    def drop(self, side: str, name: str, why: str) -> None:
        """Feed a side no more.

        Args:
            side: which.
            name: what its inputs are called.
            why: it is said.
        """
        kind = self.feeds.pop(side).cut.kind
        self.lines.append(f"trunk cache: off for {'prepared ' if kind == 'pixels' else ''}{name}: {why}")

    def drop_touched(self, adapted: Any) -> None:
        """Feed no side below whose cut an adapter has changed something: states are those of an untouched trunk."""
        touched = touched_by(adapted)
        for side in [side for side, feed in self.feeds.items() if below(feed.cut.roots, touched)]:
            self.drop(side, words_for(adapted.backbone, side), "the adapter changes what is below the noted cut")

    def record(self) -> dict[str, Any]:
        """What a manifest keeps: the cut of each side, which evaluation feeds the same way."""
        return {side: asdict(feed.cut) for side, feed in self.feeds.items()}

    def savings(self, num_shown: int) -> list[str]:
        """What a log says at the end, over all ranks: how often a trunk ran, and how often it did not have to.

        Args:
            num_shown: samples that were trained on; pixels are made by the loader's workers, and counted by it.
        """
        mine: dict[str, tuple[int, int, float]] = {}
        for side, feed in self.feeds.items():
            mine[side] = (feed.num_computed, feed.num_found, feed.seconds)
            if feed.cut.kind == "pixels" and rank() == 0:
                entries = self.after.get(side, feed.store.num_entries) - self.before[side]
                computed = min(num_shown, max(0, entries))
                mine[side] = (computed, num_shown - computed, 0.0)
        ranks = gather_objects([mine])  # once: where a disk filled up, ranks may feed different sides
        lines = []
        for side, feed in self.feeds.items():
            counts = zip(*(one[side] for one in ranks if side in one), strict=True)
            lines.append(describe_savings(feed.cut, *(sum(column) for column in counts)))
        return [line for line in lines if line]


def describe_savings(cut: Cut, computed: int, found: int, seconds: float) -> str:
    """A line about one side; "" where nothing went through it."""
    if not computed + found:
        return ""
    share = found / (computed + found)
    spared = f", about {seconds / computed * found:.0f} s" if computed and seconds / computed * found >= 1 else ""
    return f"trunk cache: {cut}: done {computed:,} times, spared {found:,} times ({share:.0%}{spared})"


@dataclass(frozen=True)
class Asked:
    """What a cache is made for.

    Attributes:
        section: ``train.trunk_cache``, as a section.
        ability: what the task uses.
        precision: ``no``, ``bf16`` or ``fp16``.
        device: where forward passes run.
        say: takes a line for the log.
    """

    section: Any
    ability: str
    precision: str
    device: "torch.device | str"
    say: Callable[[str], None]


def plan_training(adapted: Any, asked: Asked, changes: Iterable[Any]) -> TrunkCache:
    """Make an adapted backbone's family one that can be fed, where something can; ``open_stores`` says from where.

    Args:
        adapted: freshly adapted; the family of its backbone is stood in for.
        asked: see there.
        changes: the random changes of training images, of every source.
    """
    backbone = adapted.backbone
    if asked.section.mode == "off":
        return plan(backbone, asked.ability, {})
    found = find_cuts(backbone.model, backbone.traits, asked.ability, touched_by(adapted))
    why = why_random(backbone, changes)
    if why is not None:
        found[MEDIA] = why
    cuts = {side: cut for side, cut in found.items() if isinstance(cut, Cut)}
    if MEDIA not in cuts and why is None and keeps_pixels(backbone, asked.ability):
        cuts[MEDIA] = PIXELS
    cache = plan(backbone, asked.ability, cuts, asked.section.dtype)
    for side, reason in found.items():
        if isinstance(reason, str):
            cache.lines.append(f"trunk cache: off for {words_for(backbone, side)}: {reason}")
    return cache


def touched_by(adapted: Any) -> list[str]:
    """Names of what an adapter trains, and of the modules that it changes."""
    return [*adapted.part_of, *(name for names in adapted.modules.values() for name in names)]


def keeps_pixels(backbone: Any, ability: str) -> bool:
    """Whether images can be kept as the bytes that the model's pixels are made of."""
    from mmtune.backbones._dual_encoder import encode_media
    from mmtune.backbones._pixel_tables import pixel_table

    plain = ability != "generate" and getattr(backbone.family, "encode_media", None) is encode_media
    return plain and pixel_table(backbone.processor.image_processor) is not None


def why_random(backbone: Any, changes: Iterable[Any]) -> str | None:
    """Why what is shown is never the same twice, None where it may be."""
    if hasattr(backbone.family, "encode_drawn"):
        return "a training sound is cut at random every time"
    changes = list(changes)
    if changes and all(not one.is_idle and one.views is None for one in changes):
        return "training images are changed at random every time (data.augment); augment: {views: 4} keeps 4 of each"
    return None


def words_for(backbone: Any, side: str) -> str:
    """What the inputs of a side are called: ``images``, ``sounds``, ``texts``."""
    return "texts" if side == TEXT else MEDIA_WORDS[backbone.traits.modality]


def plan(backbone: Any, ability: str, cuts: Mapping[str, Cut], dtype: str = "float32") -> TrunkCache:
    """Put the stand-in for the family in place; until ``open_stores`` it keeps nothing and weighs what it would.

    Args:
        backbone: whose family is stood in for.
        ability: what the task uses.
        cuts: side -> where its trunk ends.
        dtype: the widest that states are kept in.
    """
    pixels, model_type = main_input(backbone), str(backbone.model.config.model_type)
    feeds = {side: Feed(cut, Scales(dtype), _NoMemory(), pixels, model_type, dtype) for side, cut in cuts.items()}
    cache = TrunkCache(feeds=feeds)
    if hasattr(backbone.family, "encode_media") or feeds:
        backbone.family = FedFamily(backbone, ability, feeds)  # they share `feeds`
    return cache


def main_input(backbone: Any) -> str:
    """Name of the input that an image or a sound becomes."""
    return "input_features" if backbone.traits.modality == "audio" else "pixel_values"


# --- how much it will be


class Scales:
    """In the place of a store: finds nothing, keeps nothing, and weighs what it is given.

    Attributes:
        number: inputs whose states were weighed.
        num_bytes: of their states, as they would be stored.
        num_places: patches or tokens that these have, 1 each where a state is a single vector.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.number = self.num_bytes = self.num_places = 0

    @property
    def mean(self) -> float:
        """Bytes of one input's states; 0 where none was seen."""
        return self.num_bytes / max(1, self.number)

    def find(self, key: bytes) -> None:
        """Nothing is there."""

    def add(self, entries: Sequence[tuple[bytes, Any]]) -> int:
        """Weigh them."""
        for _, stored in entries:
            states = narrowed(stored.states, self.dtype)
            self.number += 1
            self.num_bytes += states.nbytes
            self.num_places += len(states) if states.dim() > 1 else 1
        return 0


class _NoMemory:
    """In the place of a memory of contents: every image is read."""

    def recall(self, stamp: Any) -> None:
        """Nothing is known."""

    def remember(self, stamp: Any, content: bytes) -> None:
        """Nothing is kept."""


def try_items(items: Any, context: Any) -> None:
    """Run the trunks on a few items, to see how much room their states take."""
    batch = few_items(items)
    if batch is not None:
        run_trunks(context, batch)


def few_items(items: Any) -> Any:
    """A few items from all over an epoch as a batch; None where none of them can be read."""
    from mmtune.batch_building import Collate

    encoded = []
    for place in sorted({place * len(items) // TRIED for place in range(TRIED)}) if len(items) else ():
        shown = items.items.at(0, place)
        try:
            encoded.append(items.encode(items.samples[shown.sample], shown.caption, shown.turn))
        except DataError:  # is quarantined when its turn comes
            continue
    return Collate(items.family, items.processor)(encoded) if encoded else None


def run_trunks(context: Any, batch: Any) -> None:
    """A forward pass without a gradient, for what the feeds see of it."""
    import torch

    from mmtune.scoring_loop import scoring_mode

    backbone = context.backbone
    inputs = {name: value.to(context.device) for name, value in batch.inputs.items()}
    with scoring_mode(backbone.model), context.autocast(), torch.no_grad():
        backbone.family.run_trunks(backbone.model, inputs)


def count_inputs(samples: Sequence[Sample], changes: Mapping[str, Any]) -> dict[str, int]:
    """Side -> how many different images (each with its views) and texts the samples have.

    The images of a conversation count as one: their states are one entry.
    """
    views = {
        (shown, view)
        for sample in samples
        if (shown := _shown(sample))
        for view in range(changes[sample.source].views or 1)
    }
    texts = {text_key(text) for sample in samples for text in sample.captions}
    return {MEDIA: len(views), TEXT: len(texts)}


def _shown(sample: Sample) -> tuple[str, ...]:
    """Which images a sample shows together."""
    if sample.turns:
        return tuple(one.key for turn in sample.turns for one in turn.media)
    return () if isinstance(sample.media, NoMedia) else (sample.media.key,)
