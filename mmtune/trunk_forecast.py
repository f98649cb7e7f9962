"""What the kept states of frozen trunks will take and spare, said before a run.

The model goes through a few items as in the run, but its linear layers multiply nothing: they give zeros, and count.
So shapes, and with them bytes, are the run's own, and even a large model takes about a second.

The gain goes by these counts. One unit is a layer's weights times the places that go through it. A forward pass is one;
the backward pass is one more for every layer above the lowest trained one, for the gradient goes through it, and
another one for a layer whose own weights are trained. Below the lowest trained layer there is no backward pass.
Where the batch is cut into micro-batches and the task embeds, there are two forward passes. From the second epoch on
the trunk's forward passes fall away. Products of attention scores are not counted, nor is reading images: both make
the gain larger, and what is not counted at all (norms, the optimizer, waiting) makes it smaller.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmtune.additive_step import OBJECTIVES
from mmtune.ground.records import MEDIA_WORDS
from mmtune.ground.seeding import text_key
from mmtune.part_sizes import in_words
from mmtune.scoring_loop import autocast_for, scoring_mode
from mmtune.trunk_cache import Asked, TrunkCache, count_inputs, few_items, run_trunks
from mmtune.trunk_cuts import TEXT, Cut, below, find_cuts, standing_in
from mmtune.trunk_keys import tokens_key
from mmtune.trunk_opening import GB, open_stores
from mmtune.trunk_setup import plan_trunk

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_TEXTS = 2000
"""Texts whose tokens are counted; of more, so many evenly spread ones stand for all."""

OFF = "trunk cache: off for "


@dataclass(frozen=True)
class SideForecast:
    """What one side will take.

    Attributes:
        cut: where its trunk ends.
        name: what goes in: images, sounds or texts.
        num_layers: of the tower that is cut; 0 where all of it is the trunk.
        number: different inputs of the training split.
        mean: bytes of one input's states, on average.
        num_kept: entries that are there already.
        folder: where they are.
    """

    cut: Cut
    name: str
    num_layers: int
    number: int
    mean: float
    num_kept: int
    folder: str

    @property
    def num_bytes(self) -> int:
        """Of all."""
        return round(self.mean * self.number)


@dataclass
class Forecast:
    """What a run's cache will be.

    Attributes:
        sides: side -> what is kept of it.
        off: why nothing is kept of the others, a line each.
        gain: how many times as fast a step is when all states are kept; None where nothing is left to compute.
    """

    sides: dict[str, SideForecast] = field(default_factory=dict)
    off: list[str] = field(default_factory=list)
    gain: float | None = 1.0


@dataclass(frozen=True)
class _Trial:
    """What ``run_trunks`` needs of a step's context."""

    backbone: Any
    device: Any
    precision: str

    def autocast(self) -> Any:
        return autocast_for(self.device, self.precision)


def forecast(adapted: Any, asked: Asked, recipe: Any, make_items: "Callable[[], Any]", num_shown: int = 0) -> Forecast:
    """Forecast the cache of a run; nothing is written. The backbone's family stays as it was.

    Args:
        adapted: as the run will train it.
        asked: what the run would plan its cache with.
        recipe: of the run.
        make_items: encodes training items for the family that the backbone has at that moment.
        num_shown: items that the run goes through; 0: not known.
    """
    backbone, family = adapted.backbone, adapted.backbone.family
    trunk = plan_trunk(adapted, asked, recipe.data)
    try:
        if not trunk.feeds:
            return Forecast(off=_off(trunk))
        items = make_items()
        trial = _Trial(backbone, next(backbone.model.parameters()).device, asked.precision)
        operations = _try(trial, asked.ability, items, trunk)
        numbers = count_inputs(items.samples, items.augmentations)
        numbers |= _weigh_texts(trunk, items)
        means = {side: feed.store.mean for side, feed in trunk.feeds.items()}
        open_stores(trunk, backbone, asked, numbers, num_shown)
        sides = {side: _side(backbone, feed, numbers[side], means[side]) for side, feed in trunk.feeds.items()}
        passes = 1 if asked.ability != "embed" or recipe.train.micro_batch in (None, recipe.train.batch) else 2
        return Forecast(sides, _off(trunk), _gain(adapted, asked.ability, operations, trunk, passes))
    finally:
        backbone.family = family
        trunk.close()


def describe_forecast(made: Forecast, section: Any) -> Iterator[str]:
    """Lines for whoever checks a recipe; ``section`` is its ``train.trunk_cache``."""
    limit = in_words(section.limit_gb * GB)
    for it in made.sides.values():
        what = f"{it.cut} of {it.num_layers}" if it.num_layers else str(it.cut)
        dtype = "uint8" if it.cut.kind == "pixels" else section.dtype
        size = f"{it.number:,} {it.name}, {in_words(it.mean)} each in {dtype}, {in_words(it.num_bytes)} in all"
        place = "in memory" if section.mode == "memory" else f"{it.num_kept:,} are there already, in {it.folder}"
        yield f"{what}: {size}, which fits (limit {limit}); {place}"
    yield from made.off
    if made.sides and made.gain is None:
        yield "after the first epoch nothing but heads is computed"
    elif any(it.cut.kind != "pixels" for it in made.sides.values()):
        yield f"about {made.gain:.1f} times as fast after the first epoch (by matrix products; reading is not counted)"


def _off(trunk: TrunkCache) -> list[str]:
    return [line.removeprefix("trunk cache: ") for line in trunk.lines if line.startswith(OFF)]


def _side(backbone: Any, feed: Any, number: int, mean: float) -> SideForecast:
    layers = backbone.traits.layers.get(feed.cut.part) if feed.cut.kind == "layers" else None
    num_layers = len(backbone.model.get_submodule(layers)) if layers else 0
    name = "texts" if feed.side == TEXT else MEDIA_WORDS[backbone.traits.modality]
    return SideForecast(feed.cut, name, num_layers, number, mean, feed.store.num_entries, str(feed.store.folder))


# --- bytes


def _try(trial: _Trial, ability: str, items: Any, trunk: TrunkCache) -> "Counter[str]":
    """Operations of a few items' whole forward pass by path of module; then their trunks alone, which are weighed."""
    import torch

    backbone, feeds = trial.backbone, dict(trunk.feeds)
    trunk.feeds.clear()  # the family shares them: without any it is as if it were not stood in for
    whole = few_items(items)
    trunk.feeds.update(feeds)
    cold = few_items(items)
    if whole is None or cold is None:
        return Counter()
    inputs = {name: value.to(trial.device) for name, value in whole.inputs.items()}
    with scoring_mode(backbone.model), trial.autocast(), torch.no_grad(), counting(backbone.model) as counted:
        trunk.feeds.clear()
        try:
            _forward(backbone, ability, inputs)
        finally:
            trunk.feeds.update(feeds)
        operations = Counter(counted)
        run_trunks(trial, cold)
    return operations


def _forward(backbone: Any, ability: str, inputs: "Mapping[str, Tensor]") -> None:
    if ability == "embed":
        backbone.family.embed_media(backbone.model, inputs)
        backbone.family.embed_text(backbone.model, inputs)
    else:
        OBJECTIVES[ability].total(backbone, inputs)


def _weigh_texts(trunk: TrunkCache, items: Any) -> dict[str, int]:
    """Put the mean of all texts in the place of the few that were tried, since a text has as many states as tokens.

    Returns:
        how many different texts there are as the model reads them, where all are counted.
    """
    feed = trunk.feeds.get(TEXT)
    if feed is None or not feed.store.num_places:
        return {}
    texts = {text_key(text): text for sample in items.samples for text in sample.captions}
    encoded = [items.family.family.encode_text(items.processor, text) for text in spread([*texts.values()], MOST_TEXTS)]
    different = {tokens_key(one): _num_tokens(one) for one in encoded}
    if feed.cut.kind == "layers":
        each, number = feed.store.num_bytes // feed.store.num_places, sum(different.values())
        feed.store.number, feed.store.num_places, feed.store.num_bytes = len(different), number, number * each
    return {TEXT: len(different)} if len(encoded) == len(texts) else {}


def _num_tokens(encoded: "Mapping[str, Tensor]") -> int:
    return int(encoded["attention_mask"].sum()) if "attention_mask" in encoded else len(encoded["input_ids"])


def spread(values: Sequence[str], most: int) -> list[str]:
    """All values, or so many that are evenly spread over them."""
    number = min(most, len(values))
    return [values[place * len(values) // number] for place in range(number)]


# --- operations


@contextmanager
def counting(model: "nn.Module") -> "Iterator[Counter[str]]":
    """In this block linear layers give zeros and cost nothing; gives path of module -> weights x places, as it runs."""
    from torch import nn

    counted: Counter[str] = Counter()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    stands = {name: _counted(module, name, counted) for name, module in linear.items()}
    hooks = [
        module.register_forward_hook(_convolution_counter(name, counted))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    try:
        with standing_in(model, stands):
            yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _counted(module: "nn.Module", name: str, counted: "Counter[str]") -> "nn.Module":
    """Stands in for a linear layer: the same shapes and number format, all zeros."""
    import torch
    from torch import nn

    sizes: Any = module  # in_features and out_features also where the weight itself is packed

    class Counted(nn.Module):
        def forward(self, given: "Tensor") -> "Tensor":
            counted[name] += given.numel() * sizes.out_features
            kind = given.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else given.dtype
            return given.new_zeros((*given.shape[:-1], sizes.out_features), dtype=dtype)

        def __getattr__(self, asked: str) -> Any:
            return getattr(module, asked)

    return Counted()


def _convolution_counter(name: str, counted: "Counter[str]") -> "Callable[..., None]":
    def count(module: Any, given: Any, made: "Tensor") -> None:
        counted[name] += made.numel() * module.weight[0].numel()

    return count


def _gain(adapted: Any, ability: str, operations: "Counter[str]", trunk: TrunkCache, passes: int) -> float | None:
    """How many times as fast; see the heading of this file."""
    names = list(operations)
    touched = [*adapted.part_of, *(name for names in adapted.modules.values() for name in names)]
    quiet = set(below(quiet_roots(adapted.backbone, ability, touched), names))
    own = {name.rpartition(".")[0] for name in adapted.part_of}
    costs = {name: operations[name] * (passes + (name not in quiet) * (1 + (name in own))) for name in names}
    spared = set(below([root for feed in trunk.feeds.values() for root in feed.cut.roots], names))
    left = sum(cost for name, cost in costs.items() if name not in spared)
    return sum(costs.values()) / left if left else None


def quiet_roots(backbone: Any, ability: str, touched: Sequence[str]) -> list[str]:
    """Paths of modules that no gradient has to go through: below the lowest trained layer of their side."""
    model, traits = backbone.model, backbone.traits
    cuts = find_cuts(model, traits, ability, touched)
    roots = [root for cut in cuts.values() if isinstance(cut, Cut) for root in cut.roots]
    media = [root for part, root in traits.parts.items() if part != "text"]
    layers = traits.layers.get("text")
    if ability == "embed" or not layers or below(media, touched):
        return roots
    depth = 0
    while depth < len(model.get_submodule(layers)) and not below([f"{layers}.{depth}"], touched):
        depth += 1
    return [*roots, *media, *(f"{layers}.{number}" for number in range(depth))]
