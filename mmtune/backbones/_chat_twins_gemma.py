"""Tiny PaliGemma and Gemma 3: a SigLIP image encoder and Gemma; image tokens (and a prefix) see one another."""

from mmtune.backbones import _chat_twins_templates as templates
from mmtune.backbones import _chat_twins_tokenizers as tokenizers
from mmtune.backbones._chat_twins_parts import SQUARE, Twin, ids_of, siglip_vision, text_of


def paligemma() -> Twin:
    """PaliGemma: no chat but a prefix and a suffix, one image of 16 tokens before them."""
    from transformers import PaliGemmaConfig, PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = tokenizers.gemma_tokenizer("<image>")
    pictures = SiglipImageProcessorPil(size=SQUARE, image_seq_length=16)
    processor = PaliGemmaProcessor(image_processor=pictures, tokenizer=tokenizer)
    config = PaliGemmaConfig(
        vision_config=siglip_vision(patch_size=8),
        text_config=text_of(tokenizer, model_type="gemma", num_key_value_heads=1, head_dim=8),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tokenizer),
        **ids_of(tokenizer, image_token_index="<image>"),
    )
    return Twin(config, processor, ("<eos>",))


def gemma3() -> Twin:
    """Gemma 3: an image is 4 tokens between two marks and empty lines; one layer sees the last 64 tokens, one all."""
    from transformers import Gemma3Config, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = tokenizers.gemma_tokenizer("<start_of_turn>", "<end_of_turn>", **named)
    text = text_of(tokenizer, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=64)
    config = Gemma3Config(
        vision_config=siglip_vision(patch_size=8),
        text_config={**text, "layer_types": ["sliding_attention", "full_attention"]},
        mm_tokens_per_image=4,
        **ids_of(
            tokenizer,
            boi_token_index=named["boi_token"],
            eoi_token_index=named["eoi_token"],
            image_token_index=named["image_token"],
        ),
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size=SQUARE),
        tokenizer=tokenizer,
        chat_template=templates.GEMMA3,
        image_seq_length=4,
    )
    return Twin(config, processor, ("<end_of_turn>", "<eos>"), seed=1)
