"""GIT: a CLIP-like ViT and a decoder that reads the image's states before the words.

The image has no tokens among the words: its states stand before them, and logits cover both. ``token_states`` gives
those of the words alone. What is asked stands right before what is said, between the class token and the separator
that ends it: ``[CLS] question answer [SEP]``; a caption follows the class token.

Models for videos (``num_image_with_embedding``) are refused: they read several frames for one text.

Source: Wang et al. 2022, https://arxiv.org/abs/2205.14100; transformers ``GitForCausalLM``.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _bert_text
from mmtune.backbones._bert_text import IGNORED_LABEL, pad, tiny_tokenizer
from mmtune.backbones._dual_encoder import encode_media, spread_weights
from mmtune.backbones._family import Family
from mmtune.backbones._single_exchange import (
    Exchange,
    answer_ids,
    read_exchange,
    refuse_early_end,
    refuse_longer,
    say,
    word_ids,
)
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from mmtune.ground.records import Turn

__all__ = [
    "FAMILY",
    "check",
    "encode_prompt",
    "encode_turns",
    "family_for",
    "generate",
    "num_layers",
    "pad",
    "text_limit",
    "tiny",
    "token_states",
]

PROJECTION = r"git\.visual_projection\.visual_projection\.0"

FAMILY = Family(
    name="git",
    model_types=("git",),
    abilities=frozenset({"generate"}),
    parts={"vision": "git.image_encoder", "connector": "git.visual_projection", "text": "git.encoder"},
    layers={"vision": "git.image_encoder.vision_model.encoder.layers", "text": "git.encoder.layer"},
    heads={"vision": (), "connector": (), "text": ()},
    full_precision=("git.visual_projection", "output"),
    temperature=(),
    processor_classes={"git": "GitProcessor"},
    auto_class="GitForCausalLM",
    targets={
        "attention": {"connector": PROJECTION},  # it is one linear layer: either word means it
        "mlp": {"text": r"git\.encoder\.layer\.\d+\.(intermediate|output)\.dense", "connector": PROJECTION},
    },
    ignored_weights=(r".*\.position_ids",),
    stems={"vision": ("git.image_encoder.vision_model.embeddings", "git.image_encoder.vision_model.pre_layrnorm")},
    head="output",
)


def family_for(config: Mapping[str, Any]) -> Family:
    """The record, for models that read one image.

    Raises:
        BackboneError: config.json names a class without the head that makes words, or a model for videos.
    """
    named = (config.get("architectures") or ["none"])[0]
    if named != FAMILY.auto_class:
        raise BackboneError(
            f"config.json names the architecture {named}, and of the GIT models {FAMILY.auto_class} alone makes words "
            f"(such as microsoft/git-base)"
        )
    if config.get("num_image_with_embedding") is not None:
        raise BackboneError(
            f"num_image_with_embedding is {config['num_image_with_embedding']} in config.json: this model reads the "
            f"frames of a video; take one for images (such as microsoft/git-base)"
        )
    return FAMILY


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Layers of the ViT and of the decoder; a value that is absent has the class's default."""
    vision = config.get("vision_config") or {}
    return {"vision": int(vision.get("num_hidden_layers", 12)), "text": int(config.get("num_hidden_layers", 6))}


def text_limit(config: Any) -> int:
    """Longest text in tokens, question and answer together."""
    return int(config.max_position_embeddings)


def encode_turns(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """``input_ids``, ``attention_mask`` and ``labels`` int64[L] and ``pixel_values`` float32[C, H, W].

    Raises:
        DataError: not one question and one answer about one image, or longer than the limit.
    """
    exchange = read_exchange(turns, images, answered=True)
    said, end = answer_ids(processor, exchange.answer), processor.tokenizer.sep_token_id
    refuse_early_end(processor, said, end)
    return _encode(processor, exchange, [*said, end], answered=True)


def encode_prompt(processor: Any, turns: "Sequence[Turn]", images: "Sequence[Image]") -> "dict[str, Tensor]":
    """As ``encode_turns``, up to where the answer begins and without labels."""
    return _encode(processor, read_exchange(turns, images, answered=False), [], answered=False)


def _encode(processor: Any, exchange: Exchange, said: list[int], *, answered: bool) -> "dict[str, Tensor]":
    import torch

    asked = [processor.tokenizer.cls_token_id, *word_ids(processor, exchange.prompt)]
    what = "the text (question and answer)" if answered else "the question"
    refuse_longer(len(asked) + len(said), processor.tokenizer.model_max_length, what)
    ids = torch.tensor(asked + said)
    encoded = {**encode_media(processor, exchange.image), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**encoded, "labels": torch.tensor([IGNORED_LABEL] * len(asked) + said)} if answered else encoded


def token_states(model: "nn.Module", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """States float[B, L, D] of the words; those of the image, which stand before them, are left out."""
    given = {key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    states: Tensor = model.git(**given, use_cache=False).last_hidden_state  # type: ignore[operator]
    return states[:, -given["input_ids"].shape[1] :]


def generate(
    model: "nn.Module", processor: Any, batch: "Mapping[str, Tensor]", *, max_new_tokens: int, num_beams: int = 1
) -> list[str]:
    """What the model says after each prompt of a batch that is padded on the left; the likeliest token each time.

    Raises:
        DataError: prompt and answer could become longer than the model's positions.
    """
    refuse_longer(
        int(batch["attention_mask"].sum(1).max()) + max_new_tokens,
        text_limit(model.config),
        "the longest question with max_new_tokens",
    )
    end = processor.tokenizer.sep_token_id
    made = model.generate(  # type: ignore[operator]
        **{key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")},
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    return [say(processor, row.tolist(), end) for row in made[:, batch["input_ids"].shape[1] :]]


def check(model: "nn.Module", processor: Any) -> None:
    """See that texts begin and end with the tokens that the model begins and ends with.

    Raises:
        BackboneError: the tokenizer cannot pad, or config.json and tokenizer do not belong together.
    """
    _bert_text.check(model, processor)
    tokenizer: Any = processor.tokenizer
    config: Any = model.config
    if tokenizer.sep_token_id != config.eos_token_id:
        raise BackboneError(
            f"eos_token_id is {config.eos_token_id} in config.json, and the tokenizer ends texts with "
            f"{tokenizer.sep_token!r} (id {tokenizer.sep_token_id}): config.json and tokenizer do not belong together"
        )
    if len(tokenizer) > config.vocab_size:
        raise BackboneError(
            f"the tokenizer knows {len(tokenizer)} tokens, vocab_size is {config.vocab_size} in config.json: "
            f"config.json and tokenizer do not belong together"
        )


def tiny(model_type: str = "git", architecture: str = "GitForCausalLM") -> "tuple[nn.Module, Any]":
    """A GitForCausalLM of width 32 with two layers per tower and a small BertTokenizer, with dropout."""
    import torch
    from transformers import GitConfig, GitForCausalLM, GitProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tiny_tokenizer(256)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = GitConfig(
        **tower,
        vision_config={**tower, "image_size": 32, "patch_size": 8, "attention_dropout": 0.1},
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GitForCausalLM(config)
    spread_weights(model, seed=0)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return model, GitProcessor(image_processor=pictures, tokenizer=tokenizer)
