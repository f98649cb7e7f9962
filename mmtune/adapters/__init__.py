"""Floor 2, what is trained: one file per kind, the folder is the registry.

A kind is a module with a ``Section`` (an ``AdapterSection``) and two functions::

    problems(section, backbone, description) -> list[str]   # from config.json alone: no weights, no torch
    insert(backbone, section, seed) -> Inserted             # checks all, then changes the model in place
    insert_empty(backbone, section) -> Inserted             # optional: without a costly start; ``restore`` follows

The rest is the same for every kind: ``attach``, ``save`` and its inverse ``restore``, ``load_earlier`` for a start from
an earlier adapter, ``attach_foreign`` for adapters that peft made elsewhere, ``set_modes`` (frozen means frozen),
``optimizer_groups``, ``merge_into``. ``refusal`` gives the reason why a word of peft's is no kind.
"""

from mmtune.adapters._adapted import Adapted, Inserted, PartReport, attach, problems
from mmtune.adapters._earlier import load_earlier
from mmtune.adapters._foreign import attach_foreign, read_adapter_config
from mmtune.adapters._groups import describe_rates, optimizer_groups
from mmtune.adapters._merging import merge_into, merged_names
from mmtune.adapters._modes import set_modes
from mmtune.adapters._refusals import refusal
from mmtune.adapters._section import AdapterSection
from mmtune.adapters._storage import restore, save, stored_files

__all__ = [
    "Adapted",
    "AdapterSection",
    "Inserted",
    "PartReport",
    "attach",
    "attach_foreign",
    "describe_rates",
    "load_earlier",
    "merge_into",
    "merged_names",
    "optimizer_groups",
    "problems",
    "read_adapter_config",
    "refusal",
    "restore",
    "save",
    "set_modes",
    "stored_files",
]
