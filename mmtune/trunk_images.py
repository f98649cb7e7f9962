"""The image side of a generating model, fed: an entry for all images of a sample, a state for each image token.

Letters: B samples, C of them cold, N states of one sample, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones._image_side import SIDES, dropped_inputs, given_image_side, image_side_states, num_states
from mmtune.trunk_batches import (
    Feed,
    as_kept,
    find_cold,
    join_samples,
    keep,
    states_of,
    timed,
    to_compute,
    warm_rows,
    without_ours,
)
from mmtune.trunk_cuts import MEDIA

if TYPE_CHECKING:
    from torch import Tensor, nn

    Inputs = Mapping[str, Tensor]
    Pad = Callable[[Sequence[Inputs]], dict[str, Tensor]]

COLD = "cold."
"""Put, with the row, before the names of a cold sample's images. They travel alone, and are padded when it is known
which of them nobody has computed meanwhile."""
COLD_ROWS = "media_trunk_cold"
"""Name of int64[C]: the rows of the batch that have images whose states are not known."""


def pad_images(
    family: Any, processor: Any, encoded: "Sequence[Inputs]", model_type: str, **options: Any
) -> "dict[str, Tensor]":
    """A batch of words, with the states of those samples that have some and the images of the cold ones.

    States travel one sample after the other, float[sum N, D].
    """
    import torch

    gone = dropped_inputs(model_type)
    plain = [without_ours(one) for one in encoded]
    words = [{name: value for name, value in one.items() if name not in gone} for one in plain]
    batch: dict[str, Tensor] = family.pad(processor, words, **options)
    cold = [row for row, one in enumerate(plain) if gone[0] in one]
    if cold:
        names = SIDES[model_type].inputs
        batch |= {f"{COLD}{row}.{name}": plain[row][name] for row in cold for name in names if name in plain[row]}
        batch |= {COLD_ROWS: torch.tensor(cold)}
    return {**batch, **join_samples(MEDIA, encoded, torch.cat)}


def images_states(feed: Feed, model: "nn.Module", inputs: "Inputs", pad: "Pad") -> "list[Tensor]":
    """States float[N, D] of each sample of a batch that has images, in order.

    Args:
        feed: of the image side.
        model: adapted.
        inputs: from ``pad_images``.
        pad: makes one batch of several samples' images.
    """
    counts = num_states(model, inputs["input_ids"])
    rows = warm_rows(MEDIA, inputs)
    states: dict[int, Tensor] = {}
    if rows:
        given = inputs[states_of(MEDIA)].split([counts[row] for row in rows])
        states = dict(zip(rows, given, strict=True))
        feed.num_found += len(rows)
    if COLD_ROWS in inputs:
        states |= _cold_states(feed, model, inputs, counts, pad)
    return [states[row] for row in range(len(counts)) if row in states]


def _cold_states(
    feed: Feed, model: "nn.Module", inputs: "Inputs", counts: list[int], pad: "Pad"
) -> "dict[int, Tensor]":
    """States by row: found after all, or computed and kept."""
    cold = inputs[COLD_ROWS].tolist()
    keys, found = find_cold(feed, inputs, cold)
    states = {cold[place]: one.to(inputs["input_ids"].device) for place, one in found.items()}
    missing, source = to_compute(feed, keys, found)
    if not missing:
        return states
    rows = [cold[place] for place in missing]
    images = pad([_images_of(inputs, row) for row in rows])
    made = timed(feed, len(rows), lambda: image_side_states(model, images, [counts[row] for row in rows]))
    made = [as_kept(feed, one[None])[0] for one in made]
    keep(feed, inputs, rows, [keys[place] for place in missing], made)
    return states | {cold[place]: made[index] for place, index in source.items()}


def _images_of(inputs: "Inputs", row: int) -> "dict[str, Tensor]":
    """What a cold sample's images became."""
    start = f"{COLD}{row}."
    return {name.removeprefix(start): value for name, value in inputs.items() if name.startswith(start)}


def feed_images(
    feed: Feed, model: "nn.Module", inputs: "Inputs", pad: "Pad", forward: Callable[..., Any], *, generating: bool
) -> Any:
    """A forward pass, or a generation, of a model that is given states in the place of images."""
    states = images_states(feed, model, inputs, pad)
    words = {
        name: value for name, value in without_ours(inputs).items() if name != COLD_ROWS and not name.startswith(COLD)
    }
    return forward(model, given_image_side(model, words, states, generating=generating))
