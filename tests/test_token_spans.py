"""The colours of tokens are the labels of the loss, and what stands below them is decoded from the labels."""

import pytest
import torch
from shown_worlds import HAS_IMAGE_TOKENS, SPEAKERS, reader

from mmtune.backbones import Backbone
from mmtune.ground.records import Turn
from mmtune.token_spans import NO_LABEL, Stream, Token, TokenWriter, streams_of, visible

ANSWER = "a red line"


def encoded_answer(backbone: Backbone) -> dict[str, torch.Tensor]:
    """A question, an image and an answer."""
    from adapter_examples import DrawnImage

    image = DrawnImage(0)
    turns = (Turn("user", (image, "what is it?")), Turn("assistant", (ANSWER,)))
    if backbone.family.__name__.endswith("chat") and backbone.description.config["model_type"] == "florence2":
        turns = (Turn("user", (image, "What does the image describe?")), turns[1])
    encoded: dict[str, torch.Tensor] = backbone.family.encode_turns(backbone.processor, turns, [image.read()])
    return encoded


def streams(backbone: Backbone, encoded: dict[str, torch.Tensor]) -> list[Stream]:
    parts = {"family": backbone.family, "traits": backbone.traits, "processor": backbone.processor}
    return streams_of(encoded, **parts)


def spread(stream: Stream) -> list[str]:
    """The kind of every place."""
    return [token.kind for token in stream.tokens for _ in range(token.count)]


@pytest.mark.parametrize("name", SPEAKERS)
def test_colours_are_labels_and_targets_are_what_must_be_said(name: str) -> None:
    backbone = reader(name)
    encoded = encoded_answer(backbone)
    found = streams(backbone, encoded)
    labels = encoded["labels"]
    *reads, text = found
    if backbone.traits.shifted_labels:
        assert [kind == "trained" for kind in spread(text)] == (labels != NO_LABEL).tolist()
    else:
        assert spread(text) == ["trained"] * int((labels != NO_LABEL).sum())
    assert len(reads) == (name in ("blip_answering", "florence2"))  # encoder-decoders
    for stream in reads:
        assert "trained" not in spread(stream) and len(spread(stream)) == len(encoded["input_ids"])
    (target,) = text.targets
    special = [token for token in backbone.processor.tokenizer.all_special_tokens if token in target]
    assert special, "the end is learned too"
    for token in special:
        target = target.replace(token, "")
    assert target.strip() == ANSWER
    coloured = "".join(token.text for token in text.tokens if token.kind == "trained" and not token.is_special)
    assert coloured.strip() == ANSWER


@pytest.mark.parametrize("name", SPEAKERS)
def test_image_tokens_are_those_that_the_family_names(name: str) -> None:
    backbone = reader(name)
    encoded = encoded_answer(backbone)
    kinds = spread(streams(backbone, encoded)[0])
    if name in HAS_IMAGE_TOKENS:
        marked = backbone.family.image_tokens(backbone.processor, encoded).tolist()
        assert [kind == "image" for kind in kinds] == marked and any(marked)
    else:
        assert "image" not in kinds


@pytest.mark.parametrize("name", SPEAKERS)
def test_with_everything_masked_nothing_is_trained_on(name: str) -> None:
    backbone = reader(name)
    encoded = encoded_answer(backbone)
    encoded["labels"] = torch.full_like(encoded["labels"], NO_LABEL)
    found = streams(backbone, encoded)
    assert not [kind for stream in found for kind in spread(stream) if kind == "trained"]
    assert not [target for stream in found for target in stream.targets]


def test_a_label_at_the_first_place_is_not_learned() -> None:
    backbone = reader("llava")
    encoded = encoded_answer(backbone)
    encoded["labels"] = encoded["input_ids"].clone()
    (text,) = streams(backbone, encoded)
    assert spread(text)[0] == "masked" and set(spread(text)[1:]) == {"trained"}


def test_what_no_one_sees_is_padding() -> None:
    backbone = reader("git")
    encoded = encoded_answer(backbone)
    encoded["attention_mask"][-2:] = 0
    encoded["labels"][-2:] = NO_LABEL
    (text,) = streams(backbone, encoded)
    assert spread(text)[-2:] == ["padding"] * 2
    assert text.count() == len(encoded["input_ids"]) - 2


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "git"])
def test_written_tokens_join_to_the_text(name: str) -> None:
    tokenizer = reader(name).processor.tokenizer
    text = "the red line over there 17"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    writer = TokenWriter(tokenizer)
    assert "".join(map(writer.write, ids)).strip() == text
    assert writer.write(len(tokenizer) + 5) == f"<{len(tokenizer) + 5}>"


def test_clip_s_word_ends_become_blanks(tiny_clip_folder) -> None:
    from mmtune.backbones import Section, load_processor

    backbone = load_processor(Section(id=str(tiny_clip_folder)))
    encoded = backbone.family.encode_text(backbone.processor, "red line in one")
    (text,) = streams(backbone, encoded)
    assert set(spread(text)) <= {"read", "padding"} and not text.targets
    words = "".join(token.text for token in text.tokens if not token.is_special and token.kind == "read")
    assert words.strip() == "red line in one"


def test_what_cannot_be_seen_is_written_in_numbers() -> None:
    assert visible("a\x1b[31mb\u202ec\nd\té猫") == "a\\x1b[31mb\\u202ec\nd\té猫"
    assert Token("<image>", "image", 576).shown == "[<image> x 576]"
    assert Token("<image>", "image").shown == "[<image>]"
    assert Token("a\n", "masked").shown == "a↵\n"
