"""Tokenizers of tiny chat models: the real classes over a few dozen merges; any text has tokens and comes back."""

import json
from collections.abc import Sequence
from typing import Any

SENTENCES = (
    "What is in the picture? A red circle on a blue square, and a small black dog next to it.",
    "How many apples are on the table? There are three of them. What colour is the line? It is green.",
    "Describe the image in a few words, please. Yes, no, the answer is one or two.",
)
"""What the merges are learned from."""

LIMIT = 512
"""Longest conversation in tokens, image tokens included."""

QWEN = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def learned(pre_tokenizer: Any, alphabet: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The tokens of a byte-pair vocabulary learned from ``SENTENCES``, alphabet first, and its merges."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizer
    trainer = BpeTrainer(vocab_size=len(alphabet) + 60, initial_alphabet=sorted(alphabet), show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    model = json.loads(made.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [(left, right) for left, right in model["merges"]]


def over_bytes(*first: str) -> dict[str, Any]:
    """Vocabulary and merges over bytes (GPT-2's way), the tokens in ``first`` at the beginning."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens, merges = learned(ByteLevel(add_prefix_space=False), ByteLevel.alphabet())
    return {"vocab": numbered(first, tokens), "merges": merges}


def over_pieces(*first: str) -> dict[str, Any]:
    """Vocabulary and merges over characters with U+2581 for the space and bytes for the rest (SentencePiece's way)."""
    from tokenizers.pre_tokenizers import Metaspace

    letters = sorted({"▁", *"".join(SENTENCES).replace(" ", "▁"), *"abcdefghijklmnopqrstuvwxyz0123456789:\n"})
    tokens, merges = learned(Metaspace(), letters)
    return {"vocab": numbered(first, [f"<0x{byte:02X}>" for byte in range(256)], tokens), "merges": merges}


def numbered(*groups: Sequence[str]) -> dict[str, int]:
    """Every token once, numbered in the order of the groups."""
    tokens = dict.fromkeys(token for group in groups for token in group)
    return {token: index for index, token in enumerate(tokens)}


def llama_tokenizer(*extra: str) -> Any:
    """LLaMA 2's: SentencePiece's way, ``<s>`` first, ``</s>`` at the end; then ``extra`` and ``<pad>``."""
    from transformers import LlamaTokenizer

    return LlamaTokenizer(
        **over_pieces("<unk>", "<s>", "</s>"),
        extra_special_tokens=list(extra),
        pad_token="<pad>",
        add_bos_token=True,
        model_max_length=LIMIT,
    )


def qwen_tokenizer(*, extra: Sequence[str] = QWEN, **named: str) -> Any:
    """Qwen 2's: over bytes, without a first token, ``<|im_end|>`` at the end.

    Args:
        extra: more special tokens.
        named: special tokens that a processor asks for by name, such as ``start_image_token``.
    """
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer(
        **over_bytes("<|endoftext|>"),
        extra_special_tokens=list(extra),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=LIMIT,
        **named,
    )


def llama3_tokenizer(*extra: str) -> Any:
    """LLaMA 3's: over bytes, ``<|begin_of_text|>`` first, the class that names no model."""
    from tokenizers import Tokenizer, decoders, processors
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    begin, end, pad = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
    made = Tokenizer(BPE(**over_bytes(begin, end, pad)))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        extra_special_tokens=list(extra),
        model_max_length=LIMIT,
    )


def smollm_tokenizer(*extra: str) -> Any:
    """SmolLM 2's as SmolVLM has it: GPT-2's class, ``<|im_start|>`` written by the template, not by the tokenizer."""
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(
        **over_bytes("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        extra_special_tokens=list(extra),
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        model_max_length=LIMIT,
    )


def gemma_tokenizer(*extra: str, **named: str) -> Any:
    """Gemma's: SentencePiece's way, no space before the first word, ``<bos>`` first; then ``extra`` and ``named``."""
    from transformers import GemmaTokenizer

    return GemmaTokenizer(
        **over_pieces("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
        extra_special_tokens=list(extra),
        add_bos_token=True,
        model_max_length=LIMIT,
        **named,
    )


def bart_tokenizer(**named: str) -> Any:
    """BART's: over bytes, ``<s>`` and ``</s>`` around a text, and named tokens such as ``image_token``."""
    from transformers import BartTokenizer

    vocabulary = over_bytes("<s>", "<pad>", "</s>", "<unk>")
    vocabulary["vocab"]["<mask>"] = len(vocabulary["vocab"])
    return BartTokenizer(**vocabulary, model_max_length=LIMIT, **named)
