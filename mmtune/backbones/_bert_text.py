"""Text towers like BERT: read at their first token, every token sees every other, padding is masked.

Letters: B samples, L text tokens.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mmtune.backbones._dual_encoder import stack_images
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn


def encode_text(processor: Any, text: str) -> "dict[str, Tensor]":
    """One text as ``[CLS] words [SEP]``, cut to the tower's limit: ``input_ids`` and ``attention_mask`` int64[L]."""
    encoded = processor.tokenizer(text, truncation=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"][0], "attention_mask": encoded["attention_mask"][0]}


IGNORED_LABEL = -100
"""Where nothing is to be said: the label that transformers' losses pass over."""


def pad(
    processor: Any, encoded: "Sequence[Mapping[str, Tensor]]", *, side: Literal["right", "left"] = "right"
) -> "dict[str, Tensor]":
    """Encoded samples (images, texts or both in one dict each) as one batch; text padded to the longest of them.

    Padding changes no embedding: no token sees it, and it stands right of the text, but where one goes on writing (a
    decoder's prompt), left of it. Labels are padded with what the loss passes over.
    """
    from torch.nn.utils.rnn import pad_sequence

    batch = stack_images(encoded)
    padding = processor.tokenizer.pad_token_id
    fill = {"input_ids": padding, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORED_LABEL}
    fill |= {"decoder_input_ids": padding, "decoder_attention_mask": 0}
    for key in (key for key in fill if encoded and key in encoded[0]):
        rows = [one[key] for one in encoded]
        batch[key] = pad_sequence(rows, batch_first=True, padding_value=fill[key], padding_side=side)
    return batch


def check(model: "nn.Module", processor: Any) -> None:
    """See that texts can be padded and begin with the token that is read.

    Raises:
        BackboneError: the tokenizer cannot pad, or does not begin a text with its class token.
    """
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        raise BackboneError("the tokenizer has no padding token, so texts cannot be batched")
    first = tokenizer("a")["input_ids"][0]
    if tokenizer.cls_token_id is None or first != tokenizer.cls_token_id:
        raise BackboneError(
            f"the text is read at its first token, which should be the class token {tokenizer.cls_token!r}, but the "
            f"tokenizer begins texts with {tokenizer.convert_ids_to_tokens(first)!r}: config.json and tokenizer do not "
            f"belong together"
        )


def tiny_tokenizer(length: int) -> Any:
    """A lowercasing BertTokenizer over letters, digits, a few words and a few Chinese characters."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["the", "over", "line", "##in", "##er", "一", "只", "猫", "狗", "红", "线"]
    tokens = [*special, *".,!?'-", *letters, *(f"##{letter}" for letter in letters), *words]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=length)
