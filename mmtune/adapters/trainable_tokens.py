"""Train the embeddings of chosen tokens and nothing else, through peft: for words that mean something of their own.

``tokens`` names tokens that the backbone's tokenizer has: words that it makes one token of (``lion``), entries of its
vocabulary (``lion</w>``, ``<|endoftext|>``) or ids. Where the tokenizer marks the space before a word (RoBERTa's
``Ġlion``), a word within a sentence is another token than at its beginning: name both. Nothing is added to the
vocabulary, so a merged model keeps its tokenizer and every shape; merging writes the trained rows into the embedding.
Formula: row i of the embedding float[V, D] is trained for every chosen id i, all other rows stay.
Source: peft's TrainableTokens.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._peft_method import wrap
from mmtune.adapters._section import AdapterSection, no_repeats
from mmtune.adapters._targets import part_problems
from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from mmtune.backbones import Backbone, Description
    from mmtune.backbones import Section as BackboneSection


class Section(AdapterSection):
    """Rows of the text tower's embedding are trained."""

    kind: Literal["trainable_tokens"] = Field(description="the embeddings of chosen tokens alone")
    parts: list[str] = Field(["text"], min_length=1, max_length=1, description="the part that reads tokens: text")
    tokens: list[str | int] = Field(
        min_length=1, description="words that are one token each, entries of the vocabulary, or token ids"
    )

    @field_validator("tokens")
    @classmethod
    def _no_token_twice(cls, tokens: list[str | int]) -> list[str | int]:
        no_repeats([f"id {token}" if isinstance(token, int) else token for token in tokens])
        return tokens


def problems(section: Section, backbone: "BackboneSection", description: "Description") -> list[str]:
    """What config.json alone shows to be wrong: a part that is not there."""
    return part_problems(section.parts, description.traits)


def insert(backbone: "Backbone", section: Section, seed: int) -> Inserted:
    """Wrap the part's token embedding with peft; rows start as they are, so ``seed`` changes nothing here.

    Raises:
        RecipeError: the part reads no tokens, or tokens that are not there, are several, or are padding; a head that
            peft would not compute as it is.
    """
    import peft

    part = section.parts[0]
    name, embedding = _find_embedding(backbone, part)
    _refuse_tied_bias(backbone, embedding)
    ids = _find_ids(section.tokens, backbone.processor.tokenizer, embedding)
    config = peft.TrainableTokensConfig(target_modules=[name], token_indices=ids)
    return wrap(backbone, {part: [name]}, config, seed)


def _find_embedding(backbone: "Backbone", part: str) -> "tuple[str, nn.Embedding]":
    """Full name and module of the embedding that the tower itself calls its input."""
    tower: Any = backbone.model.get_submodule(backbone.traits.parts[part])
    try:
        found = tower.get_input_embeddings()
    except (AttributeError, RuntimeError):  # transformers' way of saying that it has none
        found = None
    for name, module in backbone.model.named_modules():
        if module is found and hasattr(module, "num_embeddings"):
            return name, module
    raise RecipeError(
        f"adapter.parts: {part} of {backbone.traits.name} reads no tokens, so it has no embedding of them"
    )


def _refuse_tied_bias(backbone: "Backbone", embedding: "nn.Embedding") -> None:
    """peft computes a head that has the embedding's weight too, so that both stay one, but without the head's bias."""
    from torch import nn

    for name, module in backbone.model.named_modules():
        if isinstance(module, nn.Linear) and module.weight is embedding.weight and module.bias is not None:
            raise RecipeError(
                f"adapter.kind: {name} has the embedding's weight and a bias, which peft would leave out as soon as "
                "tokens are trained: the model would be another one; use kind: lora, or full to train the part whole"
            )


def _find_ids(tokens: list[str | int], tokenizer: Any, embedding: "nn.Embedding") -> list[int]:
    """The tokens' ids, in the recipe's order.

    Raises:
        RecipeError: everything that is wrong with them, all at once.
    """
    found: dict[int, str | int] = {}
    wrong = []
    for token in tokens:
        number = token if isinstance(token, int) else _find_id(token, tokenizer)
        if isinstance(number, str):
            wrong.append(number)
        elif not 0 <= number < embedding.num_embeddings:
            wrong.append(f"{token} is no id: they go from 0 to {embedding.num_embeddings - 1}")
        elif number == embedding.padding_idx:
            wrong.append(f"{token!r} is what texts are padded with (id {number}); its row is never trained")
        elif number in found:
            wrong.append(f"{token!r} and {found[number]!r} are the same token (id {number})")
        else:
            found[number] = token
    if wrong:
        raise RecipeError("\n".join(f"adapter.tokens: {line}" for line in wrong))
    return list(found)


def _find_id(word: str, tokenizer: Any) -> int | str:
    """A word's id, or what is wrong with it; how a text is split goes before what the vocabulary holds."""
    pieces: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id:
        return pieces[0]
    vocabulary = tokenizer.get_vocab()
    if word in vocabulary:
        return int(vocabulary[word])
    if len(pieces) <= 1:
        return f"{word!r} is not in the tokenizer's vocabulary"
    shown = " ".join(tokenizer.convert_ids_to_tokens(pieces))
    return f"{word!r} is {len(pieces)} tokens ({shown}); name a word that is one token, or those that it is made of"
