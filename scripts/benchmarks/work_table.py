"""The works that are timed side by side: model, adapter, batch, data, what is compared, and the target."""

from dataclasses import dataclass, replace
from typing import Literal

CLIP_BOTH = ("vision", "text")
SIZES = {"base32": (768, 12, 32), "large14": (1024, 24, 14)}


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes:
        title: what the table calls it.
        family: ``clip``, ``blip`` or ``llava``.
        model: which sizes; ``tiny`` is for trying the scripts out.
        parts, targets, layers: where LoRA goes, in a recipe's words.
        batch: samples per step.
        images: JPEG files; times captions, over batch, are the steps of an epoch.
        captions: captions per image, each an item of the epoch.
        epochs: how many are run.
        compared: seconds of the epochs after the first (``later``), or of all of them (``all``).
        repeats: paired runs of every arm.
        target: how many times faster than Trainer + peft is wanted.
        peers: who else is measured, beside mmtune and ``Trainer``.
    """

    title: str
    family: Literal["clip", "blip", "llava"]
    model: str
    parts: tuple[str, ...]
    targets: tuple[str, ...]
    layers: str
    batch: int
    images: int
    captions: int
    epochs: int
    compared: Literal["later", "all"]
    repeats: int
    target: float
    peers: tuple[str, ...] = ()
    rank: int = 8

    @property
    def items(self) -> int:
        """Image-caption pairs in an epoch."""
        return self.images * self.captions

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return self.items // self.batch


_CLIP = Work(
    title="CLIP ViT-B/32, LoRA q,v in the last 4 layers of both towers, epoch after the first",
    family="clip",
    model="base32",
    parts=CLIP_BOTH,
    targets=("q_proj", "v_proj"),
    layers="last 4",
    batch=32,
    images=96,
    captions=1,
    epochs=2,
    compared="later",
    repeats=3,
    target=2.2,
)
_BLIP = replace(
    _CLIP,
    title="BLIP base captioning, 384 px, LoRA in the decoder, epoch after the first",
    family="blip",
    model="base",
    parts=("text",),
    targets=("query", "value"),
    layers="all",
    batch=4,
    images=12,
    repeats=2,
    target=4.0,
)

WORKS = {
    "clip_last4": replace(_CLIP, peers=("trainer_kept", "sentence_transformers")),
    "clip_last4_five_epochs": replace(
        _CLIP,
        title="CLIP ViT-B/32, LoRA q,v in the last 4 layers, 5 epochs in all, decoding included",
        images=64,
        epochs=5,
        compared="all",
        repeats=2,
        target=1.6,
    ),
    "clip_large_last4": replace(
        _CLIP,
        title="CLIP ViT-L/14 sizes (few samples), LoRA q,v in the last 4 layers, epoch after the first",
        model="large14",
        batch=8,
        images=16,
        repeats=2,
        target=2.8,
    ),
    "clip_all": replace(
        _CLIP,
        title="CLIP ViT-B/32, LoRA q,v in all layers (nothing to cache)",
        layers="all",
        images=64,
        target=1.15,
    ),
    "clip_text": replace(
        _CLIP,
        title="CLIP ViT-B/32, LoRA q,v in all layers of the text tower only, epoch after the first",
        parts=("text",),
        layers="all",
        repeats=2,
    ),
    "blip_decoder": _BLIP,
    "blip_five_captions": replace(
        _BLIP,
        title="BLIP base captioning, LoRA in the decoder, 5 captions per image, 3 epochs in all",
        images=4,
        captions=5,
        epochs=3,
        compared="all",
        target=3.0,
    ),
    "llava_small": replace(
        _BLIP,
        title="LLaVA-style small twin, ViT-B/16 tower, LoRA in the text part, epoch after the first",
        family="llava",
        model="small",
        targets=("q_proj", "v_proj"),
        batch=8,
        images=24,
        target=2.0,
        peers=("trl",),
    ),
}

FEWER_IMAGES = {
    "clip_last4": 64,
    "clip_last4_five_epochs": 32,
    "clip_large_last4": 8,
    "blip_decoder": 8,
    "clip_text": 64,
}


def quick(name: str) -> Work:
    """The same work with fewer steps, twice."""
    work = WORKS[name]
    return replace(work, images=FEWER_IMAGES.get(name, work.images), repeats=2)


def tiny(name: str) -> Work:
    """The same work on a model of width 32: shows that everything runs, measures nothing."""
    work = WORKS[name]
    return replace(work, model="tiny", batch=2, images=2 if work.captions > 1 else 4, repeats=2, layers=_tiny(work))


def _tiny(work: Work) -> str:
    return "last 1" if work.layers.startswith("last") else work.layers


def choose(name: str, *, is_quick: bool, is_tiny: bool) -> Work:
    """The work in the size that was asked for."""
    return tiny(name) if is_tiny else quick(name) if is_quick else WORKS[name]
