"""What a split holds once every image and every different caption is counted once, and its embeddings.

Letters: I images, T texts, D embedding width, M pairs (text, image).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.ground.records import BadItem, MediaReference, Sample
from mmtune.ground.seeding import text_key
from mmtune.metrics._bootstrap import joined_groups
from mmtune.metrics._ranking import Positives


@dataclass(frozen=True)
class SplitTexts:
    """A split without its pixels: which images (or sounds) and texts there are and which belong together.

    Attributes:
        images: one reference per different image (by ``key``), in the order of the samples.
        image_ids: the id of the first sample that shows each image.
        texts: one text per different caption (by ``text_key``), in the order of the samples.
        pairs: int64[M, 2], (text, image), each pair once, sorted; a caption in ``captions`` or ``also_true``.
        image_groups: what a sample says of its ``group``, "" where it says nothing.
    """

    images: tuple[MediaReference, ...]
    image_ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: np.ndarray
    image_groups: tuple[str, ...]


@dataclass(frozen=True)
class SplitEmbeddings:
    """A split as a backbone sees it.

    Attributes:
        image_embeds: float32[I, D], L2-normalised; float32[I, Q, D] where an image has several vectors, of which
            the nearest counts.
        text_embeds: float32[T, D], L2-normalised.
        image_ids: the id of each image's first sample.
        images: the references behind ``image_embeds``, not decoded.
        texts: the captions behind ``text_embeds``.
        text_to_image: the right images of every text; every image is right for some text.
        image_groups: int64[I], connected through shared images, captions or sample groups.
        text_groups: int64[T], in the same numbering.
        bad: images that could not be read; they and the texts that only they show are in no array.
        modality: what stands where this class says image: ``image`` or ``audio``.
    """

    image_embeds: np.ndarray
    text_embeds: np.ndarray
    image_ids: tuple[str, ...]
    images: tuple[MediaReference, ...]
    texts: tuple[str, ...]
    text_to_image: Positives
    image_groups: np.ndarray
    text_groups: np.ndarray
    bad: tuple[BadItem, ...]
    modality: str = "image"

    @property
    def num_groups(self) -> int:
        """How many groups the bootstrap can draw from."""
        return int(self.text_groups.max()) + 1


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
        images.setdefault(sample.media.key, (len(images), sample))
        for caption in sample.captions:
            texts.setdefault(text_key(caption), (len(texts), caption))
    pairs = {
        (texts[key][0], images[sample.media.key][0])
        for sample in samples
        for key in map(text_key, (*sample.captions, *sample.also_true))
        if key in texts
    }
    firsts = [sample for _, sample in images.values()]
    return SplitTexts(
        images=tuple(sample.media for sample in firsts),
        image_ids=tuple(sample.id for sample in firsts),
        texts=tuple(text for _, text in texts.values()),
        pairs=np.array(sorted(pairs), dtype=np.int64),
        image_groups=tuple(sample.group for sample in firsts),
    )


def assemble(
    content: SplitTexts,
    images: np.ndarray,
    texts: np.ndarray,
    bad_at: Mapping[int, BadItem],
    modality: str = "image",
) -> SplitEmbeddings:
    """Put embeddings and pairs together, without bad images and texts that no other image has.

    Args:
        content: the split.
        images: float32[I, D], one row per image of ``content``; rows of bad images are not read.
        texts: float32[T, D].
        bad_at: image -> why it is left out.
        modality: what the images are.
    """
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
        image_groups=image_groups,
        text_groups=text_groups,
        bad=tuple(bad_at[place] for place in sorted(bad_at)),
        modality=modality,
    )


def _groups(text: np.ndarray, image: np.ndarray, num_texts: int, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Groups of texts and of images: connected by a pair or by a sample group of the same name."""
    first: dict[str, int] = {}
    same = [(n, first.setdefault(name, n)) for n, name in enumerate(names) if name]
    left = np.concatenate([text, num_texts + np.array([a for a, _ in same], dtype=np.int64)])
    right = np.concatenate([num_texts + image, num_texts + np.array([b for _, b in same], dtype=np.int64)])
    groups = joined_groups(num_texts + len(names), left, right)
    return groups[:num_texts], groups[num_texts:]
