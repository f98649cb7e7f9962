"""Embeddings on disk: rows that are filled in, survive an interruption, and become one ``.npy`` when all are there."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.ground.records import BadItem
from mmtune.ground.safe_files import read_json, whole_file, write_json

BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class EmbeddingPaths:
    """The files that belong to one ``.npy``."""

    embeddings: Path

    @property
    def ids(self) -> Path:
        """A JSON list: the id of every row."""
        return self.embeddings.with_suffix(".ids.json")

    @property
    def manifest(self) -> Path:
        """What was embedded by what, how far it got, and what was bad."""
        return self.embeddings.with_suffix(".manifest.json")

    @property
    def partial(self) -> Path:
        """Rows so far, while it is not finished."""
        return self.embeddings.with_suffix(".part.npy")


def paths_for(output: str | Path) -> EmbeddingPaths:
    """The files for an output name; a name without an ending gets ``.npy``.

    Raises:
        DataError: another ending.
    """
    path = Path(output)
    if path.suffix == "":
        path = path.with_suffix(".npy")
    if path.suffix != ".npy" or path.name.endswith(".part.npy"):
        raise DataError(f"{output}: embeddings are written as .npy; end the name in .npy")
    return EmbeddingPaths(path)


class EmbeddingStore:
    """Fills ``num_items`` rows in order and remembers how many are safe on the disk.

    What is written: ``NAME.part.npy`` and ``NAME.manifest.json`` on the way; ``NAME.npy`` float32[N, D],
    or float32[N, Q, D] from a model that gives several vectors for an image, ``NAME.ids.json`` and the manifest at the
    end. Rows of items that failed are left out at the end.

    Args:
        paths: where.
        identity: what the embeddings are a function of; other values mean other embeddings.
        num_items: rows to fill.

    Raises:
        DataError: the output holds something else that is finished, or was not written by this tool.
    """

    def __init__(self, paths: EmbeddingPaths, identity: dict[str, str], num_items: int) -> None:
        self.paths = paths
        self.identity = identity
        self.num_items = num_items
        self.num_done = 0
        self.failed: dict[int, BadItem] = {}
        self.finished = False
        self.note = ""
        self._rows: np.memmap[Any, Any] | None = None
        self._open()

    def _open(self) -> None:
        paths = self.paths
        old = read_json(paths.manifest) if paths.manifest.is_file() else None
        if old is None:
            if paths.embeddings.exists():
                raise DataError(f"{paths.embeddings} is there and was not written by predict; give another name")
            return
        differing = [key for key, value in self.identity.items() if old.get("identity", {}).get(key) != value]
        if old.get("status") == "finished" and paths.embeddings.exists():
            if differing:
                raise DataError(
                    f"{paths.embeddings} holds the embeddings of something else (other {', '.join(differing)}); "
                    "give another name or delete it"
                )
            self.finished, self.num_done = True, self.num_items
            self.failed = _failed_of(old)
        elif differing:
            self.note = f"what was begun there is of something else (other {', '.join(differing)}): beginning anew"
        elif old.get("done") and paths.partial.is_file():
            self._rows = np.lib.format.open_memmap(paths.partial, mode="r+")
            self.num_done, self.failed = int(old["done"]), _failed_of(old)
            self.note = f"going on after {self.num_done} of {self.num_items}"

    def put(self, places: list[int], rows: np.ndarray, failed: dict[int, BadItem]) -> None:
        """Take the next items: float32[n, D] rows at ``places`` (increasing), and items that failed.

        Together they follow directly on what came before.
        """
        taken = sorted([*places, *failed])
        assert taken == list(range(self.num_done, self.num_done + len(taken))), "rows come in order"
        if places:
            if self._rows is None:
                self._rows = self._create(rows.shape[1:])
            self._rows[places] = rows
        self.failed.update(failed)
        self.num_done += len(taken)

    def save(self) -> None:
        """Make what was put so far safe: the rows first, then the count that says so."""
        if self._rows is not None:
            self._rows.flush()
        write_json(self.paths.manifest, self._manifest("running"))

    def finish(self, ids: tuple[str, ...], facts: dict[str, Any]) -> None:
        """Write the final files; the manifest, which says that they are whole, comes last.

        Raises:
            DataError: every item failed.
        """
        self.save()
        good = [place for place in range(self.num_items) if place not in self.failed]
        if self._rows is None or not good:
            raise DataError(f"{self.paths.embeddings}: none of the {self.num_items} items could be embedded")
        with whole_file(self.paths.embeddings) as beside:
            final = np.lib.format.open_memmap(
                beside, mode="w+", dtype=np.float32, shape=(len(good), *self._rows.shape[1:])
            )
            for start in range(0, len(good), BLOCK_ROWS):
                final[start : start + BLOCK_ROWS] = self._rows[good[start : start + BLOCK_ROWS]]
            final.flush()
            del final
        write_json(self.paths.ids, [ids[place] for place in good])
        write_json(self.paths.manifest, {**self._manifest("finished"), "rows": len(good), **facts})
        self._rows = None
        self.paths.partial.unlink()
        self.finished = True

    def _create(self, width: tuple[int, ...]) -> "np.memmap[Any, Any]":
        self.paths.partial.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(
            self.paths.partial, mode="w+", dtype=np.float32, shape=(self.num_items, *width)
        )

    def _manifest(self, status: str) -> dict[str, Any]:
        failed = [{"place": place, **asdict(item)} for place, item in sorted(self.failed.items())]
        return {"status": status, "identity": self.identity, "done": self.num_done, "failed": failed}


def _failed_of(manifest: dict[str, Any]) -> dict[int, BadItem]:
    return {one["place"]: BadItem(one["where"], one["reason"], one["split"]) for one in manifest.get("failed", [])}
