"""How one sees each key of the adapter kinds that go through peft beside lora."""

import json
from typing import Any

from key_effect import Effect
from key_worlds_adapters import acted

SMALL: dict[str, dict[str, Any]] = {
    "fourierft": {"n_frequency": 64},
    "hira": {"rank": 4},
    "ia3": {},
    "loha": {"rank": 4},
    "lokr": {"rank": 1},
    "miss": {"rank": 4},
    "oft": {"oft_block_size": 8},
    "peft": {"config": {"peft_type": "WAVEFT", "n_frequency": 64}},
    "randlora": {"rank": 4},
    "vera": {"rank": 16},
}
"""Kind -> what makes it fit a tiny twin."""

SHARED = {"kind": "lora", "parts": ["text"], "layers": "first 1", "targets": ["mlp"], "temperature": False}
"""Keys that every such kind has, with another value than ``base`` gives them."""

OWN: dict[str, dict[str, Any]] = {
    "fourierft": {"n_frequency": 32, "scaling": 30.0, "init_weights": False, "random_loc_seed": 1},
    "hira": {"rank": 2, "dropout": 0.5},
    "ia3": {"feedforward_modules": ["q_proj"]},
    "loha": {"rank": 2, "alpha": 9.0, "rank_dropout": 0.5, "module_dropout": 0.5},
    "lokr": {"rank": 2, "alpha": 9.0, "decompose_factor": 2, "decompose_both": True}
    | {"rank_dropout": 0.5, "rank_dropout_scale": True, "module_dropout": 0.5},
    "miss": {"rank": 2, "init_weights": "bat", "mini_r": 2, "dropout": 0.5},
    "oft": {"oft_block_size": 4, "block_share": True, "use_cayley_neumann": False, "num_cayley_neumann_terms": 2},
    "peft": {"config": {"peft_type": "WAVEFT", "n_frequency": 32}},
    "randlora": {"rank": 2, "alpha": 9.0, "dropout": 0.5, "sparse": True, "very_sparse": True}
    | {"projection_prng_key": 1},
    "vera": {"rank": 8, "d_initial": 0.5, "dropout": 0.5, "projection_prng_key": 1},
}
"""Kind -> its own keys, with another value than their default."""

BESIDE: dict[str, dict[str, Any]] = {
    "miss.mini_r": {"init_weights": "mini"},
    "lokr.rank_dropout_scale": {"rank_dropout": 0.5},
}
"""Keys that are read only beside another one."""


def effect(kind: str, name: str, value: Any) -> Effect:
    """One key with its default, and with another value."""
    base = {"kind": kind, "parts": ["vision"], "layers": "last 1", **SMALL[kind], **BESIDE.get(f"{kind}.{name}", {})}
    changed = {**base, name: value} if name != "kind" else {"kind": value, "parts": ["vision"], "layers": "last 1"}
    return Effect(acted, "column", [f"adapter={json.dumps(base)}"], [f"adapter={json.dumps(changed)}"])


EFFECTS: dict[str, Effect] = {
    f"adapter.{name}:{kind}": effect(kind, name, value)
    for kind in SMALL
    for name, value in {**SHARED, **OWN[kind]}.items()
}
