"""How one sees each key of `backbone` at work."""

from key_effect import Effect, key
from key_worlds import COMMITS, described, loaded
from key_worlds_packed import packed
from key_worlds_pair import paired

HUB = ("backbone.id=some/model",)
PICKLED = ("backbone.id=FOLDER/pickled",)
REMOTE = (*HUB, f"backbone.revision={COMMITS['main']}")
PACKED = ("backbone.quantize=4bit",)
PAIR = ("backbone.id=null", "backbone.vision=some/model", "backbone.text=some/model")
TINY = ("backbone.id=null", "backbone.vision=FOLDER/tiny", "backbone.text=FOLDER/tiny")

EFFECTS: dict[str, Effect] = {
    "backbone.id": key(described, "column", "", "backbone.id=builtin:glyph-clip"),
    "backbone.revision": key(described, "column", "backbone.revision=main", "backbone.revision=old", more=HUB),
    "backbone.family": key(described, "column", "backbone.family=clip", "backbone.family=siglip"),
    "backbone.vision": key(paired, "column", TINY[1], "backbone.vision=FOLDER/pickled", more=TINY[::2]),
    "backbone.text": key(paired, "column", TINY[2], "backbone.text=FOLDER/pickled", more=TINY[:2]),
    "backbone.projection_dim": key(paired, "column", "", "backbone.projection_dim=8", more=TINY),
    "backbone.vision_revision": key(paired, "column", "", "backbone.vision_revision=old", more=PAIR),
    "backbone.text_revision": key(paired, "column", "", "backbone.text_revision=old", more=PAIR),
    "backbone.dtype": key(loaded, "column", "", "backbone.dtype=bfloat16"),
    "backbone.quantize": key(loaded, "column", "", "backbone.quantize=8bit"),
    "backbone.double_quantization": key(packed, "column", "", "backbone.double_quantization=false", more=PACKED),
    "backbone.compute_dtype": key(packed, "column", "", "backbone.compute_dtype=bfloat16", more=PACKED),
    "backbone.allow_pickle": key(described, "column", "", "backbone.allow_pickle=true", more=PICKLED),
    "backbone.trust_remote_code": key(described, "column", "", "backbone.trust_remote_code=true", more=REMOTE),
}
