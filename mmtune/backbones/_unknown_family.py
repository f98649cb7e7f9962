"""What to say of a model that no family answers for: what there is, what is near, and what to write."""

import difflib
import re
from collections.abc import Iterable

from mmtune.backbones._family import Family

SKELETON = """\
from mmtune.backbones._bert_text import check, encode_text, pad  # read at the first token; at the last: see clip.py
from mmtune.backbones._dual_encoder import embed_media, embed_text, encode_media, num_layers, num_tokens
from mmtune.backbones._family import Family

FAMILY = Family(
    name="{name}", model_types=("{model_type}",), abilities=frozenset({{"embed"}}),
    parts={{"vision": "vision_model", "text": "text_model"}},  # paths of the towers in the loaded model
    layers={{"vision": "vision_model.encoder.layers", "text": "text_model.encoder.layers"}},
    heads={{"vision": ("visual_projection",), "text": ("text_projection",)}},
    full_precision=("visual_projection", "text_projection"), temperature=("logit_scale",),
    processor_classes={{"{model_type}": "{processor}"}},  # transformers' class
)

def temperature(model):
    return model.logit_scale, None
"""
"""A family file for a model like CLIP; what differs is filled in by hand."""


def unknown_family(model_type: str | None, families: Iterable[Family]) -> str:
    """The message for a ``model_type`` of config.json that is in no family's ``model_types``."""
    families = list(families)
    known = "; ".join(f"{family.name} ({', '.join(family.model_types)})" for family in families)
    if model_type is None:
        return f"config.json says no model_type, so no family answers. Families (model types): {known}"
    names = [name for family in families for name in family.model_types]
    near = difflib.get_close_matches(model_type, names, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return (
        f"config.json says model_type {model_type!r}, for which no family answers. "
        f"Families (model types): {known}{hint}\n"
        f"A model with one tower for images and one for texts takes about ten lines, in "
        f"mmtune/backbones/{_name(model_type)}.py (nothing else needs to know of it; its functions are listed in "
        f"mmtune/backbones/__init__.py; with a tiny(model_type) as in clip.py the tests cover it too):\n\n"
        f"{skeleton(model_type)}"
    )


def skeleton(model_type: str) -> str:
    """The text of a family file to begin with."""
    name = _name(model_type)
    processor = "".join(word.capitalize() for word in name.split("_")) + "Processor"
    return SKELETON.format(name=name, model_type=model_type, processor=processor)


def _name(model_type: str) -> str:
    return re.sub(r"\W+", "_", model_type)
