"""Language models and tokenizers for the tiny twins of BLIP-2 and InstructBLIP: random weights, real classes."""

from typing import TYPE_CHECKING, Any

from mmtune.backbones._dual_encoder import spread_weights

if TYPE_CHECKING:
    from torch import nn

POSITIONS = 256
"""Longest text that the twins read, image tokens included."""

NUM_QUERIES = 4

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?:'-"
WORDS = ("the", "line", "red", "cat", "is", "a")


def tiny_language(name: str) -> tuple[Any, dict[str, Any]]:
    """A tokenizer and the text_config of ``opt``, ``llama`` or ``t5``; one id is left for the image token."""
    tokenizer = {"opt": opt_tokenizer, "llama": llama_tokenizer, "t5": t5_tokenizer}[name]()
    num_words = len(tokenizer) + 1
    shape: dict[str, Any] = {"model_type": name, "vocab_size": num_words}
    if name == "t5":
        shape |= {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2, "n_positions": POSITIONS}
        shape |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
        return tokenizer, shape
    shape |= {**TOWER, "max_position_embeddings": POSITIONS}
    if name == "opt":
        del shape["intermediate_size"]
        shape |= {"ffn_dim": 64, "word_embed_proj_dim": 32, "attention_dropout": 0.1}
        shape |= {"bos_token_id": 2, "pad_token_id": 1, "eos_token_id": tokenizer.convert_tokens_to_ids("Ċ")}
        return tokenizer, shape
    shape |= {"attention_dropout": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return tokenizer, shape


def opt_tokenizer() -> Any:
    """A GPT2Tokenizer over bytes, as OPT has it: texts begin with ``</s>``, and nothing ends them."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import GPT2Tokenizer

    merges = [("Ġ", "c"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("i", "n"), ("r", "e"), ("Ġ", "a")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), *map("".join, merges)]
    special = {"unk_token": "</s>", "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return GPT2Tokenizer(vocab=_numbered(tokens), merges=merges, add_bos_token=True, **special)


def llama_tokenizer() -> Any:
    """A LlamaTokenizer over letters, and bytes for the rest: texts begin with ``<s>``."""
    from transformers import LlamaTokenizer

    merges = [("▁", "a"), ("▁", "c"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("i", "n"), ("r", "e")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    tokens += map("".join, merges)
    return LlamaTokenizer(vocab=_numbered(tokens), merges=merges, pad_token="<unk>", add_bos_token=True)


def t5_tokenizer() -> Any:
    """A T5Tokenizer (unigram pieces) over letters and a few words: texts end with ``</s>``."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=[*pieces, *((f"▁{word}", -2.0) for word in WORDS)], extra_ids=0)


def tiny_pictures() -> Any:
    """BLIP's image processor for 32 x 32 pixels."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil(size={"height": 32, "width": 32})


def random_model(model_class: Any, config: Any) -> "nn.Module":
    """A model of a class with spread weights, always the same.

    T5 does not divide its attention scores by the root of their width, its queries are small instead: with larger ones
    attention would be all or nothing, and rounding would show.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = model_class(config)
    spread_weights(model, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                weight.mul_(config.text_config.d_kv**-0.5)
    return model


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}
