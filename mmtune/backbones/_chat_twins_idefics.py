"""Tiny Idefics3 and SmolVLM: large images are cut into tiles, each with its own mark, and shown whole at the end."""

from typing import Any

from mmtune.backbones import _chat_twins_templates as templates
from mmtune.backbones import _chat_twins_tokenizers as tokenizers
from mmtune.backbones._chat_twins_parts import DROPOUT, LAYERS, PIXELS, Twin, ids_of, published, text_of

MARKS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
PLACES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))


def idefics3() -> Twin:
    """Idefics3 with LLaMA 3: up to four tiles and the whole image, one image token each between two marks."""
    from transformers import Idefics3Config, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = tokenizers.llama3_tokenizer(*MARKS, *PLACES)
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 2 * PIXELS}, max_image_size={"longest_edge": PIXELS})
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=1, chat_template=templates.IDEFICS3)
    config = Idefics3Config(**_settings(tokenizer))
    return Twin(config, processor, ("<end_of_utterance>", "<|end_of_text|>"))


def smolvlm() -> Twin:
    """SmolVLM with SmolLM 2: as Idefics3."""
    from transformers import SmolVLMConfig, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    tokenizer = tokenizers.smollm_tokenizer(*MARKS, *PLACES)
    pictures = SmolVLMImageProcessorPil(size={"longest_edge": 2 * PIXELS}, max_image_size={"longest_edge": PIXELS})
    processor = published(SmolVLMProcessor, "SmolVLMVideoProcessor")(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=None,
        image_seq_len=1,
        chat_template=templates.SMOLVLM,
    )
    return Twin(SmolVLMConfig(**_settings(tokenizer)), processor, ("<end_of_utterance>",))


def _settings(tokenizer: Any) -> dict[str, Any]:
    return {
        "vision_config": {**LAYERS, **DROPOUT, "image_size": PIXELS, "patch_size": 16},
        "text_config": text_of(tokenizer, model_type="llama"),
        "scale_factor": 2,
        **ids_of(tokenizer, image_token_id="<image>"),
    }
