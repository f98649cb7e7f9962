"""Floor 1, pretrained models: one file per family, the folder is the registry.

A family is a module with a ``FAMILY`` record and one function per thing it can do::

    FAMILY: Family
    num_layers(config) -> {"vision": 12, "text": 12}                        # from config.json, no torch
    pad(processor, encoded) -> {"pixel_values": float32[B, C, H, W], "input_ids": int64[B, L], ...}
    check(model, processor)                                                 # what only this family can get wrong
    tiny(model_type) -> (model, processor)                                  # random weights, real classes

With the ability ``embed``::

    encode_media(processor, image) -> {"pixel_values": float32[C, H, W]}     # or a sound, always the same
    encode_text(processor, text) -> {"input_ids": int64[L], ...}            # cut to the text tower's limit
    num_tokens(processor, text) -> int                                      # before the cut
    embed_media(model, batch) -> float[B, D]                                # L2-normalised; or float[B, Q, D], several
                                                                            # vectors each: the nearest one counts
    embed_text(model, batch) -> float[B, D]                                 # L2-normalised
    temperature(model) -> (log_scale: float[], bias: float[] | None)        # differentiable views of the parameters

With ``generate`` (nothing is ever cut; ``pad`` takes ``side="left"`` for what is generated from)::

    encode_turns(processor, turns, images) -> {"input_ids": int64[L], "labels": int64[L], ...}    # -100: not learned
    encode_prompt(processor, turns, images) -> the same without labels      # ends with what the user says
    generate(model, processor, batch, *, max_new_tokens, num_beams=1) -> [str]
    token_states(model, inputs) -> float[B, L, D]                           # [the forward pass without its head]
    image_tokens(processor, encoded) -> bool[L]                             # which stand for pictures [none are shown]

With ``match`` and ``classify``, beside ``encode_media`` and ``encode_text``::

    match(model, batch) -> float[B]                                         # log odds that both belong together
    classify(model, batch) -> float[B, C]
    answers_of(config) -> [str]                                             # the C answers

It may have these too; the default is in brackets::

    family_for(config) -> Family                 # its record for one config.json [FAMILY]; see Description.traits
    load_processor(description) -> processor     # [AutoTokenizer and AutoImageProcessor in the family's class]
    architecture_for(task) -> str                # of several classes the one made for a task; tiny takes it too [none]
    tiny_for(config) -> (model, processor)       # the twin of one config.json [tiny of its model type and class]
    notes(processor) -> [str]                    # what a run's log says of the processor [nothing]
    encode_drawn(processor, media, generator) -> as encode_media    # in training, where encoding draws [encode_media]
    text_limit(model.config) -> int              # longest text in tokens [text_config.max_position_embeddings]
    clamp_temperature(model, max_log_scale)      # where temperature() gives no parameter but what follows from one
    after_loading(model)                         # adds what transformers' class lacks
    before_saving(model)                         # writes what was added, and is no tensor of the class, into its config

Files that begin with ``_`` are shared by the families. Nothing here imports torch or transformers at its top.
"""

from mmtune.backbones._describing import at_commits, describe, pinned
from mmtune.backbones._family import Backbone, Description, Family, Section
from mmtune.backbones._hub_files import component_files
from mmtune.backbones._loading import load, load_processor, original_weight_names
from mmtune.backbones._temperature import clamp_temperature
from mmtune.backbones._tiny_twin import tiny_folder, tiny_section

__all__ = [
    "Backbone",
    "Description",
    "Family",
    "Section",
    "at_commits",
    "clamp_temperature",
    "component_files",
    "describe",
    "load",
    "load_processor",
    "original_weight_names",
    "pinned",
    "tiny_folder",
    "tiny_section",
]
