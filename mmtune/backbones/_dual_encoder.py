"""What all families with one tower per modality share.

Letters: B samples, C/H/W image channels, height, width, L text tokens, D embedding width.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones._pixel_tables import encode_pixels, expand_pixels
from mmtune.ground.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

MAX_RESIZED_PIXELS = 50_000_000
"""Most pixels an image may have after its short side was resized and before the middle is cut out."""

IMAGE_KEYS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


def num_layers(config: Mapping[str, Any], *, default: int = 12) -> dict[str, int]:
    """Layers per tower. Old files hold ``text_config_dict``, which replaces ``text_config`` where it is present.

    Source: transformers ``CLIPConfig.__post_init__``; a value that is absent has the class's default.
    """
    counts = {}
    for part in ("vision", "text"):
        tower = config.get(f"{part}_config_dict")
        tower = tower if tower is not None else config.get(f"{part}_config") or {}
        counts[part] = int(tower.get("num_hidden_layers", default))
    return counts


def encode_media(processor: Any, image: "Image") -> "dict[str, Tensor]":
    """One image as the image processor makes it: ``{"pixel_values": float32[C, H, W]}`` (and its companions).

    Raises:
        DataError: the image is so long and thin that resizing its short side would fill the memory.
    """
    return expand_pixels(processor, encode_bytes(processor, image))


def encode_bytes(processor: Any, image: "Image") -> "dict[str, Tensor]":
    """As ``encode_media``, with pixels as bytes uint8[C, H, W] where ``expand_pixels`` can make the floats of them.

    Raises:
        DataError: as there.
    """
    _refuse_sliver(processor.image_processor, image)
    if (pixels := encode_pixels(processor, image)) is not None:
        return pixels
    encoded = processor.image_processor(images=image, return_tensors="pt")
    return {key: encoded[key][0] for key in IMAGE_KEYS if key in encoded}


def _refuse_sliver(image_processor: Any, image: "Image") -> None:
    edge = (getattr(image_processor, "size", None) or {}).get("shortest_edge")
    if edge is None:
        return
    short, long = sorted(image.size)
    if edge * edge * long / short > MAX_RESIZED_PIXELS:
        raise DataError(
            f"image of {image.width} x {image.height} pixels is too long and thin: with its short side at {edge} it "
            f"would have more than {MAX_RESIZED_PIXELS:,} pixels"
        )


def num_tokens(processor: Any, text: str) -> int:
    """Tokens of a text with its special tokens, before any cut."""
    return len(processor.tokenizer(text, truncation=False, verbose=False)["input_ids"])


def stack_images(encoded: "Sequence[Mapping[str, Tensor]]") -> "dict[str, Tensor]":
    """``{"pixel_values": float32[B, C, H, W]}`` (and its companions), empty where no image was encoded."""
    import torch

    keys = [key for key in IMAGE_KEYS if encoded and key in encoded[0]]
    return {key: torch.stack([one[key] for one in encoded]) for key in keys}


def normalise(features: "Tensor") -> "Tensor":
    """L2-normalise float[B, D] in float32 at least: half precision comes back as float32, float64 stays."""
    import torch

    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    return torch.nn.functional.normalize(features, dim=-1, eps=1e-12)


def embed_media(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["pixel_values"]``, L2-normalised, float32 at least."""
    inputs = {key: batch[key] for key in IMAGE_KEYS if key in batch}
    return normalise(model.get_image_features(**inputs).pooler_output)  # type: ignore[operator]


def embed_text(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["input_ids"]`` int64[B, L], L2-normalised, float32 at least."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
    return normalise(model.get_text_features(**inputs).pooler_output)  # type: ignore[operator]


def spread_weights(model: "nn.Module", seed: int) -> None:
    """Give a tiny twin weights under which different inputs get clearly different embeddings.

    With the classes' own initialisation all embeddings of a random model nearly coincide, and a test that
    compares embeddings would pass whatever the code does.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        fan_in = parameter[0].numel()
        spread = 0.5 if "embedding" in name and "patch" not in name else 1.5 / fan_in**0.5
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
