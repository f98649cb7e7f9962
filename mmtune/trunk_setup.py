"""From a recipe to the trunks that its run feeds from, and what is said of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmtune.adapters import set_modes
from mmtune.sources import sections_by_source
from mmtune.trunk_cache import Asked, TrunkCache, count_inputs, keeps_pixels, plan, plan_training, try_items
from mmtune.trunk_cuts import MEDIA, PIXELS, Cut, is_cut_of
from mmtune.trunk_feeding import FedFamily
from mmtune.trunk_opening import open_stores

if TYPE_CHECKING:
    import torch

    from mmtune.recipe_schema import Recipe


def ask_for_trunk(
    recipe: "Recipe", ability: str, precision: str, device: "torch.device | str", say: Callable[[str], None]
) -> Asked:
    """What a recipe's cache is made for.

    Args:
        recipe: its ``train.trunk_cache``.
        ability: what the task uses.
        precision: of forward passes, as a recipe or as accelerate calls it.
        device: where they run.
        say: takes a line for the log.
    """
    return Asked(recipe.train.trunk, ability, precision.replace("fp32", "no"), device, say)


def plan_trunk(adapted: Any, asked: Asked, data: Any) -> TrunkCache:
    """See ``plan_training``; what is changed at random says the data section."""
    return plan_training(adapted, asked, [section.augment for section in sections_by_source(data).values()])


def fill_plan(trunk: TrunkCache, asked: Asked, items: Any, context: Any, num_shown: int) -> None:
    """Decide where states are kept, by a few items' and by how many there will be.

    Args:
        trunk: as planned.
        asked: see there.
        items: of an epoch, encoded for the family that feeds.
        context: of the run's steps.
        num_shown: items that the run goes through.
    """
    if trunk.feeds:
        try_items(items, context)
        open_stores(trunk, context.backbone, asked, count_inputs(items.samples, items.augmentations), num_shown)


def fuse_layers(recipe: "Recipe", adapted: Any) -> list[str]:
    """Let the towers of what embeds run with fewer operations; gives the lines to be said of it.

    Args:
        recipe: its ``train.fused_layers``.
        adapted: whose family feeds.
    """
    family = adapted.backbone.family
    if not recipe.train.fused_layers or not isinstance(family, FedFamily):
        return []
    set_modes(adapted)
    return list(family.fuse(adapted.backbone))


def feed_scoring(backbone: Any, asked: Asked, record: dict[str, Any]) -> TrunkCache:
    """Feed a model that is scored as the run was fed: base and tuned have the same trunk.

    Args:
        backbone: freshly loaded, nothing attached.
        asked: see there.
        record: what the run's manifest keeps of its trunks.
    """
    if asked.section.mode == "off" or not record:
        return TrunkCache()
    noted = {side: noted_cut(one) for side, one in record.items()}
    cuts = {side: cut for side, cut in noted.items() if cut is not None and fits(backbone, asked.ability, side, cut)}
    trunk = plan(backbone, asked.ability, cuts, asked.section.dtype)
    for side in record.keys() - cuts.keys():
        trunk.lines.append(f"trunk cache: off for {side}: the run's manifest notes a cut that this model does not have")
    open_stores(trunk, backbone, asked, {})
    return trunk


def noted_cut(noted: Any) -> Cut | None:
    """The cut as a manifest has it; None where it is none."""
    try:
        return Cut(**{**noted, "roots": tuple(noted["roots"])})
    except (TypeError, KeyError):
        return None


def fits(backbone: Any, ability: str, side: str, cut: Cut) -> bool:
    """Whether a model has this very cut: what lies below it today is what lay below it in the run."""
    if cut.kind == "pixels":
        return cut == PIXELS and side == MEDIA and keeps_pixels(backbone, ability)
    return side == cut.side and is_cut_of(backbone.model, backbone.traits, ability, cut)
