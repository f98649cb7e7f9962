"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images keep their shape, a token is a square of four patches."""

from typing import Any

from mmtune.backbones import _chat_twins_templates as templates
from mmtune.backbones import _chat_twins_tokenizers as tokenizers
from mmtune.backbones._chat_twins_parts import PIXELS, Twin, ids_of, published, text_of

VISION = {"depth": 2, "num_heads": 4, "patch_size": 4}
AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def qwen2_vl() -> Twin:
    """Qwen2-VL: an image is at most 16 tokens."""
    from transformers import Qwen2VLConfig, Qwen2VLProcessor

    tokenizer = tokenizers.qwen_tokenizer()
    text = text_of(tokenizer, num_key_value_heads=2, rope_parameters=AXES)
    vision = {**VISION, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    return _twin(Qwen2VLConfig, Qwen2VLProcessor, tokenizer, vision, text, templates.QWEN2_VL)


def qwen2_5_vl() -> Twin:
    """Qwen2.5-VL: the first layer of its image encoder sees windows of 16 pixels, the second the whole image."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor

    tokenizer = tokenizers.qwen_tokenizer()
    text = text_of(tokenizer, num_key_value_heads=2, rope_parameters=AXES)
    vision: dict[str, Any] = {**VISION, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    return _twin(Qwen2_5_VLConfig, Qwen2_5_VLProcessor, tokenizer, vision, text, templates.QWEN2_VL)


def qwen3_vl() -> Twin:
    """Qwen3-VL: the states after the first layer of its image encoder are added in the text model too."""
    from transformers import Qwen3VLConfig, Qwen3VLProcessor

    tokenizer = tokenizers.qwen_tokenizer()
    axes = {**AXES, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = text_of(tokenizer, num_key_value_heads=2, head_dim=8, rope_parameters=axes)
    vision: dict[str, Any] = {**VISION, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return _twin(Qwen3VLConfig, Qwen3VLProcessor, tokenizer, vision, text, templates.QWEN3_VL, seed=2)


def _twin(
    config_class: Any, processor_class: Any, tokenizer: Any, vision: Any, text: Any, template: str, seed: int = 0
) -> Twin:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    config = config_class(vision_config=vision, text_config=text, **ids_of(tokenizer, **ids))
    pictures = Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": PIXELS * PIXELS // 4, "longest_edge": PIXELS * PIXELS}
    )
    videos = "Qwen3VLVideoProcessor" if "3" in config_class.model_type else "Qwen2VLVideoProcessor"
    processor = published(processor_class, videos)(
        image_processor=pictures, tokenizer=tokenizer, chat_template=template
    )
    return Twin(config, processor, ("<|im_end|>", "<|endoftext|>"), seed=seed)
