"""Tiny chat models: transformers' classes with random weights, their own processors, tokenizers and chat templates."""

from typing import TYPE_CHECKING, Any

from mmtune.backbones import _chat_twins_florence as florence
from mmtune.backbones import _chat_twins_gemma as gemma
from mmtune.backbones import _chat_twins_idefics as idefics
from mmtune.backbones import _chat_twins_llava as llava
from mmtune.backbones import _chat_twins_qwen as qwen
from mmtune.backbones._dual_encoder import spread_weights

if TYPE_CHECKING:
    from torch import nn

TWINS = {
    "llava": llava.llava,
    "qwen2_5_vl": qwen.qwen2_5_vl,
    "idefics3": idefics.idefics3,
    "llava_next": llava.llava_next,
    "llava_onevision": llava.llava_onevision,
    "qwen2_vl": qwen.qwen2_vl,
    "qwen3_vl": qwen.qwen3_vl,
    "smolvlm": idefics.smolvlm,
    "paligemma": gemma.paligemma,
    "gemma3": gemma.gemma3,
    "internvl": llava.internvl,
    "florence2": florence.florence2,
}
"""Model type -> what its tiny twin is made from."""


def tiny_chat(model_type: str) -> "tuple[nn.Module, Any]":
    """The tiny twin of one of ``TWINS``: width 32, two layers per part (three where the last one is never read).

    Saved, it is a folder like a published model's; a processor with a video half is saved with its file too.
    """
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    twin = TWINS[model_type]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(twin.config)
    spread_weights(model, twin.seed)
    if model.config.tie_word_embeddings:  # else the word just said is always the likeliest
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.2)
    tokenizer = twin.processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(twin.ends)),
        pad_token_id=tokenizer.pad_token_id,
        **twin.generation,
    )
    return model.eval(), twin.processor
