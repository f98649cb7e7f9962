"""States in batches: how they travel beside pixels and tokens, and where those come from that do not travel.

A batch that feeds a side has a key for each sample, the states of those that are known, and pixels or tokens of the
others alone, which are *cold*. Whoever runs the model asks for the states of all: what was cold is looked for once
more, since another micro-batch or rank may have been first, and else computed, once, and kept.

Letters: B samples, C of them cold, T places, D width.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mmtune.stored_states import DTYPES, Stored, narrowed, pack_beside, unpack_beside
from mmtune.trunk_cuts import MEDIA, TEXT, Cut
from mmtune.trunk_keys import KEY_BYTES, NO_KEY

if TYPE_CHECKING:
    from torch import Tensor

    Inputs = Mapping[str, Tensor]
    Run = Callable[[dict[str, Tensor]], Tensor]


@dataclass
class Feed:
    """What one side of a model is fed from.

    Attributes:
        cut: where its trunk ends.
        store: where states are.
        memory: what was read at a reference before; see ``ContentMemory``.
        pixels: name of the input that a media trunk reads: what is left out where states are known.
        model_type: of the backbone's config.
        dtype: the widest that states are kept in.
        num_computed: states that the trunk was run for.
        num_found: states that did not have to be computed.
        seconds: that the trunk has run.
    """

    cut: Cut
    store: Any
    memory: Any
    pixels: str = "pixel_values"
    model_type: str = ""
    dtype: str = "float32"
    num_computed: int = 0
    num_found: int = 0
    seconds: float = 0.0

    @property
    def side(self) -> str:
        """``media`` or ``text``."""
        return self.cut.side


def keys_of(side: str) -> str:
    """Name of the keys of a side: uint8[B, 16] of a batch, uint8[16] of a sample."""
    return f"{side}_trunk_keys"


def states_of(side: str) -> str:
    """Name of the states of a side: float[B - C, ...] of a batch, float[...] of a sample where they are known."""
    return f"{side}_trunk_states"


def rows_of(side: str) -> str:
    """Name of int64[B - C]: the rows of the batch that these states belong to."""
    return f"{side}_trunk_rows"


def beside_of(side: str) -> str:
    """Name of what is kept beside the states: uint8[bytes], of a batch all samples' one after the other."""
    return f"{side}_trunk_beside"


def sizes_of(side: str) -> str:
    """Name of int64[B]: the bytes of each sample's."""
    return f"{side}_trunk_beside_sizes"


OURS = tuple(name(side) for side in (MEDIA, TEXT) for name in (keys_of, states_of, rows_of, beside_of, sizes_of))
"""Everything in a batch that belongs to trunks and to no family."""


def without_ours(inputs: "Inputs") -> "dict[str, Tensor]":
    """A batch, or a sample, as a family knows it."""
    return {name: value for name, value in inputs.items() if name not in OURS}


def note_key(side: str, key: bytes, states: "Tensor | None", beside: "Inputs | None" = None) -> "dict[str, Tensor]":
    """What a sample carries: its key, and its states where they are known, else what is to be kept beside them."""
    import torch

    carried = {keys_of(side): torch.frombuffer(bytearray(key), dtype=torch.uint8)}
    if states is not None:
        carried[states_of(side)] = states
    elif beside and (packed := pack_beside(beside)):
        carried[beside_of(side)] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    return carried


def join_samples(
    side: str, encoded: "Sequence[Inputs]", join: "Callable[[list[Tensor]], Tensor] | None" = None
) -> "dict[str, Tensor]":
    """What the samples of a batch carry, together; their states as ``stacked`` has them, or another ``join``."""
    import torch

    if not any(keys_of(side) in one for one in encoded):
        return {}
    none = torch.zeros(KEY_BYTES, dtype=torch.uint8)
    joined = {keys_of(side): torch.stack([one.get(keys_of(side), none) for one in encoded])}
    rows = [row for row, one in enumerate(encoded) if states_of(side) in one]
    if rows:
        joined |= {states_of(side): (join or partial(stacked, side))([encoded[row][states_of(side)] for row in rows])}
        joined |= {rows_of(side): torch.tensor(rows)}
    kept = [one.get(beside_of(side), none[:0]) for one in encoded]
    if any(len(one) for one in kept):
        joined |= {beside_of(side): torch.cat(kept), sizes_of(side): torch.tensor([len(one) for one in kept])}
    return joined


def is_fed(feed: Feed | None, inputs: "Inputs") -> bool:
    """Whether a batch was made for a feed: it holds keys."""
    return feed is not None and keys_of(feed.side) in inputs


def stacked(side: str, states: "list[Tensor]") -> "Tensor":
    """States of several samples as float[B, ...]; those of shorter texts are filled up with zeros."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    is_ragged = side == TEXT and states[0].dim() > 1
    return pad_sequence(states, batch_first=True) if is_ragged else torch.stack(states)


def warm_rows(side: str, inputs: "Inputs") -> list[int]:
    """The rows of a batch whose states travel with it."""
    rows: list[int] = inputs[rows_of(side)].tolist() if rows_of(side) in inputs else []
    return rows


# --- states of the cold samples


def batch_states(feed: Feed, inputs: "Inputs", run: "Run") -> "Tensor":
    """States float[B, T, D] of a batch: those that came with it, and the others from the trunk, which keeps them.

    Args:
        feed: of the side.
        inputs: a batch, with the pixels of its cold samples alone.
        run: inputs of cold samples -> their states.
    """
    import torch

    number, rows = len(inputs[keys_of(feed.side)]), warm_rows(feed.side, inputs)
    feed.num_found += len(rows)
    if len(rows) == number:
        return _widened(feed, inputs, inputs[states_of(feed.side)])
    cold = sorted(set(range(number)) - set(rows))
    computed = _cold_states(feed, inputs, cold, run)
    if not rows:
        return computed
    states = torch.empty((number, *computed.shape[1:]), dtype=computed.dtype, device=computed.device)
    states[rows] = _widened(feed, inputs, inputs[states_of(feed.side)]).to(computed)
    states[cold] = computed
    return states


def _widened(feed: Feed, inputs: "Inputs", states: "Tensor") -> "Tensor":
    """Texts' states filled up with zeros to the batch's longest text."""
    import torch

    if feed.side != TEXT or states.dim() < 3:
        return states
    return torch.nn.functional.pad(states, (0, 0, 0, inputs["input_ids"].shape[1] - states.shape[1]))


def find_cold(feed: Feed, inputs: "Inputs", cold: Sequence[int]) -> tuple[list[bytes], dict[int, "Tensor"]]:
    """Keys of the cold samples, and the states of those that are known by now, by place among the cold."""
    block = inputs[keys_of(feed.side)].cpu().numpy()
    keys = [block[row].tobytes() for row in cold]
    found = {place: it.states for place, key in enumerate(keys) if key != NO_KEY and (it := feed.store.find(key))}
    feed.num_found += len(found)
    return keys, found


def to_compute(feed: Feed, keys: Sequence[bytes], found: "Mapping[int, Tensor]") -> tuple[list[int], dict[int, int]]:
    """The places among the cold that the trunk is run on, each input once, and what each place takes of it.

    Which they are follows from the store and the batch alone, not from how far a loader's worker looked ahead: the last
    bit of a state depends on what it is computed together with, and a run that goes on must find the same.

    Returns:
        the places, and place -> index among them for all that were not found.
    """
    first: dict[bytes, int] = {}
    places: list[int] = []
    source: dict[int, int] = {}
    for place, key in enumerate(keys):
        if place in found:
            continue
        if key == NO_KEY or key not in first:
            first[key] = len(places)
            places.append(place)
        source[place] = first[key]
    feed.num_found += len(source) - len(places)
    return places, source


def as_kept(feed: Feed, states: "Tensor") -> "Tensor":
    """States float[B, ...] as they will be found, where they are kept in fewer bits than they were computed in."""
    import torch

    if not states.is_floating_point() or states.dtype.itemsize <= DTYPES[feed.dtype].itemsize:
        return states
    return torch.stack([narrowed(one, feed.dtype).to(one) for one in states])


def timed(feed: Feed, number: int, run: "Callable[[], Any]") -> Any:
    """What a trunk makes of so many cold samples, counted."""
    import torch

    started = time.perf_counter()
    with torch.no_grad():
        made = run()
    feed.num_computed += number
    feed.seconds += time.perf_counter() - started
    return made


def keep(feed: Feed, inputs: "Inputs", rows: Sequence[int], keys: Sequence[bytes], states: "Sequence[Tensor]") -> None:
    """Keep the states of these rows of a batch, with what travelled beside them."""
    packed: dict[int, Any] = {}
    if sizes_of(feed.side) in inputs:
        sizes = inputs[sizes_of(feed.side)].tolist()
        parts = inputs[beside_of(feed.side)].cpu().split(sizes)
        packed = {row: unpack_beside(part.numpy().tobytes()) for row, part in enumerate(parts)}
    feed.store.add(
        [
            (key, Stored(one, packed.get(row, {})))
            for row, key, one in zip(rows, keys, states, strict=True)
            if key != NO_KEY
        ]
    )


def _cold_states(feed: Feed, inputs: "Inputs", cold: list[int], run: "Run") -> "Tensor":
    """States of the cold samples: found after all, or computed and kept."""
    import torch

    keys, found = find_cold(feed, inputs, cold)
    device = inputs[keys_of(feed.side)].device
    missing, source = to_compute(feed, keys, found)
    warm = sorted(found)
    if not missing:
        return _widened(feed, inputs, stacked(feed.side, [found[place] for place in warm]).to(device))
    computed: Tensor = timed(feed, len(missing), lambda: run(_cold_inputs(feed, inputs, cold, missing)))
    computed = as_kept(feed, computed)
    rows = [cold[place] for place in missing]
    lengths = _lengths(feed, inputs, rows, computed)
    cut = [one[:length] for one, length in zip(computed, lengths, strict=True)] if lengths else list(computed)
    keep(feed, inputs, rows, [keys[place] for place in missing], cut)
    if len(missing) == len(cold):
        return computed
    states = torch.empty((len(cold), *computed.shape[1:]), dtype=computed.dtype, device=device)
    states[list(source)] = computed[list(source.values())]
    if warm:
        states[warm] = _widened(feed, inputs, stacked(feed.side, [found[place] for place in warm])).to(computed)
    return states


def _cold_inputs(feed: Feed, inputs: "Inputs", cold: list[int], missing: list[int]) -> "dict[str, Tensor]":
    """The rows of a batch that the trunk is run on; of pixels there are those of cold samples only."""
    number, pixels = len(inputs[keys_of(feed.side)]), inputs.get(feed.pixels)
    rows = [cold[place] for place in missing]
    plain = {name: value for name, value in without_ours(inputs).items() if name != feed.pixels}
    given = {name: value[rows] for name, value in plain.items() if len(value) == number}
    if pixels is not None and feed.side == MEDIA:
        given[feed.pixels] = pixels if len(missing) == len(cold) else pixels[missing]
    return given


def _lengths(feed: Feed, inputs: "Inputs", rows: list[int], states: "Tensor") -> list[int] | None:
    """Tokens of each text, without its padding; None where nothing is padded."""
    if feed.side != TEXT or states.dim() < 3 or "attention_mask" not in inputs:
        return None
    lengths: list[int] = inputs["attention_mask"][rows].sum(1).tolist()
    return lengths
