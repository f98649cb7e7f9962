"""How one sees each key of `backbone` at work."""

from key_effect import Effect, key
from key_worlds import COMMITS, described, loaded

HUB = ("backbone.id=some/model",)
PICKLED = ("backbone.id=FOLDER/pickled",)
REMOTE = (*HUB, f"backbone.revision={COMMITS['main']}")

EFFECTS: dict[str, Effect] = {
    "backbone.id": key(described, "column", "", "backbone.id=builtin:glyph-clip"),
    "backbone.revision": key(described, "column", "backbone.revision=main", "backbone.revision=old", more=HUB),
    "backbone.family": key(described, "column", "backbone.family=clip", "backbone.family=siglip"),
    "backbone.dtype": key(loaded, "column", "", "backbone.dtype=bfloat16"),
    "backbone.quantize": key(loaded, "column", "", "backbone.quantize=8bit"),
    "backbone.allow_pickle": key(described, "column", "", "backbone.allow_pickle=true", more=PICKLED),
    "backbone.trust_remote_code": key(described, "column", "", "backbone.trust_remote_code=true", more=REMOTE),
}
