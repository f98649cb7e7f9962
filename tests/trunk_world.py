"""A filled folder of a trunk to damage, and what must hold of its store whatever the damage."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.stored_states import Stored
from mmtune.trunk_store import TrunkStore

KEYS = [bytes([number]) * 16 for number in range(1, 7)]

EPOCHS = 4
"""Damage is met by reading, or only by adding, which then begins anew: three epochs mend it, the fourth finds all."""


def states_of(key: bytes) -> Tensor:
    return torch.arange(12.0).reshape(3, 4) * key[0]


def entry(key: bytes) -> tuple[bytes, Stored]:
    return key, Stored(states_of(key), {"mask": torch.tensor([key[0], 0, 1])})


def is_right(stored: Stored | None, key: bytes) -> bool:
    return stored is not None and torch.equal(stored.states, states_of(key)) and stored.beside["mask"][0] == key[0]


class World:
    """A filled folder, copied anew for every damage."""

    def __init__(self, tmp_path: Path) -> None:
        self.lines: list[str] = []
        self.template = tmp_path / "template" / "ab12"
        self.folder = tmp_path / "ab12"
        filled = TrunkStore(self.template, about={"part": "vision"})
        assert filled.add([entry(key) for key in KEYS]) == len(KEYS)
        filled.close()
        self.shard = next(self.template.glob("states-*.bin")).name
        assert all(is_right(filled.find(key), key) for key in KEYS)

    def fresh(self) -> TrunkStore:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.template, self.folder)
        return self.store()

    def store(self, **knobs: Any) -> TrunkStore:
        self.lines.clear()
        return TrunkStore(self.folder, about={"part": "vision"}, say=self.lines.append, **knobs)

    def check(self, store: TrunkStore, what: object) -> int:
        """Nothing wrong is found, and after a few epochs all is there again; gives how many were at first."""
        counts = []
        for _ in range(EPOCHS):
            found = {key: store.find(key) for key in KEYS}
            assert all(is_right(stored, key) for key, stored in found.items() if stored is not None), what
            missing = [key for key, stored in found.items() if stored is None]
            store.add([entry(key) for key in missing])
            counts.append(len(KEYS) - len(missing))
        assert counts[-1] == len(KEYS), (what, counts, self.lines)
        assert len(self.lines) == len(set(self.lines)) and (not store.damaged or self.lines), what
        store.close()
        return counts[0]
