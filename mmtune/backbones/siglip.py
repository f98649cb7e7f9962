"""SigLIP and SigLIP 2: two towers, attention pooling over patches, a learned temperature and bias.

Text is always padded to the full length and read at its last position, without an attention mask: that is how the
checkpoints were trained. SigLIP 2 with a fixed resolution is ``model_type: siglip``; ``siglip2`` (NaFlex) keeps an
image's proportions and holds patches instead of pixels.

Source: Zhai et al. 2023, https://arxiv.org/abs/2303.15343; Tschannen et al. 2025, https://arxiv.org/abs/2502.14786;
google-research/big_vision ``models/proj/image_text/text_transformer.py`` (``pool_type="last"``).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones._dual_encoder import (
    embed_media,
    embed_text,
    encode_media,
    num_layers,
    spread_weights,
    stack_images,
)
from mmtune.backbones._family import Family
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FAMILY",
    "check",
    "embed_media",
    "embed_text",
    "encode_media",
    "encode_text",
    "num_layers",
    "num_tokens",
    "pad",
    "temperature",
    "tiny",
]

FAMILY = Family(
    name="siglip",
    model_types=("siglip", "siglip2"),
    abilities=frozenset({"embed"}),
    parts={"vision": "vision_model", "text": "text_model"},
    layers={"vision": "vision_model.encoder.layers", "text": "text_model.encoder.layers"},
    heads={"vision": ("vision_model.head",), "text": ("text_model.head",)},
    full_precision=("vision_model.head", "text_model.head", "vision_model.embeddings"),
    temperature=("logit_scale", "logit_bias"),
    processor_classes={"siglip": "SiglipProcessor", "siglip2": "Siglip2Processor"},
    ignored_weights=(r".*\.position_ids",),
    stems={"vision": ("vision_model.embeddings",), "text": ("text_model.embeddings",)},
)


def encode_text(processor: Any, text: str) -> "dict[str, Tensor]":
    """One text, lowercased, padded or cut to the tower's length: ``{"input_ids": int64[L]}``, L the same for all.

    Not every repository's tokenizer lowercases by itself (SigLIP 2 ships a plain Gemma tokenizer), but all checkpoints
    were trained on lowercase text.

    Source: transformers ``SiglipTokenizer`` (``do_lower_case``) and ``Siglip2Tokenizer`` ("SigLIP2 training default").
    """
    tokenizer = processor.tokenizer
    encoded = tokenizer(
        text.lower(),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        padding_side="right",
        return_tensors="pt",
    )
    return {"input_ids": encoded["input_ids"][0]}


def num_tokens(processor: Any, text: str) -> int:
    """Tokens of a text with its end token, before padding and any cut."""
    return len(processor.tokenizer(text.lower(), truncation=False, verbose=False)["input_ids"])


def pad(processor: Any, encoded: "Sequence[Mapping[str, Tensor]]") -> "dict[str, Tensor]":
    """Encoded samples (images, texts or both in one dict each) as one batch; texts have one length already."""
    import torch

    batch = stack_images(encoded)
    if encoded and "input_ids" in encoded[0]:
        batch["input_ids"] = torch.stack([one["input_ids"] for one in encoded])
    return batch


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """Log scale float[] and bias float[], as differentiable views of the live parameters (which have shape [1])."""
    return model.logit_scale.reshape(()), model.logit_bias.reshape(())  # type: ignore[operator]


def check(model: "nn.Module", processor: Any) -> None:
    """See that texts can be padded as the checkpoint was trained.

    Raises:
        BackboneError: the tokenizer cannot pad, or cuts before the text tower's last position.
    """
    tokenizer = processor.tokenizer
    limit = model.config.text_config.max_position_embeddings  # type: ignore[union-attr]
    if tokenizer.pad_token_id is None:
        raise BackboneError("the tokenizer has no padding token, and SigLIP pads every text")
    if tokenizer.model_max_length != limit:
        raise BackboneError(
            f"the tokenizer cuts at {tokenizer.model_max_length} tokens (tokenizer_config.json, model_max_length), but "
            f"the text tower is read at position {limit}: set model_max_length to {limit}"
        )


def tiny(model_type: str = "siglip") -> "tuple[nn.Module, Any]":
    """A SiglipModel (or Siglip2Model) of width 32 with two layers per tower: random, always the same.

    The NaFlex twin has the patch size and lengths of the published checkpoints, because ``Siglip2Processor`` uses
    those whatever its image processor and tokenizer say.
    """
    import torch
    import transformers as hf
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    length = 64 if model_type == "siglip2" else 16
    tokenizer = tiny_tokenizer(length)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": length, "projection_size": 32}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if model_type == "siglip2":
            vision = {**tower, "patch_size": 16, "num_patches": 256}
            model: Any = hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision))
            pictures: Any = Siglip2ImageProcessorPil()
        else:
            vision = {**tower, "image_size": 32, "patch_size": 8}
            model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision))
            pictures = SiglipImageProcessorPil(size={"height": 32, "width": 32})
        with torch.no_grad():
            model.logit_scale.fill_(2.3026)
            model.logit_bias.fill_(-10.0)
    spread_weights(model, seed=0)
    made = getattr(hf, FAMILY.processor_classes[model_type])
    return model, made(image_processor=pictures, tokenizer=tokenizer)


def tiny_tokenizer(length: int) -> Any:
    """A Siglip2Tokenizer over bytes and a few merges, which ends every text with its end token."""
    from tokenizers import processors
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("o", "n"), ("l", "e")]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    tokenizer = Siglip2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=length
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer
