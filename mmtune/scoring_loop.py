"""Embed a split once, rank it both ways, and name the scores.

Every image and every different caption is embedded once. Batches are fixed by the split and ``batch`` alone and ranks
take whole batches in turn, so that each forward pass, and with it the result, is the same however many ranks or
workers there are. Memory holds the embeddings and a slice of the similarities, never all of them.

Letters: I images, T texts, D embedding width, M pairs (text, image).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.errors import DataError, TrainingError
from mmtune.ground.process_group import gather_objects, gather_rows, rank, world_size
from mmtune.ground.records import BadItem, ImageReference, Sample
from mmtune.ground.seeding import text_key
from mmtune.metrics import retrieval_scores
from mmtune.metrics._bootstrap import joined_groups
from mmtune.metrics._ranking import Positives, ranks_of_embeddings

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

Progress = Callable[[str, int, int], None]
"""Called with ("images" or "texts", how many this rank has done, how many all ranks have)."""


@dataclass(frozen=True)
class SplitTexts:
    """A split without its pixels: which images and texts there are and which belong together.

    Attributes:
        images: one reference per different image (by ``key``), in the order of the samples.
        image_ids: the id of the first sample that shows each image.
        texts: one text per different caption (by ``text_key``), in the order of the samples.
        pairs: int64[M, 2], (text, image), each pair once, sorted; a caption in ``captions`` or ``also_true``.
        image_groups: what a sample says of its ``group``, "" where it says nothing.
    """

    images: tuple[ImageReference, ...]
    image_ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: np.ndarray
    image_groups: tuple[str, ...]


@dataclass(frozen=True)
class SplitEmbeddings:
    """A split as a backbone sees it.

    Attributes:
        image_embeds: float32[I, D], L2-normalised.
        text_embeds: float32[T, D], L2-normalised.
        image_ids: the id of each image's first sample.
        images: the references behind ``image_embeds``, not decoded.
        texts: the captions behind ``text_embeds``.
        text_to_image: the right images of every text.
        image_to_text: the right texts of every image.
        image_groups: int64[I], connected through shared images, captions or sample groups.
        text_groups: int64[T], in the same numbering.
        bad: images that could not be read; they and the texts that only they show are in no array.
    """

    image_embeds: np.ndarray
    text_embeds: np.ndarray
    image_ids: tuple[str, ...]
    images: tuple[ImageReference, ...]
    texts: tuple[str, ...]
    text_to_image: Positives
    image_to_text: Positives
    image_groups: np.ndarray
    text_groups: np.ndarray
    bad: tuple[BadItem, ...]

    @property
    def num_groups(self) -> int:
        """How many groups the bootstrap can draw from."""
        return int(self.text_groups.max()) + 1


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

    Raises:
        DataError: there is no sample, or no image of the split can be read.
    """
    content = list_content(samples)
    bad_at: dict[int, BadItem] = {}
    report = progress or (lambda kind, done, total: None)
    family, processor = backbone.family, backbone.processor
    with _scoring(backbone.model), _autocast(device, precision):
        embed = _Embedder(backbone, device, batch, workers)
        read = ReadImage(family, processor, split)
        images = embed(content.images, read, family.embed_image, bad_at, partial(report, "images"))
        texts = embed(content.texts, EncodeText(family, processor), family.embed_text, {}, partial(report, "texts"))
    if len(bad_at) == len(content.images):
        first = bad_at[min(bad_at)]
        raise DataError(f"none of the {len(bad_at)} images can be read; the first is {first.where}: {first.reason}")
    return _without(content, images, texts, bad_at)


def list_content(samples: Sequence[Sample]) -> SplitTexts:
    """The different images and captions of a split and their pairs.

    Raises:
        DataError: there is no sample.
    """
    if not len(samples):
        raise DataError("there is nothing to score: the split has no samples")
    images: dict[str, tuple[int, Sample]] = {}
    texts: dict[int, tuple[int, str]] = {}
    for sample in samples:
        images.setdefault(sample.image.key, (len(images), sample))
        for caption in sample.captions:
            texts.setdefault(text_key(caption), (len(texts), caption))
    pairs = {
        (texts[key][0], images[sample.image.key][0])
        for sample in samples
        for key in map(text_key, (*sample.captions, *sample.also_true))
        if key in texts
    }
    firsts = [sample for _, sample in images.values()]
    return SplitTexts(
        images=tuple(sample.image for sample in firsts),
        image_ids=tuple(sample.id for sample in firsts),
        texts=tuple(text for _, text in texts.values()),
        pairs=np.array(sorted(pairs), dtype=np.int64),
        image_groups=tuple(sample.group for sample in firsts),
    )


def score_embeddings(embedded: SplitEmbeddings, *, chunk: int = 512) -> Scores:
    """Every retrieval score of a split, by cosine similarity in float32, without temperature.

    Args:
        embedded: the split.
        chunk: queries ranked at a time; bounds memory and changes nothing else.

    Raises:
        TrainingError: some embeddings are not finite (the weights have diverged).
    """
    for name, embeds in (("image", embedded.image_embeds), ("text", embedded.text_embeds)):
        broken = int((~np.isfinite(embeds).all(axis=1)).sum())
        if broken:
            raise TrainingError(
                f"{broken} of {len(embeds)} {name} embeddings are not finite: the weights have diverged"
            )
    images, texts = embedded.image_embeds, embedded.text_embeds
    ranks = {
        "text_to_image": _shared_ranks(texts, images, embedded.text_to_image, chunk),
        "image_to_text": _shared_ranks(images, texts, embedded.image_to_text, chunk),
    }
    return Scores({score.name: score.value(ranks[score.direction]) for score in retrieval_scores()}, ranks)


@dataclass(frozen=True)
class ReadImage:
    """Read and encode an image; what cannot be read becomes a ``BadItem``. Runs in the loader's workers."""

    family: Any
    processor: Any
    split: str = ""

    def __call__(self, reference: ImageReference) -> "dict[str, Tensor] | BadItem":
        try:
            image: Image = reference.read()
        except DataError as error:
            return BadItem(reference.where, str(error), self.split)
        encoded: dict[str, Tensor] = self.family.encode_image(self.processor, image)
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

    family: Any
    processor: Any

    def __call__(self, items: list[tuple[int, Any]]) -> tuple[list[int], "dict[str, Tensor]", dict[int, BadItem]]:
        good = [(place, item) for place, item in items if not isinstance(item, BadItem)]
        bad = {place: item for place, item in items if isinstance(item, BadItem)}
        padded = self.family.pad(self.processor, [item for _, item in good]) if good else {}
        return [place for place, _ in good], padded, bad


@dataclass(frozen=True)
class _Embedder:
    """Embeds a sequence of images or texts, over all ranks."""

    backbone: Any
    device: "torch.device | str"
    batch: int
    workers: int

    def __call__(
        self,
        items: Sequence[Any],
        encode: Callable[[Any], Any],
        embed: Callable[[Any, Any], "Tensor"],
        bad_at: dict[int, BadItem],
        report: Callable[[int, int], None],
    ) -> np.ndarray:
        """float32[len(items), D], rows of bad items NaN; ``bad_at`` gets them by place, of every rank."""
        import torch

        places, rows, done = [], [], 0
        for good, inputs, bad in self._batches(items, encode):
            bad_at.update(bad)
            done += len(good) + len(bad)
            if good:
                inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
                features = embed(self.backbone.model, inputs).float()
                rows.append(torch.nn.functional.normalize(features, dim=-1))
                places += good
            report(done, len(items))
        for found in gather_objects([dict(bad_at)]):
            bad_at.update(found)
        return self._gather(places, rows, len(items))

    def _batches(self, items: Sequence[Any], encode: Callable[[Any], Any]) -> Iterator[Any]:
        """This rank's batches: every ``world_size()``-th of the split's."""
        import torch
        from torch.utils.data import DataLoader

        starts = range(0, len(items), self.batch)[rank() :: world_size()]
        batches = [list(range(start, min(start + self.batch, len(items)))) for start in starts]
        workers = min(self.workers, len(batches))
        return iter(
            DataLoader(
                _Encoded(items, encode),  # type: ignore[arg-type]
                batch_sampler=batches,
                num_workers=workers,
                collate_fn=_Collate(self.backbone.family, self.backbone.processor),
                generator=torch.Generator(),  # else the loader would draw from the global generator of a training run
                pin_memory=torch.cuda.is_available(),
                multiprocessing_context="fork" if workers else None,
            )
        )

    def _gather(self, places: list[int], rows: "list[Tensor]", num_items: int) -> np.ndarray:
        """Every rank's rows at their places, as float32 numpy."""
        import torch

        widths = gather_objects([rows[0].shape[1]] if rows else [])
        width = widths[0] if widths else 0
        mine = torch.cat(rows) if rows else torch.zeros((0, width), device=self.device)
        everyone, _ = gather_rows(mine)
        at, _ = gather_rows(torch.tensor(places, dtype=torch.int64, device=self.device))
        full = np.full((num_items, width), np.nan, dtype=np.float32)
        full[at.cpu().numpy()] = everyone.cpu().numpy()
        return full


def _without(content: SplitTexts, images: np.ndarray, texts: np.ndarray, bad_at: dict[int, BadItem]) -> SplitEmbeddings:
    """Leave out bad images, and texts that no other image has."""
    good = np.array([n not in bad_at for n in range(len(content.images))])
    pairs = content.pairs[good[content.pairs[:, 1]]]
    kept_texts, new_text = np.unique(pairs[:, 0], return_inverse=True)
    new_image = (np.cumsum(good) - 1)[pairs[:, 1]]
    kept_images = np.flatnonzero(good)
    counts = np.bincount(new_text, minlength=len(kept_texts))
    by_text = Positives(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), new_image.astype(np.int64))
    names = [content.image_groups[n] for n in kept_images]
    text_groups, image_groups = _groups(new_text, new_image, len(kept_texts), names)
    return SplitEmbeddings(
        image_embeds=images[kept_images],
        text_embeds=texts[kept_texts],
        image_ids=tuple(content.image_ids[n] for n in kept_images),
        images=tuple(content.images[n] for n in kept_images),
        texts=tuple(content.texts[n] for n in kept_texts),
        text_to_image=by_text,
        image_to_text=by_text.transposed(len(kept_images)),
        image_groups=image_groups,
        text_groups=text_groups,
        bad=tuple(bad_at[place] for place in sorted(bad_at)),
    )


def _groups(text: np.ndarray, image: np.ndarray, num_texts: int, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Groups of texts and of images: connected by a pair or by a sample group of the same name."""
    first: dict[str, int] = {}
    same = [(n, first.setdefault(name, n)) for n, name in enumerate(names) if name]
    left = np.concatenate([text, num_texts + np.array([a for a, _ in same], dtype=np.int64)])
    right = np.concatenate([num_texts + image, num_texts + np.array([b for _, b in same], dtype=np.int64)])
    groups = joined_groups(num_texts + len(names), left, right)
    return groups[:num_texts], groups[num_texts:]


def _shared_ranks(queries: np.ndarray, items: np.ndarray, positives: Positives, chunk: int) -> np.ndarray:
    """The ranks of all queries; each process works out a share of them."""
    share = np.array_split(np.arange(len(queries)), world_size())[rank()]
    mine = ranks_of_embeddings(queries[share], items, positives.take(share), chunk=chunk) if len(share) else np.zeros(0)
    return np.array([value for part in gather_objects([mine.tolist()]) for value in part])


@contextmanager
def _scoring(model: "nn.Module") -> Iterator[None]:
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


def _autocast(device: "torch.device | str", precision: str) -> AbstractContextManager[Any]:
    import torch

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtypes[precision])
