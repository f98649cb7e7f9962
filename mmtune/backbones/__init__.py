"""Floor 1, pretrained models: one file per family, the folder is the registry.

A family is a module with a ``FAMILY`` record and one function per thing it can do::

    FAMILY: Family
    num_layers(config) -> {"vision": 12, "text": 12}                        # from config.json, no torch
    encode_media(processor, image) -> {"pixel_values": float32[C, H, W]}
    encode_text(processor, text) -> {"input_ids": int64[L], ...}            # cut to the text tower's limit
    num_tokens(processor, text) -> int                                      # before the cut
    pad(processor, encoded) -> {"pixel_values": float32[B, C, H, W], "input_ids": int64[B, L], ...}
    embed_media(model, batch) -> float[B, D]                                # L2-normalised
    embed_text(model, batch) -> float[B, D]                                 # L2-normalised
    temperature(model) -> (log_scale: float[], bias: float[] | None)        # differentiable views of the parameters
    check(model, processor)                                                 # what only this family can get wrong
    tiny(model_type) -> (model, processor)                                  # random weights, real classes

Files that begin with ``_`` are shared by the families. Nothing here imports torch or transformers at its top.
"""

from mmtune.backbones._family import Backbone, Description, Family, Section
from mmtune.backbones._hub_files import component_files
from mmtune.backbones._loading import describe, load, original_weight_names, pinned
from mmtune.backbones._tiny_twin import tiny_folder

__all__ = [
    "Backbone",
    "Description",
    "Family",
    "Section",
    "component_files",
    "describe",
    "load",
    "original_weight_names",
    "pinned",
    "tiny_folder",
]
