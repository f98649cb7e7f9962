"""Tiny LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, InternVL: an image encoder, a projector and a text model in a row."""

from mmtune.backbones import _chat_twins_templates as templates
from mmtune.backbones import _chat_twins_tokenizers as tokenizers
from mmtune.backbones._chat_twins_parts import (
    DROPOUT,
    LAYERS,
    PIXELS,
    SQUARE,
    Twin,
    clip_vision,
    ids_of,
    published,
    siglip_vision,
    text_of,
)

GRID = [[PIXELS, PIXELS], [PIXELS, 2 * PIXELS], [2 * PIXELS, PIXELS]]
"""Heights and widths that an image is cut into tiles of."""


def llava() -> Twin:
    """LLaVA-1.5: an image is 16 tokens."""
    from transformers import LlavaConfig, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tokenizers.llama_tokenizer("<image>")
    config = LlavaConfig(
        vision_config=clip_vision(patch_size=8),
        text_config=text_of(tokenizer, model_type="llama"),
        image_seq_length=16,
        **ids_of(tokenizer, image_token_index="<image>"),
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=templates.LLAVA,
    )
    return Twin(config, processor, ("</s>",))


def llava_next() -> Twin:
    """LLaVA-NeXT with Mistral: an image in 4 tokens, then its tiles in 4 each with line ends, without their padding."""
    from transformers import LlavaNextConfig, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = tokenizers.llama_tokenizer("<image>")
    config = LlavaNextConfig(
        vision_config=clip_vision(patch_size=16),
        text_config=text_of(tokenizer, model_type="mistral", num_key_value_heads=2, sliding_window=None),
        image_grid_pinpoints=GRID[1:],
        **ids_of(tokenizer, image_token_index="<image>"),
    )
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": PIXELS}, crop_size=SQUARE, image_grid_pinpoints=GRID[1:]
    )
    processor = LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=16,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=templates.LLAVA_NEXT,
    )
    return Twin(config, processor, ("</s>",))


def llava_onevision() -> Twin:
    """LLaVA-OneVision with Qwen 2: as LLaVA-NeXT, without tiles where a conversation has several images."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    tokenizer = tokenizers.qwen_tokenizer(extra=("<|im_start|>", "<|im_end|>", "<image>", "<video>"))
    config = LlavaOnevisionConfig(
        vision_config=siglip_vision(patch_size=16),
        text_config=text_of(tokenizer, model_type="qwen2", num_key_value_heads=2),
        image_grid_pinpoints=GRID,
        **ids_of(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    processor = published(LlavaOnevisionProcessor, "LlavaOnevisionVideoProcessor")(
        image_processor=LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=GRID),
        tokenizer=tokenizer,
        video_processor=None,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=templates.LLAVA_ONEVISION,
    )
    return Twin(config, processor, ("<|im_end|>", "<|endoftext|>"))


def internvl() -> Twin:
    """InternVL 3 with Qwen 2: up to two tiles and the whole image, 4 tokens each."""
    from transformers import InternVLConfig, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    named["video_token"] = "<video>"
    tokenizer = tokenizers.qwen_tokenizer(extra=("<|im_start|>", "<|im_end|>"), **named)
    config = InternVLConfig(
        vision_config={**LAYERS, **DROPOUT, "image_size": [PIXELS, PIXELS], "patch_size": [8, 8]},
        text_config=text_of(tokenizer, model_type="qwen2", num_key_value_heads=2),
        image_seq_length=4,
        **ids_of(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    processor = published(InternVLProcessor, "InternVLVideoProcessor")(
        image_processor=GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=2),
        tokenizer=tokenizer,
        video_processor=None,
        image_seq_length=4,
        chat_template=templates.INTERNVL,
    )
    return Twin(config, processor, ("<|im_end|>", "<|endoftext|>"))
