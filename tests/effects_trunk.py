"""How one sees the keys of the trunk cache at work, and of what goes with it: views of images, fused layers."""

from key_effect import Effect, key
from key_worlds import encoded
from key_worlds_trunk import fused, kept

HALF = ("adapter.layers=last 1",)


def section(before: str, after: str) -> Effect:
    """Two settings of the cache's section, with layers below the adapter."""
    texts = [f"train.trunk_cache={{{values}}}" for values in (before, after)]
    return key(kept, "column", *texts, more=HALF)


EFFECTS: dict[str, Effect] = {
    "train.trunk_cache": key(kept, "column", "", "train.trunk_cache=off", more=HALF),
    "train.trunk_cache.mode": section("mode: disk", "mode: memory"),
    "train.trunk_cache.limit_gb": section("limit_gb: 1", "limit_gb: 1e-6"),
    "train.trunk_cache.dtype": section("dtype: float32", "dtype: bfloat16"),
    "train.trunk_cache.folder": section("folder: FOLDER/kept", "folder: FOLDER/kept elsewhere"),
    "train.fused_layers": key(fused, "column", "", "train.fused_layers=false"),
    "data.augment.views": key(encoded, "column", "data.augment={crop: 0.3}", "data.augment={crop: 0.3, views: 2}"),
}
