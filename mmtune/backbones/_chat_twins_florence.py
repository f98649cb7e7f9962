"""Tiny Florence-2: a DaViT image encoder of four stages and BART; an encoder-decoder, one image, no chat."""

from typing import Any

from mmtune.backbones import _chat_twins_tokenizers as tokenizers
from mmtune.backbones._chat_twins_parts import Twin, ids_of

SIZE = {"height": 64, "width": 64}


def florence2() -> Twin:
    """Florence-2: an image is 5 tokens, the mean of its four squares and the four; generation with three beams."""
    from transformers import Florence2Config, Florence2Processor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tokenizers.bart_tokenizer(image_token="<image>")
    stages: dict[str, Any] = {"depths": [1, 1, 1, 1], "embed_dim": [16, 16, 32, 32], "num_heads": [2, 2, 4, 4]}
    stages |= {"num_groups": [2, 2, 4, 4], "window_size": 4, "projection_dim": 32}
    text: dict[str, Any] = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "vocab_size": len(tokenizer),
        "dropout": 0.1,
    }
    text |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": tokenizers.LIMIT}
    text |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "model_type": "bart"}
    config = Florence2Config(vision_config=stages, text_config=text, **ids_of(tokenizer, image_token_id="<image>"))
    pictures = CLIPImageProcessorPil(size=SIZE, do_center_crop=False, image_seq_length=5)
    processor = Florence2Processor(image_processor=pictures, tokenizer=tokenizer)
    generation = {"decoder_start_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2}
    generation |= {"num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True}
    return Twin(config, processor, ("</s>",), generation)
