"""Embed a split once, rank it both ways, and name the scores. What is said of images holds for sounds.

Every image and every different caption is embedded once. Batches are fixed by the split and ``batch`` alone and ranks
take whole batches in turn, so that each forward pass, and with it the result, is the same however many ranks or
workers there are. Memory holds the embeddings and a slice of the similarities, never all of them.

Letters: I images, T texts, D embedding width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.calm_forking import wait_for_calm
from mmtune.ground.errors import DataError, TrainingError
from mmtune.ground.process_group import gather_objects, gather_rows, rank, world_size
from mmtune.ground.records import MEDIA_WORDS, BadItem, MediaReference, Sample
from mmtune.ground.stop_signals import leave_signals_to_parent
from mmtune.metrics import directions, retrieval_scores
from mmtune.metrics._ranking import ranks_both_ways
from mmtune.scored_split import SplitEmbeddings, assemble, list_content
from mmtune.shown_media import ShownMedia, opened

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Progress = Callable[[str, int, int], None]
"""Called with ("images", "sounds" or "texts", how many this rank has done, how many all ranks have)."""


@dataclass
class EncodedBatches:
    """Encoded batches of one split, kept so that a second model does not decode every image again.

    Attributes:
        max_bytes: a split that needs more is read again instead.
        kept: ``images`` (or ``sounds``) and ``texts`` -> their batches on this rank, once a whole pass has fitted.
    """

    max_bytes: int = 1 << 30
    kept: dict[str, list[Any]] = field(default_factory=dict)

    def through(self, kind: str, batches: Iterator[Any]) -> Iterator[Any]:
        """The kept batches of ``kind`` where there are any, else ``batches``, which are kept if they fit."""
        if kind in self.kept:
            yield from self.kept[kind]
            return
        passed: list[Any] | None = []
        num_bytes = sum(_num_bytes(inputs) for each in self.kept.values() for _, inputs, _ in each)
        for places, inputs, bad in batches:
            yield places, inputs, bad
            num_bytes += _num_bytes(inputs)
            if passed is not None and num_bytes <= self.max_bytes:
                passed.append((places, {name: tensor.clone() for name, tensor in inputs.items()}, bad))
            else:
                passed = None
        if passed is not None:
            self.kept[kind] = passed


def _num_bytes(inputs: "dict[str, Tensor]") -> int:
    return sum(tensor.nbytes for tensor in inputs.values())


@dataclass(frozen=True)
class Scores:
    """What a split scored.

    Attributes:
        values: score name (``text_to_image_recall@1`` ...) -> value.
        ranks: direction -> float64 rank of the best positive, one per text or image.
    """

    values: dict[str, float]
    ranks: dict[str, np.ndarray]


def embed_split(
    backbone: Any,
    samples: Sequence[Sample],
    *,
    device: "torch.device | str",
    batch: int,
    workers: int = 0,
    precision: str = "fp32",
    split: str = "",
    progress: Progress | None = None,
    keep: EncodedBatches | None = None,
) -> SplitEmbeddings:
    """Embed every image and every different caption of a split once.

    Args:
        backbone: a ``mmtune.backbones.Backbone``; its model may be adapted. It is scored in eval mode, without
            gradient, and its modules' modes are put back.
        samples: the split.
        device: where the model is.
        batch: items per forward pass.
        workers: processes that read and encode; 0 does it here. The result does not depend on it.
        precision: ``bf16`` or ``fp16`` run the forward pass under autocast; ``fp32`` leaves it as it is called.
        split: its name, for the quarantine list.
        progress: called after each batch.
        keep: the same object for several calls with the same samples, batch and processor: later ones decode nothing.

    Raises:
        DataError: there is no sample, or no image of the split can be read.
    """
    content = list_content(samples)
    bad_at: dict[int, BadItem] = {}
    report = progress or (lambda kind, done, total: None)
    family, processor, modality = backbone.family, backbone.processor, backbone.traits.modality
    words = MEDIA_WORDS[modality]
    with scoring_mode(backbone.model), autocast_for(device, precision):
        embed = _Embedder(backbone, device, batch, workers, keep or EncodedBatches(max_bytes=0))
        read = ReadMedia(family, processor, split)
        images = embed(words, content.images, read, family.embed_media, bad_at, report)
        texts = embed("texts", content.texts, EncodeText(family, processor), family.embed_text, {}, report)
    if len(bad_at) == len(content.images):
        first = bad_at[min(bad_at)]
        raise DataError(f"none of the {len(bad_at)} {words} can be read; the first is {first.where}: {first.reason}")
    return assemble(content, images, texts, bad_at, modality)


def score_embeddings(embedded: SplitEmbeddings, *, chunk: int = 1024) -> Scores:
    """Every retrieval score of a split, by cosine similarity in float32, without temperature.

    Args:
        embedded: the split.
        chunk: texts compared at a time; bounds memory and changes nothing else. Each rank compares a share of them.

    Raises:
        TrainingError: some embeddings are not finite (the weights have diverged).
    """
    modality = embedded.modality
    for name, embeds in ((modality, embedded.image_embeds), ("text", embedded.text_embeds)):
        broken = int((~np.isfinite(embeds.reshape(len(embeds), -1)).all(axis=1)).sum())
        if broken:
            raise TrainingError(
                f"{broken} of {len(embeds)} {name} embeddings are not finite: the weights have diverged"
            )
    both = ranks_both_ways(
        embedded.text_embeds,
        embedded.image_embeds,
        embedded.text_to_image,
        chunk=chunk,
        part=rank(),
        parts=world_size(),
        total=_sum_over_ranks,
    )
    ranks = dict(zip(directions(modality), both, strict=True))
    return Scores({score.name: score.value(ranks[score.direction]) for score in retrieval_scores(modality)}, ranks)


@dataclass(frozen=True)
class ReadMedia:
    """Read and encode an image or a sound; what cannot be read becomes a ``BadItem``. Runs in the loader's workers."""

    family: Any
    processor: Any
    split: str = ""

    def __call__(self, reference: MediaReference) -> "dict[str, Tensor] | BadItem":
        try:
            encoded: dict[str, Tensor] = self.family.encode_media(
                self.processor, opened(self.family, ShownMedia(reference))
            )
        except DataError as error:
            return BadItem(reference.where, str(error).removeprefix(f"{reference.where}: "), self.split)
        return encoded


@dataclass(frozen=True)
class EncodeText:
    """Tokens of a text. Runs in the loader's workers."""

    family: Any
    processor: Any

    def __call__(self, text: str) -> "dict[str, Tensor]":
        encoded: dict[str, Tensor] = self.family.encode_text(self.processor, text)
        return encoded


@dataclass(frozen=True)
class _Encoded:
    """A dataset of (place, encoded item or BadItem)."""

    items: Sequence[Any]
    encode: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> tuple[int, Any]:
        return place, self.encode(self.items[place])


@dataclass(frozen=True)
class _Collate:
    """(places of the good items, their padded batch, bad items by place)."""

    pad: "Callable[[list[Any]], dict[str, Tensor]]"

    def __call__(self, items: list[tuple[int, Any]]) -> tuple[list[int], "dict[str, Tensor]", dict[int, BadItem]]:
        good = [(place, item) for place, item in items if not isinstance(item, BadItem)]
        bad = {place: item for place, item in items if isinstance(item, BadItem)}
        padded = self.pad([item for _, item in good]) if good else {}
        return [place for place, _ in good], padded, bad


def open_batches(
    backbone: Any,
    items: Sequence[Any],
    encode: Callable[[Any], Any],
    batches: list[list[int]],
    workers: int,
    pad: "Callable[[list[Any]], dict[str, Tensor]] | None" = None,
) -> Iterator[tuple[list[int], "dict[str, Tensor]", dict[int, BadItem]]]:
    """Read and encode ``items`` in batches of the given places; ``pad`` instead of the family's own.

    Yields for each batch: the places of its good items, their padded tensors, and its bad items by place.
    """
    import torch
    from torch.utils.data import DataLoader

    workers = min(workers, len(batches))
    if workers:
        wait_for_calm()
    return iter(
        DataLoader(
            _Encoded(items, encode),  # type: ignore[arg-type]
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_Collate(pad or partial(backbone.family.pad, backbone.processor)),
            generator=torch.Generator(),  # else the loader would draw from the global generator of a training run
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=leave_signals_to_parent,
        )
    )


@dataclass(frozen=True)
class _Embedder:
    """Embeds a sequence of images or texts, over all ranks."""

    backbone: Any
    device: "torch.device | str"
    batch: int
    workers: int
    keep: EncodedBatches

    def __call__(
        self,
        kind: str,
        items: Sequence[Any],
        encode: Callable[[Any], Any],
        embed: Callable[[Any, Any], "Tensor"],
        bad_at: dict[int, BadItem],
        report: Progress,
    ) -> np.ndarray:
        """float32[len(items), D] (or [..., Q, D]), rows of bad items NaN; ``bad_at`` gets them by place."""
        import torch

        places, rows, done = [], [], 0
        for good, inputs, bad in self.keep.through(kind, self._batches(items, encode)):
            bad_at.update(bad)
            done += len(good) + len(bad)
            if good:
                inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
                features = embed(self.backbone.model, inputs).float()
                rows.append(torch.nn.functional.normalize(features, dim=-1))
                places += good
            report(kind, done, len(items))
        for found in gather_objects([dict(bad_at)]):
            bad_at.update(found)
        return self._gather(places, rows, len(items))

    def _batches(self, items: Sequence[Any], encode: Callable[[Any], Any]) -> Iterator[Any]:
        """This rank's batches: every ``world_size()``-th of the split's; read when they are asked for."""
        starts = range(0, len(items), self.batch)[rank() :: world_size()]
        batches = [list(range(start, min(start + self.batch, len(items)))) for start in starts]
        return open_batches(self.backbone, items, encode, batches, self.workers)

    def _gather(self, places: list[int], rows: "list[Tensor]", num_items: int) -> np.ndarray:
        """Every rank's rows at their places, as float32 numpy."""
        import torch

        widths = gather_objects([tuple(rows[0].shape[1:])] if rows else [])
        width = widths[0] if widths else (0,)
        mine = torch.cat(rows) if rows else torch.zeros((0, *width), device=self.device)
        everyone, _ = gather_rows(mine)
        at, _ = gather_rows(torch.tensor(places, dtype=torch.int64, device=self.device))
        full = np.full((num_items, *width), np.nan, dtype=np.float32)
        full[at.cpu().numpy()] = everyone.cpu().numpy()
        return full


def _sum_over_ranks(counts: np.ndarray) -> np.ndarray:
    """The sum of every rank's counts, int64 of one shape."""
    return np.array(gather_objects([counts.tolist()]), dtype=np.int64).sum(axis=0)


@contextmanager
def scoring_mode(model: "nn.Module") -> Iterator[None]:
    """Eval mode without gradient; afterwards every module is in the mode it was in."""
    import torch

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def autocast_for(device: "torch.device | str", precision: str) -> AbstractContextManager[Any]:
    """Mixed precision where it is asked for (``bf16``, ``fp16``), else nothing."""
    import torch

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtypes[precision])
